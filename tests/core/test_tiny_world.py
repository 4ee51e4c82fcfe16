"""Scenes, captions, split, words and pictures of the tiny world."""

from __future__ import annotations

from dataclasses import astuple

import pytest
import torch

from chunk_grpo_core.models.tiny.render import IMAGE_SIZE, SIZE_LIMIT, palette, render
from chunk_grpo_core.models.tiny.text import TEXT_LENGTH, VOCABULARY, TinyTextEncoder, tokenize
from chunk_grpo_core.models.tiny.world import (
    ATTRIBUTES,
    EXAMPLE,
    HELD_OUT,
    SCENES,
    TRAIN,
    Scene,
    caption,
    indices_of,
    parse,
)


def test_split_is_complete_and_disjoint() -> None:
    assert len(SCENES) == 480 and len(TRAIN) == 384 and len(HELD_OUT) == 96
    assert set(TRAIN) | set(HELD_OUT) == set(SCENES)


def test_split_is_fixed() -> None:
    # The committed asset was trained on exactly this split.
    assert caption(HELD_OUT[0]) == "a large red cross on a blue background"


def test_captions_round_trip_through_parse_and_indices() -> None:
    assert [parse(caption(scene)) for scene in SCENES] == list(SCENES)
    values = [list(values) for values in ATTRIBUTES.values()]
    for scene, row in zip(SCENES, indices_of(SCENES).tolist(), strict=True):
        assert astuple(scene) == tuple(v[i] for v, i in zip(values, row, strict=True))
    assert parse("A Small red CIRCLE, on a blue background.").shape == "circle"
    assert caption(parse(EXAMPLE)) == EXAMPLE


@pytest.mark.parametrize(
    "text",
    ["", "a cat", "a small red circles on a blue background", EXAMPLE.replace("blue", "red")],
)
def test_parse_refuses_other_texts_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=EXAMPLE):
        parse(text)


def test_scene_refuses_unknown_values() -> None:
    with pytest.raises(ValueError, match="purple"):
        Scene("a", "small", "purple", "circle", "red")
    with pytest.raises(ValueError, match="two colours"):
        Scene("a", "small", "red", "circle", "red")


def test_render_is_seeded_and_in_range() -> None:
    first, again, other = (render(HELD_OUT[:8], seed) for seed in (1, 1, 2))
    assert first.shape == (8, IMAGE_SIZE, IMAGE_SIZE, 3) and first.dtype == torch.float32
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert 0 <= float(first.min()) and float(first.max()) <= 1


def test_render_has_sharp_edges_and_pure_colours() -> None:
    images = render(SCENES, 0).flatten(0, 2)
    off = torch.cdist(images[::7], palette()).amin(1)
    assert float((off > 1e-3).float().mean()) < 0.05


def test_small_and_large_are_far_apart() -> None:
    for count in ("a", "two"):
        for size in ("small", "large"):
            image = render([Scene(count, size, "white", "square", "black")], 3)[0]
            radius = (
                float((image[:, :32, 0] if count == "two" else image[..., 0]).amax(0).gt(0.5).sum())
                / 2
            )
            assert (radius > SIZE_LIMIT + 1.5) if size == "large" else (radius < SIZE_LIMIT - 1.5)


def test_tokenize_pads_and_knows_every_caption() -> None:
    tokens = tokenize([caption(scene) for scene in SCENES])
    assert tokens.shape == (480, TEXT_LENGTH) and len(tokens.unique(dim=0)) == 480
    assert int(tokens.max()) < len(VOCABULARY)
    assert tokenize([""]).tolist() == [[0] * TEXT_LENGTH]


def test_tokenize_names_the_prompt_the_unknown_word_and_known_ones() -> None:
    with pytest.raises(ValueError, match="prompt 'a small purple circle' .* 'purple'.*triangle"):
        tokenize(["a small purple circle"])
    with pytest.raises(ValueError, match="the prompt 'red .* has 9 words; at most 8"):
        tokenize(["red " * 9])


def test_text_encoder_shapes_and_word_order() -> None:
    features, pooled = TinyTextEncoder().encode(["red on blue", "blue on red", ""])
    assert features.shape == (3, TEXT_LENGTH, 96) and pooled.shape == (3, 64)
    assert not torch.allclose(pooled[0], pooled[1])
