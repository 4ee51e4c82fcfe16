"""Names from anybody stay inside the folder they are for."""

from __future__ import annotations

import pytest

from chunk_grpo_core.disk.names import path_inside, safe_name


@pytest.mark.parametrize(
    "name", ["run", "红色 2", "a.b-c+d_e 1", " padded ", "x" * 80, "com", "a.nul"]
)
def test_a_plain_name_is_taken_as_it_is(name):
    assert safe_name(name) == name.strip()


ODD = ["", " ", ".", "..", "a/b", "a\\b", ".hidden", "-x", "a.", "a:b", "CON", "nul.txt", "COM1"]
ODD += [
    "lpt9.safetensors",
    "com\u00b9",
    "x" * 81,
    "红" * 70,
    "a\nb",
    "a\0b",
    "a\tb",
    "\ud800",
    "a*",
    "~",
]


@pytest.mark.parametrize("name", ODD)
def test_a_name_that_some_system_cannot_hold_is_refused(name):
    with pytest.raises(ValueError, match="cannot be a file name"):
        safe_name(name)


@pytest.mark.parametrize("name", ["a.txt", "sub/a.txt", "sub\\a.txt", "sub/./a.txt", "a b/ü.txt"])
def test_a_path_inside_is_taken(name, tmp_path):
    assert path_inside(name, tmp_path, "the folder").is_relative_to(tmp_path)


OUTSIDE = ["", " ", "..", "../a", "a/../../b", "a\\..\\b", "/etc/passwd", "\\\\host\\share\\a"]
OUTSIDE += ["C:\\a", "C:a", "a\0b", "a\nb", "x" * 401, "a/" + "x" * 256, "\ud800"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_path_that_leads_elsewhere_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match="outside the folder|too long"):
        path_inside(name, tmp_path, "the folder")


def test_a_link_may_lead_out_only_where_that_is_meant(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    (inside / "link").symlink_to(outside, target_is_directory=True)
    (inside / "real").mkdir()
    (inside / "near").symlink_to(inside / "real", target_is_directory=True)
    (tmp_path / "also").symlink_to(inside, target_is_directory=True)
    for name in ("link", "link/a.txt"):
        with pytest.raises(ValueError, match="through a link"):
            path_inside(name, inside, "the folder")
        assert path_inside(name, inside, "the folder", links=True) == inside / name
    assert path_inside("near/a.txt", inside, "the folder") == inside / "near/a.txt"
    assert path_inside("real/a.txt", tmp_path / "also", "the folder")
