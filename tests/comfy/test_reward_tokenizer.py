"""The tokenizer that ComfyUI brings is the one that CLIP-like rewards need."""

from __future__ import annotations

from chunk_grpo_core.rewards.networks.tokens import clip_tokens


def test_comfyuis_tokenizer_gives_clips_own_ids(comfy_tree):
    tokens = clip_tokens([comfy_tree / "comfy" / "sd1_tokenizer"])
    ids, mask = tokens(["a photo of a cat", ""])
    assert (tokens.size, tokens.start, tokens.end) == (49408, 49406, 49407)
    assert ids[0, :7].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert mask.sum(1).tolist() == [7, 2]
