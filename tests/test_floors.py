"""The import rules of the project, read from the source and never from an installed copy.

The core is built in floors: a file imports only from lower floors, so that file order is reading
order. Edges implement what floor 0 declares or listen to what the trainer tells; no floor knows
them. ComfyUI is reached from ``nodes/`` alone.
"""

import ast
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "chunk_grpo_core"
NODES = ROOT / "nodes"

FLOORS = {
    "optional": 0, "version": 0, "schedule": 0, "policy": 0, "rewards/base": 0, "events": 0,
    "ema": 0, "lora_layers": 0, "loss_scale": 0, "micro_batches": 0, "overlap": 0, "low_rank": 0,
    "sdpa": 0,
    "sde": 1, "solvers": 1,
    "batch_limit": 1, "lora": 1, "flux_names": 1, "export": 2,
    "rollout": 2, "replay": 3, "dynamics": 3, "chunks": 4, "planners": 5, "provenance": 5,
    "windows": 5, "advantage": 5, "objective": 6, "config": 7, "diagnostics": 7, "evaluate": 7,
    "streaming": 8, "metrics": 8, "optimizer": 8, "selftest": 8, "checkpoint": 8,
    "update": 9, "trainer": 10,
    "meters": 0, "lock_step": 0, "distributed": 1, "launch": 2,
    "presets/recipe": 1, "presets/gcpo": 2, "presets/step_level": 2, "presets/safe_lora": 2,
    "presets/__init__": 8,
    "prompt_files": 0, "wildcards": 1, "prompts": 2, "tensor_cache": 1,
}  # fmt: skip
EDGE_FOLDERS = ("models", "rewards", "tiny")
EDGE_FILES = (
    "__init__",
    "comparison",
    "experiment",
    "history",
    "latest_group",
    "run_view",
    "pictures",
    "plots",
    "plot_style",
    "cli",
    "cli_rewards",
    "cli_serve",
    "cli_train",
    "cli_measure",
    "progress",
    "__main__",
    "demo",
    "run_config",
    "config_keys",
    "config_file",
    "config_text",
    "listeners",
    "results",
    "sampling",
    "workbench",
)
COMMANDS = (
    "cli",
    "cli_rewards",
    "cli_serve",
    "cli_train",
    "cli_measure",
    "progress",
    "__main__",
    "demo",
)

# May be imported when a core file is; everything else inside the function that needs it.
LIGHT = {"torch", "numpy", "safetensors", "PIL"}
LIGHT_IN_COMMANDS = {"typer", "rich"}
HEAVY = {
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "matplotlib",
    "onnxruntime",
    "bitsandbytes",
    "rapidocr",
    "cv2",
}
LAZY = sorted(HEAVY | {"typer", "rich", "comfy", "PIL"})

COMFY = {"comfy", "comfy_execution", "comfy_extras", "execution", "folder_paths", "server",
         "latent_preview", "node_helpers", "nodes"}  # fmt: skip
COMFY_API = "comfy_api"


@dataclass(frozen=True)
class Import:
    """One import as written: ``level`` dots, dotted ``module``, ``names`` taken from it."""

    line: int
    level: int
    module: str
    names: tuple[str, ...]
    at_import_time: bool

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]


def imports_of(path: Path) -> list[Import]:
    """List every import statement of a file, also those inside functions."""
    found = []

    def visit(node, at_import_time):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found.append(Import(node.lineno, 0, alias.name, (), at_import_time))
        elif isinstance(node, ast.ImportFrom):
            names = tuple(alias.name for alias in node.names)
            found.append(Import(node.lineno, node.level, node.module or "", names, at_import_time))
        lazy = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) or (
            isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        )
        for child in ast.iter_child_nodes(node):
            visit(child, at_import_time and not lazy)

    visit(ast.parse(path.read_text(encoding="utf-8")), True)
    return found


def core_name(path: Path) -> str:
    """Name a core file as this module's tables do: ``rewards/base``."""
    return path.relative_to(CORE).with_suffix("").as_posix()


def core_targets(path: Path, item: Import) -> list[str]:
    """Return the core files that a relative import of a core file reads."""
    base = path.parent
    for _ in range(item.level - 1):
        base = base.parent
    base = base.joinpath(*filter(None, item.module.split(".")))
    if base.with_suffix(".py").is_file():
        return [core_name(base.with_suffix(".py"))]
    modules = [name for name in item.names if is_module(base / name)]
    others = [name for name in item.names if name not in modules]
    targets = [core_name((base / name).with_suffix(".py")) for name in modules]
    return targets + ([core_name(base / "__init__.py")] if others else [])


