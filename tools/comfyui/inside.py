"""Turn the running process into one of ComfyUI's, with this pack loaded as ComfyUI loads it.

ComfyUI fills ``sys.path`` and ``sys.modules`` with names such as ``nodes`` and ``utils``, so it
must not enter a process that has other work to do.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
import types

from .server import ROOT


class Lab:
    """What code inside ComfyUI works with: this pack, loaded as ComfyUI loads it."""

    def __init__(self, pack: str) -> None:
        self._pack = pack

    def module(self, name: str) -> types.ModuleType:
        """A module of the pack, for example ``"nodes.bridge.policy"``."""
        return importlib.import_module(f"{self._pack}.{name}")


def enter_comfyui(comfyui: str, stubs: str, *, cpu: bool = True) -> Lab:
    """Make this process one of ComfyUI's, on one thread of the CPU, with the pack loaded.

    Args:
        comfyui: Folder with ComfyUI's ``main.py``.
        stubs: Folder that :func:`~tools.comfyui.stubs.write_stubs` has filled. What looks for
            torchvision when it is imported (diffusers, transformers) must be imported before.
        cpu: Whether models stay off the accelerator.
    """
    sys.path[:0] = [comfyui, stubs]
    import torch

    torch.set_num_threads(1)
    from comfy.cli_args import args

    args.cpu = cpu  # before anything imports comfy.model_management
    logging.getLogger().setLevel(logging.WARNING)
    return Lab(_load_pack())


def _load_pack() -> str:
    """Import the pack by path, under a name that is no identifier, like ComfyUI does."""
    name = str(ROOT).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, ROOT / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return name
