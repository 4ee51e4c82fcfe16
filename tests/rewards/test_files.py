"""Weight files: where they are looked for, and what is refused."""

from __future__ import annotations

import argparse
import hashlib
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from chunk_grpo_core.rewards import files
from chunk_grpo_core.rewards.files import (
    WeightFile,
    build_empty,
    confined,
    digest,
    find_file,
    read_weights,
    strict_load,
)

WANTED = WeightFile(
    folder="judge",
    name="judge.safetensors",
    repo="someone/judge",
    bytes=1_970_000_000,
    licence="MIT",
    revision="abc123",
)
TENSORS = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2)}


@pytest.fixture(autouse=True)
def no_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


def put(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def test_files_are_looked_for_at_the_path_then_in_folders_then_in_the_cache(tmp_path):
    snapshots = tmp_path / "hub" / "models--someone--judge" / "snapshots"
    cached = put(snapshots / "abc123" / WANTED.name)
    assert find_file(WANTED, folders=[tmp_path / "a"]) == cached
    flat = put(tmp_path / "b" / WANTED.name)
    assert find_file(WANTED, folders=[tmp_path / "a", tmp_path / "b"]) == flat
    own = put(tmp_path / "a" / "judge" / WANTED.name)
    assert find_file(WANTED, folders=[tmp_path / "a", tmp_path / "b"]) == own
    named = put(tmp_path / "c" / "renamed.safetensors")
    assert find_file(WANTED, named, [tmp_path / "a"]) == named
    assert find_file(WANTED, tmp_path / "b", [tmp_path / "a"]) == flat


def test_a_branch_in_the_cache_leads_to_its_commit(tmp_path, monkeypatch):
    repo = tmp_path / "home" / "hub" / "models--someone--judge"
    cached = put(repo / "snapshots" / "def456" / WANTED.name)
    put(repo / "refs" / "main").write_text("def456")
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    facts = {k: getattr(WANTED, k) for k in ("folder", "name", "repo", "bytes", "licence")}
    assert find_file(WeightFile(**facts)) == cached
    with pytest.raises(FileNotFoundError):  # another commit is another file
        find_file(WANTED)


def test_a_named_path_is_not_replaced_by_another_file(tmp_path):
    put(tmp_path / WANTED.name)
    with pytest.raises(FileNotFoundError, match="there is no file .*typo.safetensors"):
        find_file(WANTED, tmp_path / "typo.safetensors", [tmp_path])


def test_a_path_that_no_system_takes_is_named_and_shortened(tmp_path):
    with pytest.raises(ValueError, match="^head is .*, which is no file: File name too") as error:
        find_file(WANTED, "[" * 5000, [tmp_path], "head")
    assert len(str(error.value)) < 300


def test_the_message_says_what_to_get_and_where_to_put_it(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        find_file(WANTED, folders=[tmp_path / "models"])
    for part in (
        WANTED.name,
        "1.97 GB",
        "licence: MIT",
        "https://huggingface.co/someone/judge",
        str(tmp_path / "models" / "judge"),
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "/etc/passwd", "C:\\x", "\\\\host\\x", "a\\..\\x", "..", "", " "]
)
def test_paths_of_workflows_do_not_leave_the_folders(name, tmp_path):
    with pytest.raises(ValueError, match="must be a path inside the folders"):
        confined(name, [tmp_path])


def test_paths_of_workflows_are_found_in_any_folder(tmp_path):
    wanted = put(tmp_path / "b" / "judge" / "x.safetensors")
    assert confined("judge/x.safetensors", [tmp_path / "a", tmp_path / "b"]) == wanted
    with pytest.raises(FileNotFoundError, match="is in none of"):
        confined("judge/y.safetensors", [tmp_path / "a", tmp_path / "b"])


def test_digests_are_sha256_and_of_large_files_a_sample_of_it(tmp_path, monkeypatch):
    path = tmp_path / "x.bin"
    path.write_bytes(os.urandom(5000))
    assert digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(files, "_HASHED_WHOLE", 4000)
    monkeypatch.setattr(files, "_SAMPLE_BYTES", 16)
    before = digest(path)
    assert before.startswith("sampled-") and digest(path) == before
    body = bytearray(path.read_bytes())
    for place in (0, len(body) - 1):
        changed = body.copy()
        changed[place] ^= 1
        path.write_bytes(changed)
        assert digest(path) != before
    path.write_bytes(body + b"x")
    assert digest(path) != before


# Reading


def save_as(kind, path, tensors=TENSORS):
    if kind == "safetensors":
        save_file(tensors, path.with_suffix(".safetensors"))
        return path.with_suffix(".safetensors")
    content = {"state_dict": tensors, "epoch": 3} if kind == "nested" else tensors
    torch.save(content, path, _use_new_zipfile_serialization=kind != "legacy")
    return path


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy", "nested"])
def test_tensors_are_read_from_every_kind_of_file(kind, tmp_path):
    found = read_weights(save_as(kind, tmp_path / "weights.pt"))
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
def test_a_file_that_would_run_code_is_refused_and_does_nothing(suffix, zipped, tmp_path):
    trap, path = tmp_path / "trapped", tmp_path / f"evil{suffix}"
    torch.save({"weight": torch.ones(2), "more": Evil(trap)}, path,
               _use_new_zipfile_serialization=zipped)  # fmt: skip
    with pytest.raises(ValueError, match="refused"):
        read_weights(path)
    assert not trap.exists()
    torch.load(path, weights_only=False)  # the trap is real
    assert trap.exists()


def test_a_bare_pickle_that_would_run_code_is_refused_and_does_nothing(tmp_path):
    trap, path = tmp_path / "trapped", tmp_path / "evil.bin"
    path.write_bytes(pickle.dumps(Evil(trap)))
    with pytest.raises(ValueError, match="refused"):
        read_weights(path)
    assert not trap.exists()


@pytest.mark.parametrize(
    "content",
    [
        {"weight": torch.ones(2), "step": np.float64(3.0)},
        {"weight": torch.ones(2), "args": argparse.Namespace(lr=1.0)},
    ],
)
def test_more_than_tensors_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="more than tensors"):
        read_weights(tmp_path / "x.pt")


