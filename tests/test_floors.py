"""The import rules of the project, read from the source and never from an installed copy.

Folders are floors: a folder of the core imports only from folders above it in ``FOLDERS``
(``tools/structure.py``), so that the list is the reading order. ComfyUI is reached from
``nodes/bridge/`` alone.
"""

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools import structure

ROOT = Path(__file__).resolve().parent.parent
NODES = ROOT / "nodes"

CORE, file_arrows = structure.CORE, functools.cache(structure.file_arrows)
imports_of = functools.cache(structure.imports_of)

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


def python_files(folder):
    return sorted(folder.rglob("*.py"))


def where(path, item):
    written = "." * item.level + item.module
    return f"{path.relative_to(ROOT)}:{item.line} imports {written or ', '.join(item.names)}"


def offences(files, is_wrong):
    return [
        where(path, item) for path in files for item in imports_of(path) if is_wrong(path, item)
    ]


def test_a_folder_imports_only_folders_above_it():
    rooms = structure.rooms_of(file_arrows())
    assert rooms.keys() == {*structure.FOLDERS, *structure.ANYWHERE, "__init__", "__main__"}
    assert structure.against_the_order(rooms) == []


def test_nothing_imports_itself_in_a_circle():
    assert structure.all_circles(file_arrows()) == []


def test_the_top_level_stays_small():
    rooms = structure.rooms_of(file_arrows())
    assert len(rooms) <= 20
    assert sum(map(len, rooms.values())) <= 110


def test_no_file_is_longer_than_350_lines():
    files = [path for folder in (CORE, NODES, ROOT / "tools") for path in python_files(folder)]
    lengths = {str(path.relative_to(ROOT)): path.read_text("utf-8").count("\n") for path in files}
    assert {name: lines for name, lines in lengths.items() if lines > 350} == {}


def test_only_what_the_tiny_world_brings_imports_a_family_of_models():
    # The registry finds families by name. One is a file or the folder of a file family.py.
    named = re.findall(r'"([\w.]+):\w+"', (CORE / "models" / "registry.py").read_text("utf-8"))
    places = [f"models/{name.replace('.', '/')}" for name in named]
    assert {"models/tiny/family", "models/flux/family"} <= set(places)
    folders = tuple(place.removesuffix("family") for place in places if place.endswith("/family"))
    readers = {
        file
        for file, reads in file_arrows().items()
        if any(read in places or read.startswith(folders) for read in reads)
        and not file.startswith(folders)
    }
    # The demo is one of the tiny FLUX; its reward and its encoder belong to its world.
    brought = {"cli/demo", "rewards/__init__", "rewards/taste/encoders"}
    assert readers == brought


@pytest.mark.parametrize("page", structure.MAPS)
def test_the_map_of_a_page_is_the_tree(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    message = "run python tools/structure.py --write"
    assert structure.with_map(text, structure.MAPS[page]()) == text, message


def test_every_folder_says_what_lives_there_and_what_may_not():
    for folder in structure.FOLDERS:
        text = ast.get_docstring(ast.parse((CORE / folder / "__init__.py").read_text("utf-8")))
        assert text, folder
        assert "\nHere: " in text and "Not here: " in " ".join(text.split()), folder


def test_the_core_imports_itself_only_relatively_and_never_comfyui():
    def is_wrong(path, item):
        if item.level:
            return item.level > len(path.relative_to(CORE).parts)  # outside the core
        return item.top in {CORE.name, COMFY_API} | COMFY

    assert offences(python_files(CORE), is_wrong) == []


def test_a_core_file_needs_only_light_packages_at_import():
    def is_wrong(path, item):
        allowed = LIGHT | set(sys.stdlib_module_names)
        if path.parent == CORE / "cli":
            allowed |= LIGHT_IN_COMMANDS
        return item.level == 0 and item.at_import_time and item.top not in allowed

    assert offences(python_files(CORE), is_wrong) == []


def test_heavy_packages_come_only_through_optional():
    def is_wrong(path, item):
        return item.level == 0 and item.top in HEAVY

    assert offences(python_files(CORE), is_wrong) == []


def test_nodes_reach_the_core_only_relatively_and_comfyui_only_in_the_bridge():
    def is_wrong(path, item):
        in_bridge = path.relative_to(NODES).parts[0] == "bridge"
        return item.level == 0 and (item.top == CORE.name or (item.top in COMFY and not in_bridge))

    assert offences(python_files(NODES), is_wrong) == []


def test_shipped_code_leaves_the_import_path_alone():
    for path in [ROOT / "__init__.py", *python_files(CORE), *python_files(NODES)]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            written = ast.unparse(node) if isinstance(node, (ast.Attribute, ast.ImportFrom)) else ""
            for forbidden in ("sys.path", "sys.meta_path", "from sys import path"):
                assert written != forbidden, f"{path.relative_to(ROOT)}:{node.lineno}"


def test_tools_and_benchmarks_import_nothing_from_the_tests():
    names = {path.stem for path in (ROOT / "tests").glob("*.py")} | {"tests"}
    files = [path for folder in ("tools", "benchmarks") for path in python_files(ROOT / folder)]
    assert offences(files, lambda path, item: item.level == 0 and item.top in names) == []


def test_the_names_of_the_core_load_torch_and_nothing_heavy():
    code = (
        f"import sys; sys.path.append({str(ROOT)!r})\nfrom chunk_grpo_core import *\n"
        f"print([m for m in ['torch', *{LAZY}] if m in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT / "tests", capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['torch']"


def test_imports_are_seen_wherever_they_stand(tmp_path):
    source = tmp_path / "a.py"
    source.write_text(
        "import os\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import peft\n"
        "def f():\n    from ..method import rules\ntry:\n    import comfy.sd\nexcept E:\n    pass\n"
    )
    seen = [(i.level, i.module, i.names, i.at_import_time) for i in imports_of(source)]
    assert seen == [
        (0, "os", (), True),
        (0, "typing", ("TYPE_CHECKING",), True),
        (0, "peft", (), False),
        (2, "method", ("rules",), False),
        (0, "comfy.sd", (), True),
    ]
    trainer = CORE / "train" / "trainer.py"
    assert structure.files_read(trainer, imports_of(source)[3]) == ["method/rules"]


def test_circles_and_arrows_against_the_order_are_seen():
    files = {"cli/app": {"method/rules"}, "method/rules": {"method/walk", "cli/app"}}
    files |= {"method/walk": {"method/deep/x"}, "method/deep/x": {"method/walk"}}
    rooms = structure.rooms_of(files)
    assert structure.circles(rooms) == [("cli", "method")]
    assert structure.against_the_order(rooms) == [("method", "cli")]
    assert ("deep", "walk") in structure.all_circles(files)