def is_module(path: Path) -> bool:
    return path.with_suffix(".py").is_file() or path.is_dir()


def is_edge(name: str) -> bool:
    if name in FLOORS:
        return False
    return name in EDGE_FILES or name.partition("/")[0] in EDGE_FOLDERS


def python_files(folder: Path) -> list:
    return [
        pytest.param(path, id=path.relative_to(ROOT).as_posix())
        for path in sorted(folder.rglob("*.py"))
    ]


core_files = pytest.mark.parametrize("path", python_files(CORE))
node_files = pytest.mark.parametrize("path", python_files(NODES))
root_file = pytest.param(ROOT / "__init__.py", id="__init__.py")
shipped_files = pytest.mark.parametrize(
    "path", [root_file, *python_files(CORE), *python_files(NODES)]
)


def where(path: Path, item: Import) -> str:
    written = "." * item.level + item.module
    return f"{path.relative_to(ROOT)}:{item.line} imports {written or ', '.join(item.names)}"


@core_files
def test_a_core_file_imports_only_lower_floors(path):
    name = core_name(path)
    assert name in FLOORS or is_edge(name), (
        f"{name} has no floor: add it to FLOORS in {Path(__file__).name}, or to the edges if it "
        "implements a policy or a reward or listens to events"
    )
    if name not in FLOORS:
        return
    for item in imports_of(path):
        for target in core_targets(path, item) if item.level else ():
            assert target in FLOORS, f"{where(path, item)}, an edge; floors do not know edges"
            assert FLOORS[target] < FLOORS[name], (
                f"{where(path, item)} on floor {FLOORS[target]}, from floor {FLOORS[name]}"
            )


@core_files
def test_the_core_imports_itself_only_relatively_and_never_comfyui(path):
    for item in imports_of(path):
        if item.level:
            depth = len(path.relative_to(CORE).parts)
            assert item.level <= depth, f"{where(path, item)}, which is outside the core"
        else:
            assert item.top != CORE.name, f"{where(path, item)}; write a relative import"
            assert item.top not in COMFY | {COMFY_API}, f"{where(path, item)}; that is for nodes/"


@core_files
def test_a_core_file_needs_only_light_packages_at_import(path):
    allowed = LIGHT | set(sys.stdlib_module_names)
    if core_name(path) in COMMANDS:
        allowed |= LIGHT_IN_COMMANDS
    for item in imports_of(path):
        if item.level == 0 and item.at_import_time:
            assert item.top in allowed, f"{where(path, item)}; move it into the function"


@core_files
def test_the_loop_does_not_know_heavy_packages(path):
    if FLOORS.get(core_name(path), 0) < 2:
        return
    for item in imports_of(path):
        assert item.level or item.top not in HEAVY, f"{where(path, item)}; pass a Policy or Reward"


@node_files
def test_nodes_reach_the_core_only_relatively_and_comfyui_only_in_the_bridge(path):
    in_bridge = path.relative_to(NODES).parts[0] in ("bridge", "bridge.py")
    for item in imports_of(path):
        if item.level:
            continue
        assert item.top != CORE.name, f"{where(path, item)}; write from ..chunk_grpo_core"
        if not in_bridge:
            assert item.top not in COMFY, f"{where(path, item)}; that is for nodes/bridge/"


@shipped_files
def test_shipped_code_leaves_the_import_path_alone(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        written = ast.unparse(node) if isinstance(node, (ast.Attribute, ast.ImportFrom)) else ""
        for forbidden in ("sys.path", "sys.meta_path", "from sys import path"):
            assert written != forbidden, f"{path.relative_to(ROOT)}:{node.lineno} uses {forbidden}"


def test_importing_the_core_loads_torch_and_nothing_heavy():
    code = (
        f"import sys; sys.path.append({str(ROOT)!r})\nimport chunk_grpo_core\n"
        f"print([m for m in ['torch', *{LAZY}] if m in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT / "tests", capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['torch']"


def test_the_rules_see_what_they_must(tmp_path):
    source = tmp_path / "a.py"
    source.write_text(
        "import os\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import peft\n"
        "def f():\n    from .rewards import base\ntry:\n    import comfy.sd\nexcept E:\n    pass\n"
    )
    seen = [(i.level, i.module, i.names, i.at_import_time) for i in imports_of(source)]
    assert seen == [
        (0, "os", (), True),
        (0, "typing", ("TYPE_CHECKING",), True),
        (0, "peft", (), False),
        (1, "rewards", ("base",), False),
        (0, "comfy.sd", (), True),
    ]
    assert core_targets(CORE / "trainer.py", imports_of(source)[3]) == ["rewards/base"]
