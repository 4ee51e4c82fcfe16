"""The noise that ComfyUI draws for a batch, and what this pack draws again from seed and place."""

from __future__ import annotations

import pytest
import torch

FLUX = (16, 8, 12)
VIDEO = (16, 3, 5, 7)
FLUX_2 = (128, 3, 5)


@pytest.mark.parametrize("shape", [FLUX, VIDEO, FLUX_2], ids=["flux", "video", "flux-2"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_each_picture_of_a_batch_began_with_the_noise_that_its_seed_and_place_give(
    lab, shape, count
):
    """Pick Pictures writes down that it can be drawn again."""
    from comfy.sample import prepare_noise

    noise_of_batch = lab.module("chunk_grpo_core.method.noise").noise_of_batch
    for seed in (0, 7, 2**64 - 1):
        batch = prepare_noise(torch.zeros(count, *shape), seed)
        for index in range(count):
            assert torch.equal(noise_of_batch(seed, index, shape), batch[index])


def test_noise_that_the_size_of_the_batch_changes_is_not_drawn_again(lab):
    """Torch draws the last 16 numbers of all anew where they do not end with a block of 16."""
    from comfy.sample import prepare_noise

    noise = lab.module("chunk_grpo_core.method.noise")
    shape = (4, 9, 9)
    in_five, in_three = (prepare_noise(torch.zeros(count, *shape), 7)[2] for count in (5, 3))
    assert not torch.equal(in_five, in_three)
    assert noise.noise_of_batch(7, 2, shape) is None
