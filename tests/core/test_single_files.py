"""A transformer from one file is read whole, or refused by what is wrong with it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from environment import package
from native_names import NATIVE
from pipeline_folders import PIPELINES, skip_where_diffusers_is_old, small_pipeline
from safetensors.torch import load_file, save_file

from chunk_grpo_core.models.pipelines.parts import check_source, read_transformer
from chunk_grpo_core.models.registry import FAMILIES

PREFIX = "model.diffusion_model."
BLOCK = re.compile(r"((?:^|\.)\w*(?:blocks|layers|refiner)\.)(\d+)\.")


class Files:
    """The transformer of a small pipeline in its folder, and files of it."""

    def __init__(self, family: str, place: Path) -> None:
        self.entry, self.place = FAMILIES[family].load.args[0], place
        self.folder = place / "pipeline"
        transformer = small_pipeline(family).transformer
        transformer.save_pretrained(self.folder / "transformer")
        self.kind = type(transformer)
        self.wanted = dict(transformer.state_dict())
        names = NATIVE.get(family, dict)(dict(self.wanted))
        self.state = {name.removeprefix(PREFIX): tensor for name, tensor in names.items()}

    def read(self, state: dict[str, torch.Tensor] | None, weights: str = "float32") -> Any:
        """A transformer from a file of these tensors, or from the folder."""
        source = self.folder / "transformer"
        if state is not None:
            source = self.place / "one.safetensors"
            save_file({name: tensor.clone() for name, tensor in state.items()}, source)
        return read_transformer(self.kind, source, self.folder, weights, self.entry.blocks)

    def check(self, state: dict[str, torch.Tensor]) -> None:
        """Look at the header of a file of these tensors."""
        source = self.place / "one.safetensors"
        save_file({name: tensor.clone() for name, tensor in state.items()}, source)
        check_source(self.kind, source, "transformer", self.folder, "float32", self.entry.blocks)

    def another_block(self, names: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The weights of the first blocks once more, as those of the blocks behind the last."""
        places = [(name, BLOCK.search(name)) for name in names]
        last = max(int(place[2]) for _, place in places if place)
        return {
            BLOCK.sub(rf"\g<1>{last + 1}.", name, count=1): names[name]
            for name, place in places
            if place and place[2] == "0"
        }

    def holds_the_weights(self, model: Any) -> bool:
        found = model.state_dict()
        return found.keys() == self.wanted.keys() and all(
            torch.equal(found[name], tensor) for name, tensor in self.wanted.items()
        )


@pytest.fixture(scope="module", params=PIPELINES)
def files(request, tmp_path_factory):
    package("accelerate")
    skip_where_diffusers_is_old(request.param)
    return Files(request.param, tmp_path_factory.mktemp(request.param))


def refused(files: Files, state: dict[str, torch.Tensor] | None, *words: str) -> None:
    if state is not None:  # by its header, before text is encoded
        with pytest.raises(ValueError) as early:
            files.check(state)
    with pytest.raises(ValueError) as caught:
        files.read(state)
    assert state is None or str(early.value) == str(caught.value)
    assert all(word in str(caught.value) for word in words), caught.value
    assert len(str(caught.value).splitlines()) == 1


def in_a_block(files: Files) -> str:
    return next(n for n, t in files.state.items() if BLOCK.search(n) and t.ndim == 2)


def test_a_whole_file_is_read_with_and_without_a_prefix(files):
    assert files.holds_the_weights(files.read(files.state))
    whole = {f"{PREFIX}{name}": t for name, t in files.state.items()}
    whole["vae.decoder.conv_in.weight"] = torch.zeros(1)
    assert files.holds_the_weights(files.read(whole))
    for state in (files.state, whole):
        files.check(state)


def test_what_is_missing_is_named(files):
    name = in_a_block(files)
    rest = {key: tensor for key, tensor in files.state.items() if key != name}
    refused(files, rest, "model.transformer: ", "one.safetensors", "it lacks ", "damaged")
    refused(files, {"a.weight": torch.zeros(1)}, "one.safetensors", "another model")


def test_another_shape_is_named_with_both(files):
    name = in_a_block(files)
    rows = len(files.state[name])
    shorter = {**files.state, name: files.state[name][: rows // 2]}
    refused(files, shorter, "one.safetensors", "another model")


def test_blocks_that_the_model_has_not_are_refused(files):
    """Otherwise a part of a larger model would be trained, without a word."""
    larger = files.state | files.another_block(files.state)
    refused(files, larger, "one.safetensors", "another model")
    folder = files.folder / "transformer"
    file = folder / "diffusion_pytorch_model.safetensors"
    stored = load_file(file)
    save_file({k: t.clone() for k, t in (stored | files.another_block(stored)).items()}, file)
    try:
        refused(files, None, str(folder), "for which this model has no place")
    finally:
        save_file(stored, file)
    assert files.holds_the_weights(files.read(None))


def test_what_stands_beside_the_model_is_left_out_and_said(files, caplog):
    marked = {**files.state, "mark_of_a_program": torch.zeros(1)}
    assert files.holds_the_weights(files.read(marked))
    if files.entry.transformer != "SD3Transformer2DModel":  # diffusers takes what it knows
        assert "1 tensors of" in caplog.text and "mark_of_a_program" in caplog.text


def test_a_file_of_another_family_is_refused(files):
    other = "sd3" if files.entry.transformer != "SD3Transformer2DModel" else "chroma"
    state = dict(small_pipeline(other).transformer.state_dict())
    refused(files, NATIVE.get(other, dict)(state), "another model")


def test_a_damaged_file_is_named_once(files, tmp_path):
    file = tmp_path / "half.safetensors"
    save_file({"a": torch.zeros(64)}, file)
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(ValueError) as caught:
        read_transformer(files.kind, file, files.folder, "bf16", files.entry.blocks)
    assert str(caught.value).startswith(f"model.transformer: {file} is no complete safetensors")
    assert str(caught.value).count(str(file)) == 1
