"""A node pack for the tests: tiny random models of every architecture, with CLIP and VAE."""

from .nodes import TinyArchitecture

NODE_CLASS_MAPPINGS = {"TestTinyArchitecture": TinyArchitecture}
