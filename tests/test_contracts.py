"""Promises of the repository as a whole, read from its files without ComfyUI."""

import re
import subprocess
from pathlib import Path

from each import failures_of_each
from PIL import Image, ImageStat
from schemas import node_schemas

from tools.node_picture_graphs import sockets

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
    return sorted(node_schemas())


def help_page(name):
    return ROOT / "web" / "docs" / f"{name}.md"


def sections(text):
    """Return the text below each heading of the second level, in their order."""
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    return {heading: body.strip() for heading, body in zip(parts[1::2], parts[2::2], strict=True)}


def named_in_table(text):
    """Return what the first column of a table names."""
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("|")]
    cells = [cell.replace("(optional)", "") for cell in rows[2:]]
    return [name.strip() for cell in cells for name in cell.split(",")]


def test_node_ids_carry_the_name_of_the_pack():
    assert len(node_ids()) > 0
    assert [name for name in node_ids() if not name.startswith("ChunkGRPO_")] == []


def test_every_input_and_output_of_a_node_has_a_tooltip():
    silent = {
        name: [s.name for s in (*schema.inputs, *schema.outputs) if not s.tooltip]
        for name, schema in node_schemas().items()
    }
    assert {name: sockets for name, sockets in silent.items() if sockets} == {}


def test_every_help_page_says_what_when_and_where_from():
    assert failures_of_each(check_sections, node_ids()) == {}


def check_sections(name):
    schema, page = node_schemas()[name], help_page(name)
    assert page.is_file(), f"write {page.relative_to(ROOT)}"
    text = page.read_text(encoding="utf-8")
    found = sections(text)
    assert [heading for heading, body in found.items() if not body] == []
    assert list(found)[:3] == ["When to use it", "Inputs", "Outputs"]
    assert list(found)[-2:] == ["Pitfalls", "Source"]
    title, what = text.partition("## ")[0].strip().split("\n", 1)
    assert title == f"# {schema.display_name}"
    assert len(what.strip()) > 40 and "|" not in what


def test_every_help_page_lists_exactly_the_inputs_and_outputs_of_its_node():
    assert failures_of_each(check_tables, node_ids()) == {}


def check_tables(name):
    schema, found = node_schemas()[name], sections(help_page(name).read_text(encoding="utf-8"))
    assert sorted(named_in_table(found["Inputs"])) == sorted(s.name for s in schema.inputs)
    assert sorted(named_in_table(found["Outputs"])) == sorted(s.name for s in schema.outputs)


def test_every_help_page_has_one_picture_of_its_node():
    assert failures_of_each(check_picture, node_ids()) == {}


def check_picture(name):
    text = help_page(name).read_text(encoding="utf-8")
    ((words, link),) = re.findall(r"!\[([^\]]*)\]\(([^)\s]+)\)", text)
    assert len(words) > 15
    assert link == f"images/{name}.jpg"
    assert f"]({link})" in sections(text)["When to use it"]
    with Image.open(help_page(name).parent / link) as picture:
        assert 450 <= picture.width <= 720
        assert picture.height >= 120
        assert ImageStat.Stat(picture.convert("L")).stddev[0] > 15, "the picture is blank"


def test_every_picture_of_a_help_page_shows_the_inputs_and_outputs_that_its_node_has():
    """``python tools/node_pictures.py --only NODE`` takes it again; look at it, then commit it."""
    schemas = node_schemas()
    names = {
        node: [[s.name for s in sockets] for sockets in (schema.inputs, schema.outputs)]
        for node, schema in schemas.items()
    }
    assert [node for node in names if shown_in_picture(node) != sockets(*names[node])] == []


def shown_in_picture(node):
    with Image.open(help_page(node).parent / "images" / f"{node}.jpg") as picture:
        return picture.info["comment"].decode()


def test_the_pictures_of_the_help_pages_are_small_and_none_is_left_over():
    pictures = list((ROOT / "web" / "docs" / "images").iterdir())
    assert sorted(path.stem for path in pictures) == node_ids()
    assert max(path.stat().st_size for path in pictures) <= 60_000
    assert sum(path.stat().st_size for path in pictures) <= 50_000 * len(pictures)


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
