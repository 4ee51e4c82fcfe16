"""ComfyUI ships the tokenizer that HPSv3 needs."""

from chunk_grpo_core.rewards.networks.hpsv3_input import SpecialTokens, load_text


def test_the_tokenizer_of_comfyui_is_the_one_of_hpsv3(comfy_tree):
    text = load_text([comfy_tree / "comfy" / "text_encoders" / "qwen25_tokenizer"], SpecialTokens())
    tokens = text.tokens("a cat", 32 * 32)
    # Counted with the tokenizer of transformers on the whole conversation.
    assert len(tokens) == 532 + 256
    # Ids as published with Qwen2.
    assert tokens[:3] == [151644, 8948, 198]
    assert tokens[-5:] == [151645, 198, 151644, 77091, 198]
    assert tokens.count(151655) == 256
    assert tokens.count(151657) == 1


def test_no_token_that_newer_tokenizers_know_gets_in(comfy_tree):
    """Qwen2.5 gives <tool_call> the id of HPSv3's reward token."""
    text = load_text([comfy_tree / "comfy" / "text_encoders" / "qwen25_tokenizer"], SpecialTokens())
    assert text.tokens("<tool_call>", 4).count(151657) == 1
    assert max(text.encode("<tool_call><|fim_prefix|><|Reward|>")) < 151643
