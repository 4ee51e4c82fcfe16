"""Stacked linear layers as one affine map, and the predictor that ends in it."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from tiny_rewards import clip_shape, pictures, reference_clip, write_clip
from torch import nn

from chunk_grpo_core.rewards import load_reward
from chunk_grpo_core.rewards.networks import aesthetic
from chunk_grpo_core.rewards.networks.aesthetic import HEAD
from chunk_grpo_core.rewards.networks.linear_head import LAYERS, linear_head
from chunk_grpo_core.rewards.networks.network import NetworkReward
from chunk_grpo_core.rewards.pixels import cropped, normalised, to_levels


def stack(width, seed=0):
    """The layers of the file, and the module its authors wrote, dropouts included."""
    torch.manual_seed(seed)
    sizes = (width, 1024, 128, 64, 16, 1)
    module = nn.Module()
    layers = []
    for place, (old, new) in enumerate(zip(sizes, sizes[1:], strict=False)):
        layers += [nn.Linear(old, new), *([nn.Dropout(0.2)] if place < 3 else [])]
    module.layers = nn.Sequential(*layers)
    return module.eval()


def test_the_product_of_the_layers_scores_as_the_layers_do():
    module = stack(24)
    assert sorted(int(k.split(".")[1]) for k in module.state_dict()) == sorted(LAYERS * 2)
    features = torch.randn(50, 24)
    head = linear_head(module.state_dict(), "head.pth")
    torch.testing.assert_close(head(features), module.layers(features), rtol=1e-5, atol=1e-6)
    assert not head.weight.requires_grad


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers.4.bias": None}, "missing or unknown: layers.4.bias"),
        ({"layers.3.bias": torch.ones(1)}, "missing or unknown: layers.3.bias"),
        (
            {"layers.2.weight": torch.ones(128, 7)},
            r"layers.2.weight has shape \(128, 7\), but 1024",
        ),
        (
            {"layers.7.weight": torch.ones(2, 16), "layers.7.bias": torch.ones(2)},
            "gives 2 numbers, not one score",
        ),
    ],
)
def test_other_layers_are_refused(changes, message):
    tensors = {**stack(24).state_dict(), **changes}
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    with pytest.raises(ValueError, match=message):
        linear_head(tensors, "head.pth")


@pytest.fixture
def predictor(tmp_path, monkeypatch):
    """Give the folder of a tiny predictor, its tower and its layers."""
    shape = clip_shape(500)
    network, module = reference_clip(shape), stack(shape.features)
    monkeypatch.setattr(aesthetic, "CLIP_L", shape)
    write_clip(tmp_path / "clipscore", network)
    (tmp_path / "aesthetic").mkdir()
    torch.save(module.state_dict(), tmp_path / "aesthetic" / HEAD.name)
    return tmp_path, network, module


def expected_scores(network, module, images):
    """Scores as the authors compute them, with the whole of CLIP."""
    squares = torch.stack([cropped("round")(levels, 28) for levels in to_levels(images)])
    with torch.no_grad():
        pooled = network.vision_model(pixel_values=normalised(squares)).pooler_output
        features = network.visual_projection(pooled)
        return module.layers(features / features.norm(dim=-1, keepdim=True))[:, 0]


def test_the_predictor_is_the_head_on_normalised_features(predictor):
    folder, network, module = predictor
    images = pictures(3)
    reward = load_reward("aesthetic", folders=[folder])
    batch = reward.score(images, ["a", "", "c"])
    expected = expected_scores(network, module, images)
    torch.testing.assert_close(batch.values, expected, rtol=0, atol=1e-5)
    assert isinstance(reward, NetworkReward) and reward.name == "aesthetic"
    assert reward.fingerprint.keys() == {"weights", "head", "pixels", "dtype"}


def test_a_file_with_the_image_tower_alone_will_do(predictor):
    folder, network, _ = predictor
    whole = load_reward("aesthetic", folders=[folder])
    kept = ("vision_model.", "visual_projection.")
    tower = {k: t.contiguous() for k, t in network.state_dict().items() if k.startswith(kept)}
    save_file(tower, folder / "tower.safetensors")
    alone = load_reward("aesthetic", folders=[folder], path=folder / "tower.safetensors")
    images = pictures(2)
    assert torch.equal(alone.score(images, ["a"] * 2).values, whole.score(images, ["a"] * 2).values)


def test_autocast_around_it_changes_no_score(predictor):
    reward = load_reward("aesthetic", folders=[predictor[0]])
    images = pictures(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = reward.score(images, ["a"] * 2).values
    assert torch.equal(inside, reward.score(images, ["a"] * 2).values)


def test_a_head_for_another_tower_is_refused(predictor):
    folder, *_ = predictor
    torch.save(stack(12).state_dict(), folder / "other.pth")
    with pytest.raises(ValueError, match="reads 12 features, and CLIP-L gives 24"):
        load_reward("aesthetic", folders=[folder], head=folder / "other.pth")
