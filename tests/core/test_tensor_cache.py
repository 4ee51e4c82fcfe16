"""What the cache gives back is what it was given, or nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chunk_grpo_core.models.tensor_cache import TensorCache, digest, pack, unpack

DTYPES = (
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float8_e4m3fn,
    torch.int64,
    torch.bool,
)


@st.composite
def tensors(draw):
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    values = torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 9))))
    tensor = (4 * values).to(draw(st.sampled_from(DTYPES)))
    return tensor.transpose(0, -1) if shape and draw(st.booleans()) else tensor


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
TREES = st.recursive(
    PLAIN | tensors(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


def equal(a, b):
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        raw = [x.contiguous().reshape(-1).view(torch.uint8) for x in (a, b)]
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*raw)
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return repr(a) == repr(b)  # tells 0.0 from -0.0, and finds nan equal to itself


@given(TREES)
@settings(deadline=None)
def test_trees_come_back_bit_for_bit(tmp_path_factory, tree):
    assert equal(unpack(*pack(tree)), tree)
    cache = TensorCache(tmp_path_factory.mktemp("cache"), 10**6)
    assert cache.store("key", tree)
    found = TensorCache(cache.folder, 10**6).load("key")
    assert equal(found, tree)
    assert digest(found) == digest(tree)


def test_what_shares_memory_or_is_a_view_is_stored_too(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    cache = TensorCache(tmp_path, 10**6)
    cache.store("key", [base, base.T, base[1:], base])
    assert equal(cache.load("key"), [base, base.T, base[1:], base])


@pytest.mark.parametrize(
    "tree",
    [
        {"hooks": object()},
        [{1: 2}],
        {"a": {2, 3}},
        torch.nn.Parameter(torch.ones(2)),
        torch.ones(2).to_sparse(),
        [torch.float32],
        type("Options", (dict,), {})(a=1),
    ],
)
def test_what_would_not_come_back_the_same_is_refused(tree, tmp_path):
    for use in (pack, digest, lambda tree: TensorCache(tmp_path, 10**6).store("key", tree)):
        with pytest.raises(TypeError):
            use(tree)
    assert list(tmp_path.iterdir()) == []


@given(TREES, TREES)
@settings(deadline=None)
def test_digests_differ_where_trees_do(a, b):
    assert (digest(a) == digest(b)) == equal(a, b)


def test_a_single_bit_a_type_or_a_shape_changes_the_digest():
    zeros = torch.zeros(2, 2)
    others = [-zeros, zeros.to(torch.int32), zeros.reshape(4), zeros.reshape(1, 4), [zeros]]
    assert len({digest(tree) for tree in (zeros, *others)}) == 6


def sized(cache, keys):
    return {key for key in keys if cache.load(key) is not None}


def test_the_folder_never_outgrows_its_limit_and_the_oldest_go_first(tmp_path):
    block = torch.zeros(1000)
    TensorCache(tmp_path, 10**6).store("probe", block)
    size = (tmp_path / "probe.safetensors").stat().st_size
    (tmp_path / "probe.safetensors").unlink()

    limit = 3 * size + 10
    first = TensorCache(tmp_path, limit)
    assert [first.store(key, block) for key in "abc"] == [True] * 3
    for age, key in zip((30, 20, 10), "bca", strict=True):
        file = tmp_path / f"{key}.safetensors"
        os.utime(file, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns - age * 10**9))
    second = TensorCache(tmp_path, limit)
    assert second.load("b") is not None  # the oldest, but used now
    assert second.store("d", block)
    assert sized(TensorCache(tmp_path, limit), "abcd") == {"a", "b", "d"}

    third = TensorCache(tmp_path, limit)
    written = [third.store(key, block) for key in "uvwxyz"]
    assert written == [True] * 3 + [False] * 3  # a large set does not push itself out
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= limit
    assert sized(TensorCache(tmp_path, limit), "abduvwxyz") == {"u", "v", "w"}


def test_a_damaged_file_is_no_hit_and_is_written_anew(tmp_path, caplog):
    cache = TensorCache(tmp_path, 10**6)
    cache.store("key", [torch.ones(100)])
    file = tmp_path / "key.safetensors"
    body = file.read_bytes()
    for damaged in (
        b"",
        b"\x00" * 50,
        body[:30],
        body[:-4],
        body.replace(b"structure", b"stricture"),
    ):
        file.write_bytes(damaged)
        caplog.clear()
        assert TensorCache(tmp_path, 10**6).load("key") is None
        assert "is damaged" in caplog.text
    assert cache.store("key", [torch.ones(100)])
    assert equal(cache.load("key"), [torch.ones(100)])


def test_a_write_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    cache = TensorCache(tmp_path, 10**6)

    def failing(*_):
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(OSError, match="no space"):
        cache.store("key", [torch.ones(3)])
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_killed_process_are_removed_first(tmp_path):
    (tmp_path / "key.safetensors.x.partial").write_bytes(b"0" * 5000)
    cache = TensorCache(tmp_path, 6000)
    assert cache.store("new", torch.zeros(500))
    assert [file.name for file in tmp_path.iterdir()] == ["new.safetensors"]
