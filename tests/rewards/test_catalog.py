"""The catalogue and its page say what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from each import failures_of_each

from chunk_grpo_core.rewards import REWARDS
from chunk_grpo_core.rewards.catalog import CATALOG, files_of
from chunk_grpo_core.rewards.files import build_empty
from chunk_grpo_core.rewards.networks.clip import CLIP_H, CLIP_L, clip_config
from tools import rewards_page

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "rewards.md"


def test_the_page_is_up_to_date():
    text = PAGE.read_text(encoding="utf-8")
    assert rewards_page.page(text) == text, "run: python tools/rewards_page.py"


def test_every_reward_is_in_the_catalogue_with_evidence_that_exists():
    assert failures_of_each(check_evidence, REWARDS) == {}


def check_evidence(name):
    entry = CATALOG[name]
    assert entry.measures and entry.range
    named = re.findall(r"`((?:tests/\w+/)?test_\w+\.py)`", entry.evidence)
    assert named, "name the tests"
    for path in named:
        assert (ROOT / path).is_file() or (ROOT / "tests" / "rewards" / path).is_file(), path


def test_files_have_sizes_licences_and_addresses():
    for entry in CATALOG.values():
        for file in entry.files:
            assert file.bytes > 0 and file.licence and file.page.startswith("https://")
            assert re.fullmatch(r"[\w.-]+/[\w.-]+", file.repo)
            assert file.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", file.sha256)


def test_rewards_without_files_have_nothing_to_fetch():
    with pytest.raises(ValueError, match="'tiny_world'; there are files to fetch for clipscore"):
        files_of("tiny_world")
    with pytest.raises(ValueError, match="'nothing'"):
        files_of("nothing")


@pytest.mark.parametrize(
    ("shape", "name", "bytes_each"),
    [(CLIP_L, "clipscore", 4), (CLIP_H, "pickscore", 4), (CLIP_H, "hpsv2", 2)],
)
def test_the_sizes_of_the_files_are_those_of_the_networks(shape, name, bytes_each):
    from transformers import CLIPModel

    network = build_empty(lambda: CLIPModel(clip_config(shape)))
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count * bytes_each == pytest.approx(CATALOG[name].files[0].bytes, rel=0.005)


def test_the_size_of_the_imagereward_file_is_that_of_its_network():
    from transformers import BlipTextModel, BlipVisionModel

    from chunk_grpo_core.rewards.networks.imagereward import BLIP_LARGE, tower_configs

    vision, text = tower_configs(BLIP_LARGE)
    towers = (
        build_empty(lambda: BlipVisionModel(vision)),
        build_empty(lambda: BlipTextModel(text, add_pooling_layer=False)),
    )
    count = sum(p.numel() for tower in towers for p in tower.parameters())
    assert 4 * count == pytest.approx(CATALOG["imagereward"].files[0].bytes, rel=0.01)
