"""The numbers of colours and edges: what they say, and what they do not depend on."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from chunk_grpo_core.rewards.taste.statistics import COUNT, statistics

BLOCKS = {
    "moments": 14, "luma": 8, "chroma": 6, "hues": 12, "layout": 48, "edges": 9, "directions": 8,
    "laplacian": 3, "likeness": 2, "whole": 7,
}  # fmt: skip


def named(picture):
    parts = statistics(picture[None])[0].split(list(BLOCKS.values()))
    return dict(zip(BLOCKS, parts, strict=True))


def waves(size):
    """A smooth picture, drawn at any size."""
    y, x = torch.meshgrid(*[(torch.arange(size) + 0.5) / size] * 2, indexing="ij")
    return torch.stack([0.5 + 0.4 * torch.sin(7 * x), x * y, 0.5 + 0.3 * torch.cos(5 * y)], -1)


def test_there_are_117_finite_numbers_also_of_odd_sizes_and_flat_pictures():
    assert sum(BLOCKS.values()) == COUNT == 117
    for size in ((1, 1), (3, 200), (65, 63)):
        for picture in (torch.rand(*size, 3), torch.zeros(*size, 3), torch.ones(*size, 3)):
            numbers = statistics(picture[None])
            assert numbers.shape == (1, 117) and bool(numbers.isfinite().all())
    assert statistics(torch.zeros(0, 4, 4, 3)).shape == (0, 117)


def test_they_do_not_depend_on_the_batch_to_the_last_bit():
    pictures = torch.rand(37, 40, 56, 3)
    alone = torch.cat([statistics(picture[None]) for picture in pictures])
    assert torch.equal(statistics(pictures), alone)


def test_they_do_not_depend_on_the_size():
    small = (waves(64) * 255).round() / 255
    doubled = functional.interpolate(small.movedim(-1, 0)[None], scale_factor=2)[0].movedim(0, -1)
    assert torch.allclose(statistics(small[None]), statistics(doubled[None]), atol=1e-6)
    other = torch.rand(64, 64, 3)
    distance = (statistics(waves(256)[None]) - statistics(waves(1024)[None])).norm()
    assert distance < 0.01 * (statistics(waves(256)[None]) - statistics(other[None])).norm()


def test_colours_are_what_their_names_say():
    numbers = named(torch.tensor([0.0, 0.0, 1.0]).expand(20, 20, 3))
    means, spreads = numbers["moments"].split(7)
    assert means.tolist() == pytest.approx([0, 0, 1, 0.114, 0.886, -0.114, 1])
    assert spreads.abs().max() < 1e-9
    assert int(numbers["hues"].argmax()) == 8  # 240 of 360 degrees
    assert numbers["luma"].sum() == pytest.approx(1) and numbers["chroma"][-1] == 1
    assert numbers["edges"].abs().max() < 1e-9 and numbers["likeness"].tolist() == [1, 1]
    assert numbers["whole"][2] == 1  # one colour


def test_edges_have_strength_and_direction():
    across = (torch.arange(64) // 8 % 2).float().expand(64, 64)[..., None].expand(64, 64, 3)
    upright, lying = named(across), named(across.transpose(0, 1))
    assert upright["edges"][0] > 0.05
    assert int(upright["directions"].argmax()) == 0 and int(lying["directions"].argmax()) == 4
    assert upright["laplacian"][0] > named(waves(64))["laplacian"][0]


def test_places_are_seen():
    picture = torch.zeros(64, 64, 3)
    picture[:16, 48:] = 1.0
    layout = named(picture)["layout"][:16]
    assert layout.argmax() == 3 and layout.sum() == pytest.approx(1)
    assert named(picture)["likeness"].max() < 0.5