@pytest.mark.parametrize("content", [torch.ones(2), [torch.ones(2)], {"a": 1}, {3: torch.ones(1)}])
def test_content_that_is_not_tensors_by_name_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="must hold tensors by name"):
        read_weights(tmp_path / "x.pt")


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_damaged_files_are_refused(kind, kept, tmp_path):
    path = save_as(kind, tmp_path / "weights.pt")
    body = path.read_bytes()
    path.write_bytes(body[: int(kept * len(body))])
    with pytest.raises(ValueError, match="damaged|no whole"):
        read_weights(path)


def test_other_endings_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"ending '.ckpt'; it must be one of .safetensors, .pt"):
        read_weights(put(tmp_path / "x.ckpt"))


def test_a_zip_that_is_no_checkpoint_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("a.txt", "x")
    with pytest.raises(ValueError, match="refused"):
        read_weights(tmp_path / "x.pt")


# Loading


class Judge(nn.Module):
    """A layer and a table of positions, as text towers have."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("position_ids", torch.arange(5).expand((1, -1)), persistent=False)


FITTING = {f"layer.{name}": tensor for name, tensor in TENSORS.items()}


def test_a_network_is_built_without_memory_and_filled_from_the_file():
    network = build_empty(Judge)
    assert network.layer.weight.is_meta
    strict_load(network, FITTING, "judge.pt")
    assert network.layer.weight.data_ptr() == FITTING["layer.weight"].data_ptr()
    assert network.position_ids.tolist() == [[0, 1, 2, 3, 4]]
    assert not network.training and not any(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer.bias": None}, "judge.pt does not fit: it lacks layer.bias"),
        ({"more": torch.ones(1)}, "it has unknown more"),
        ({"layer.bias": torch.ones(3)}, r"layer.bias has shape \(3,\), not \(2,\)"),
        ({"layer.bias": torch.ones(1)}, r"layer.bias has shape \(1,\), not \(2,\)"),
    ],
)
def test_names_and_shapes_must_fit_exactly(changes, message):
    tensors = {k: t for k, t in {**FITTING, **changes}.items() if t is not None}
    network = build_empty(Judge)
    with pytest.raises(ValueError, match=message):
        strict_load(network, tensors, "judge.pt")
    assert network.layer.weight.is_meta


def test_a_buffer_without_values_is_a_bug_and_not_a_number():
    class Other(Judge):
        def __init__(self):
            super().__init__()
            self.register_buffer("table", torch.ones(2), persistent=False)

    with pytest.raises(RuntimeError, match="table have no values"):
        strict_load(build_empty(Other), FITTING, "judge.pt")
