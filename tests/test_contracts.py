"""Promises of the repository as a whole, read from its files without ComfyUI."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LARGEST = 8 * 1024 * 1024
ABSOLUTE = re.compile(
    r"(?<![\w./:$~}])/(?:home|root|tmp|Users|mnt|srv|opt|media|data|var)/[\w.-]+|\b[A-Z]:\\\\?\w"
)
TEXT = {".md", ".json", ".toml", ".txt", ".yml", ".yaml"}


def tracked():
    """Return the files that git keeps or would keep; without git, all but the obvious leftovers."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60, check=True)
        names = done.stdout.decode().split("\0")
        paths = [ROOT / name for name in names if name]
    except (OSError, subprocess.SubprocessError):
        hidden = re.compile(r"/(\.[^/]+|__pycache__|build|dist|output)(/|$)")
        paths = [p for p in ROOT.rglob("*") if not hidden.search(f"/{p.relative_to(ROOT)}")]
    return [path for path in paths if path.is_file()]


def node_ids():
    source = "".join(path.read_text() for path in sorted((ROOT / "nodes").glob("*.py")))
    return sorted(re.findall(r'node_id="(\w+)"', source))


def test_node_ids_carry_the_name_of_the_pack():
    assert len(node_ids()) == len(set(node_ids())) > 0
    assert [name for name in node_ids() if not name.startswith("ChunkGRPO_")] == []


@pytest.mark.parametrize("name", node_ids())
def test_every_node_has_a_help_page_with_all_its_inputs(name):
    page = ROOT / "web" / "docs" / f"{name}.md"
    assert page.is_file(), f"write {page.relative_to(ROOT)}"
    text = page.read_text(encoding="utf-8")
    assert len(text) > 200
    block = next(
        block
        for path in (ROOT / "nodes").glob("*.py")
        for block in path.read_text().split("@classmethod\n    def define_schema")
        if f'node_id="{name}"' in block
    )
    inputs = re.findall(r'\.Input\(\s*"(\w+)"', block)
    assert [key for key in inputs if key not in text] == []


def test_no_help_page_is_left_over():
    pages = sorted(path.stem for path in (ROOT / "web" / "docs").glob("ChunkGRPO_*.md"))
    assert set(pages) <= set(node_ids())


def test_texts_name_no_folder_of_somebodys_machine():
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in tracked()
        if path.suffix in TEXT
        for match in ABSOLUTE.finditer(path.read_text(encoding="utf-8"))
        if not match[0].startswith("/path/")
    ]
    assert found == []


def test_pictures_that_the_texts_show_exist():
    missing = [
        f"{path.relative_to(ROOT)}: {link}"
        for path in tracked()
        if path.suffix == ".md"
        for link in re.findall(r"!\[[^\]]*\]\(([^)\s]+)", path.read_text(encoding="utf-8"))
        if "://" not in link and not (path.parent / link).is_file()
    ]
    assert missing == []


def test_every_file_is_small_enough_to_clone():
    large = {str(p.relative_to(ROOT)): p.stat().st_size for p in tracked()}
    assert {name: size for name, size in large.items() if size > LARGEST} == {}


def test_the_absolute_path_rule_sees_what_it_must():
    for text in ("see /data/main/x", "`/home/me/loras`", '"/tmp/run_0001"', r"C:\Users\me"):
        assert ABSOLUTE.search(text), text
    for text in ("a/home/b", "https://x.org/data/y", "output/chunk_grpo", "/path/to/ComfyUI"):
        assert not ABSOLUTE.search(text), text
