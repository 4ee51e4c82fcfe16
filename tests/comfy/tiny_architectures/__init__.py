"""A node pack for the tests: tiny random models of every architecture, with CLIP and VAE."""

from .nodes import ModelState, StoppingModel, TinyArchitecture

NODE_CLASS_MAPPINGS = {
    "TestModelState": ModelState,
    "TestStoppingModel": StoppingModel,
    "TestTinyArchitecture": TinyArchitecture,
}
