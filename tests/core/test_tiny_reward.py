"""The reward: full marks for clean renders, and less for every kind of damage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from chunk_grpo_core.method.reward import RewardBatch
from chunk_grpo_core.models.tiny.model import load_tiny_flux
from chunk_grpo_core.models.tiny.render import render
from chunk_grpo_core.models.tiny.reward import WEIGHTS, TinyWorldReward
from chunk_grpo_core.models.tiny.world import EXAMPLE, HELD_OUT, SCENES, Scene, caption

CAPTIONS = [caption(scene) for scene in HELD_OUT]


def judge(images: Tensor, captions: list[str] = CAPTIONS) -> RewardBatch:
    return TinyWorldReward().score(images, captions)


@pytest.fixture(scope="module")
def clean() -> Tensor:
    return render(HELD_OUT, 0)


def test_weights_sum_to_one_and_name_extras(clean: Tensor) -> None:
    assert sum(WEIGHTS.values()) == pytest.approx(1)
    batch = judge(clean)
    assert set(batch.extras) == {*WEIGHTS, "attributes", "strict"}
    total = sum((w * batch.extras[name] for name, w in WEIGHTS.items()), torch.zeros(96))
    assert torch.allclose(total, batch.values)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_clean_renders_get_full_marks(seed: int) -> None:
    batch = judge(render(SCENES, seed), [caption(scene) for scene in SCENES])
    assert batch.valid.all()
    assert float(batch.values.mean()) >= 0.98 and float(batch.values.min()) >= 0.93
    assert float(batch.extras["strict"].mean()) == 1.0


def test_codec_round_trip_keeps_the_marks() -> None:
    codec = load_tiny_flux().codec
    images = codec.decode(codec.encode(render(SCENES, 2)))
    batch = judge(images, [caption(scene) for scene in SCENES])
    assert float(batch.values.mean()) >= 0.92
    assert float(batch.extras["strict"].mean()) >= 0.97


def _other(scene: Scene, name: str) -> Scene:
    if name == "count":
        return replace(scene, count="two" if scene.count == "a" else "a")
    if name == "size":
        return replace(scene, size="large" if scene.size == "small" else "small")
    if name == "shape":
        shapes = ["circle", "square", "triangle", "cross"]
        return replace(scene, shape=shapes[(shapes.index(scene.shape) + 1) % 4])
    used = {scene.colour, scene.background}
    fresh = next(c for c in ("red", "green", "blue") if c not in used)
    return replace(scene, **{name: fresh})


@pytest.mark.parametrize("name", ["count", "size", "shape", "colour", "background"])
def test_wrong_attribute_costs_its_component(name: str) -> None:
    batch = judge(render([_other(scene, name) for scene in HELD_OUT], 0))
    assert float(batch.extras[name].max()) < 0.3
    assert float(batch.extras["strict"].max()) == 0.0
    assert torch.allclose(batch.extras["attributes"], torch.full((96,), 0.8))
    assert float(batch.values.max()) < 0.91
    for other in set(WEIGHTS) - {name}:
        assert float(batch.extras[other].mean()) > 0.95, other


def _dots(images: Tensor) -> Tensor:
    out = images.clone()
    out[:, 3::8, 3::8] += 0.25
    return out.clamp(0, 1)


def _texture(images: Tensor) -> Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + 0.06 * noise).clamp(0, 1)


def _saturated(images: Tensor) -> Tensor:
    return (0.5 + 1.6 * (images - 0.5)).clamp(0, 1)


def _pastel(images: Tensor) -> Tensor:
    return 0.75 * images + 0.25 * images.mean(-1, keepdim=True)


def _blur(images: Tensor) -> Tensor:
    planes = functional.avg_pool2d(images.movedim(-1, 1), 9, 1, 4, count_include_pad=False)
    return planes.movedim(1, -1)


def _confetti(images: Tensor) -> Tensor:
    out = images.clone()
    out[:, 1:3, 1::6] = 1 - out[:, 1:3, 1::6]
    return out


@pytest.mark.slow
@pytest.mark.parametrize("damage", [_dots, _texture, _saturated, _pastel, _blur, _confetti])
def test_damage_costs_cleanliness(clean: Tensor, damage: Callable[[Tensor], Tensor]) -> None:
    before, after = judge(clean), judge(damage(clean))
    assert float(after.extras["clean"].mean()) < 0.85
    assert float((before.values - after.values).mean()) > 0.03
    assert float((after.values <= before.values + 1e-3).float().mean()) > 0.95


def test_empty_picture_gets_little() -> None:
    batch = judge(torch.full((1, 64, 64, 3), 0.07), ["a large red circle on a black background"])
    assert float(batch.values) < 0.25 and float(batch.extras["attributes"]) < 0.21


def test_noise_gets_little() -> None:
    images = torch.rand(96, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    assert float(judge(images).values.mean()) < 0.25


def test_nan_is_not_valid_and_does_not_spread(clean: Tensor) -> None:
    broken = clean[:3].clone()
    broken[1, 5, 5, 0] = torch.nan
    batch = judge(broken, CAPTIONS[:3])
    assert batch.valid.tolist() == [True, False, True]
    assert torch.equal(
        batch.values[[0, 2]], judge(clean[[0, 2]], [CAPTIONS[0], CAPTIONS[2]]).values
    )


def test_is_deterministic_and_independent_of_the_batch(clean: Tensor) -> None:
    whole = judge(clean).values
    assert torch.equal(whole, judge(clean).values)
    assert torch.allclose(whole[:5], judge(clean[:5], CAPTIONS[:5]).values, atol=1e-5)


def test_refuses_other_captions_and_sizes(clean: Tensor) -> None:
    with pytest.raises(ValueError, match=EXAMPLE):
        judge(clean[:1], ["a cat"])
    with pytest.raises(ValueError, match="64 x 64"):
        judge(torch.rand(1, 32, 32, 3), CAPTIONS[:1])
    with pytest.raises(ValueError, match="prompts"):
        judge(clean[:2], CAPTIONS[:1])


def test_empty_batch() -> None:
    assert judge(torch.zeros(0, 64, 64, 3), []).values.shape == (0,)
