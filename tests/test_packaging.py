"""What the package says about itself is true and agrees with itself."""

import re
import sys
from pathlib import Path

import pytest
from registry_package import LEFT_OUT, all_files, ignored

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def lines_of(name):
    lines = (ROOT / name).read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def package(requirement):
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


@pytest.mark.parametrize("folder", ["chunk_grpo_core", "nodes", "tests", "benchmarks", "tools"])
def test_no_file_needs_the_toml_reader_of_python_3_11(folder):
    files = (ROOT / folder).rglob("*.py")
    assert not [file for file in files if "\nimport tomllib" in file.read_text(encoding="utf-8")]


def test_the_pack_root_needs_no_comfyui(pack):
    assert pack.WEB_DIRECTORY == "./web"
    imported = {"annotations", "logging", "TYPE_CHECKING"}
    public = {name for name in vars(pack) if not name.startswith("_")} - imported
    assert public == {"WEB_DIRECTORY", "comfy_entrypoint"}


def test_every_direct_requirement_is_pinned_by_the_constraints():
    pinned = {package(line) for line in lines_of("constraints.txt")}
    extras = PROJECT["optional-dependencies"].values()
    wanted = {package(item) for group in [PROJECT["dependencies"], *extras] for item in group}
    assert wanted - pinned - {PROJECT["name"]} == set()


NOT_FOR_THE_LIBRARY = {"comfy", "dev"}


def extras_of(name):
    """Return the extras that an extra brings, itself included."""
    included = {name}
    for requirement in PROJECT["optional-dependencies"][name]:
        if match := re.fullmatch(rf"{PROJECT['name']}\[([\w,-]+)\]", requirement):
            included |= {more for part in match[1].split(",") for more in extras_of(part)}
    return included


def test_the_test_of_the_lowest_versions_has_every_package_of_the_library():
    """``.ci/library`` installs the extra ``library``."""
    everything = set(PROJECT["optional-dependencies"])
    assert extras_of("library") == everything - NOT_FOR_THE_LIBRARY


def test_what_the_library_needs_has_a_lowest_version():
    extras = [PROJECT["optional-dependencies"][name] for name in extras_of("library")]
    needed = [item for group in (PROJECT["dependencies"], *extras) for item in group]
    packages = [item for item in needed if package(item) != PROJECT["name"]]
    assert [item for item in packages if not re.match(r"[\w.-]+>=\d", item)] == []


def test_the_constraints_name_exact_public_versions():
    for line in lines_of("constraints.txt"):
        assert re.fullmatch(r'[\w.-]+==[\w.]+(; python_version >= "3\.11")?', line), line


@pytest.mark.parametrize("line", lines_of("requirements.txt"))
def test_the_pack_asks_comfyui_only_for_lower_bounds_of_what_it_lacks(line):
    assert re.fullmatch(r"[\w.-]+>=[\d.]+", line)
    assert package(line) not in {"torch", "torchvision", "numpy", "transformers", "safetensors"}


def test_the_registry_package_holds_the_pack_and_nothing_else(tmp_path):
    names = [name for name in all_files() if "/" in name] + ["__init__.py", "pyproject.toml"]
    assert ignored(names, tmp_path) == {n for n in names if n.startswith(LEFT_OUT)}


def test_one_version_everywhere():
    import chunk_grpo_core

    assert chunk_grpo_core.__version__ == PROJECT["version"]


def test_the_changelog_has_a_place_for_the_next_change():
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize(
    "word",
    [r"\beval\(", r"\bexec\(", r"\bsubprocess\b", r"os\.system", r"document\.body\.append"]
    + [r"\.innerHTML\b", r"insertAdjacentHTML", r"new Function\b", r"pickle\.loads?\("],
)
def test_words_that_scanners_refuse_stand_in_no_code_of_the_package(word, tmp_path):
    names = all_files()
    code = [name for name in set(names) - ignored(names, tmp_path) if name.endswith((".py", ".js"))]
    assert len(code) > 400
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in code}
    assert sorted(name for name, text in texts.items() if re.search(word, text)) == []
