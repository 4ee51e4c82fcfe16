"""ImageReward on a tiny network: preprocessing, prompts and hostile inputs."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_rewards import pictures, write_bert_tokenizer

from chunk_grpo_core.rewards import load_reward
from chunk_grpo_core.rewards.files import read_weights
from chunk_grpo_core.rewards.networks import imagereward
from chunk_grpo_core.rewards.networks.imagereward import WEIGHTS, BlipShape, blip_scores
from chunk_grpo_core.rewards.networks.network import NetworkReward
from chunk_grpo_core.rewards.networks.tokens import bert_tokens
from chunk_grpo_core.rewards.pixels import CLIP_MEAN, CLIP_STD, to_pil

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "rewards"
SHAPE = BlipShape(
    vision=(64, 2, 4, 256), text=(48, 2, 4, 96), image=32, vocabulary=120, positions=64
)
IMAGES, PROMPTS = pictures(3, 45, 45), ("a photo of a cat", "red dogs", "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models")
    assert write_bert_tokenizer(path / "imagereward") <= SHAPE.vocabulary
    torch.save(read_weights(GOLDEN / "imagereward_weights.safetensors"),
               path / "imagereward" / WEIGHTS.name)  # fmt: skip
    return path


@pytest.fixture
def load(folder, monkeypatch):
    """Give a function that loads the tiny reward."""
    monkeypatch.setattr(imagereward, "BLIP_LARGE", SHAPE)
    return lambda **settings: load_reward("imagereward", folders=[folder], **settings)


def test_a_score_is_that_of_the_picture_and_the_prompt(load, folder):
    reward = load()
    squares = []
    for picture in to_pil(IMAGES):  # square ones: no crop, a plain resize
        levels = torch.tensor(list(picture.resize((32, 32), Image.BICUBIC).tobytes()))
        plain = levels.reshape(32, 32, 3).permute(2, 0, 1) / 255
        squares.append((plain - torch.tensor(CLIP_MEAN)[:, None, None])
                       / torch.tensor(CLIP_STD)[:, None, None])  # fmt: skip
    ids, mask = bert_tokens([folder / "imagereward"], length=35)(PROMPTS)
    expected = blip_scores(reward.network, torch.stack(squares), ids, mask)
    found = reward.score(IMAGES, PROMPTS).values
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert found.std() > 1e-3


def test_neither_order_nor_batch_size_changes_a_score(load):
    together = load().score(IMAGES, PROMPTS).values
    small = load(batch_size=1)
    found = small.score(IMAGES.flip(0), PROMPTS[::-1]).values.flip(0)
    torch.testing.assert_close(found, together, rtol=0, atol=1e-5)


def test_autocast_around_it_changes_no_score(load):
    reward = load()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = reward.score(IMAGES, PROMPTS).values
    assert torch.equal(inside, reward.score(IMAGES, PROMPTS).values)


def test_a_picture_that_is_not_finite_has_no_score_and_spoils_no_other(load):
    images = IMAGES.clone()
    images[1, 2, 3, 0] = math.nan
    batch = load().score(images, PROMPTS)
    assert batch.valid.tolist() == [True, False, True]
    expected = load().score(IMAGES, PROMPTS).values[[0, 2]]
    torch.testing.assert_close(batch.values[[0, 2]], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("prompt", ["", "cat " * 500, "x" * 2000, "\U0001f431", "[SEP] cat [CLS]"])
@pytest.mark.parametrize("size", [(1, 1), (3, 150)])
def test_any_prompt_and_any_picture_has_a_score(load, prompt, size):
    assert load().score(torch.rand(1, *size, 3), [prompt]).valid.all()


def test_a_special_token_in_a_prompt_does_not_end_it(load):
    reward = load()
    first, second = (
        reward.score(IMAGES[:1], [f"cat [SEP] {rest}"]).values for rest in ("red", "blue")
    )
    assert first != second


def test_it_tells_its_network_and_what_scores_depend_on(load):
    reward = load()
    assert isinstance(reward, NetworkReward)
    assert reward.fingerprint.keys() == {"weights", "pixels", "tokenizer", "dtype"}
    half = load(dtype="bfloat16")
    assert half.fingerprint != reward.fingerprint
    assert half.network["head"].weight.dtype == torch.float32  # sums stay exact
    assert half.network["text"].dtype == half.network["vision"].dtype == torch.bfloat16


def test_a_tokenizer_with_too_many_entries_is_refused(load, folder, tmp_path):
    lines = (folder / "imagereward" / "vocab.txt").read_text()
    more = "".join(f"more{i}\n" for i in range(SHAPE.vocabulary))
    (tmp_path / "vocab.txt").write_text(lines + more)
    (tmp_path / WEIGHTS.name).write_bytes((folder / "imagereward" / WEIGHTS.name).read_bytes())
    with pytest.raises(ValueError, match="uncased BERT"):
        load(path=tmp_path)
