"""Import-only stand-ins for torchvision and torchaudio.

ComfyUI imports both when it starts and uses them in a few nodes that have nothing to do with this
pack. There is no CPU build of them beside every torch version, and without them it does not start.
"""

from __future__ import annotations

from pathlib import Path

MODULES = (
    "torchvision",
    "torchvision.models",
    "torchvision.models.optical_flow",
    "torchvision.ops",
    "torchvision.transforms",
    "torchvision.transforms.functional",
    "torchvision.transforms.v2",
    "torchaudio",
    "torchaudio.functional",
    "torchaudio.transforms",
)

_SOURCE = '''"""Import-only stand-in for {module}: every name exists, none can be used."""

{imports}

def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)

    class Missing:
        def __init__(self, *args, **kwargs):
            raise RuntimeError("{module}." + name + " needs the real package")

    Missing.__name__ = Missing.__qualname__ = name
    return Missing
'''


def write_stubs(directory: Path) -> None:
    """Write the packages below ``directory``, which must come first on ``PYTHONPATH``.

    They carry no package metadata, so transformers and diffusers see that the real ones are absent.
    """
    for module in MODULES:
        below = [name for name in MODULES if name.rpartition(".")[0] == module]
        imports = "\n".join(f"from . import {name.rpartition('.')[2]}" for name in below)
        folder = Path(directory, *module.split("."))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "__init__.py").write_text(_SOURCE.format(module=module, imports=imports))
