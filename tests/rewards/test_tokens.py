"""Token ids against the tokenizers of transformers, and what a prompt must not be able to do."""

from __future__ import annotations

import logging

import pytest
import torch
from tiny_rewards import write_bert_tokenizer, write_clip_tokenizer

from chunk_grpo_core.rewards.networks.tokens import bert_tokens, clip_tokens, web_text

ORDINARY = (
    "a photo of a cat",
    "  It's   a RED dog,\n\tnot a blue cat!! ",
    "caf\u00e9 \u2014 na\u00efve 2049",
    "\u732b on 3.5 cats' backs #1 (x_y)",
    "",
)
SPECIAL = ("<|endoftext|>", "<|startoftext|> cat", "cat<|endoftext|>dog", "[SEP] cat [CLS] [MASK]")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizers")
    write_clip_tokenizer(path)
    write_bert_tokenizer(path)
    return path


def theirs(folder, kind, length):
    """Ids and mask of the ordinary prompts as transformers gives them."""
    import transformers

    tokenizer = getattr(transformers, kind).from_pretrained(folder)
    settings = {"padding": "max_length", "truncation": True, "max_length": length}
    found = tokenizer(list(ORDINARY), return_tensors="pt", **settings)
    return found["input_ids"], found["attention_mask"]


@pytest.mark.parametrize("length", [77, 9])
def test_clip_ids_are_those_of_transformers(folder, length):
    ids, mask = clip_tokens([folder], length=length)(ORDINARY)
    expected_ids, expected_mask = theirs(folder, "CLIPTokenizerFast", length)
    assert torch.equal(ids, expected_ids)
    assert torch.equal(mask, expected_mask)


@pytest.mark.parametrize("length", [35, 9])
def test_bert_ids_are_those_of_transformers(folder, length):
    ids, mask = bert_tokens([folder], length=length)(ORDINARY)
    expected_ids, expected_mask = theirs(folder, "BertTokenizerFast", length)
    assert torch.equal(ids, expected_ids)
    assert torch.equal(mask, expected_mask)


@pytest.mark.parametrize("prompt", SPECIAL)
def test_no_text_becomes_a_special_token(prompt, folder):
    for tokens in (clip_tokens([folder]), bert_tokens([folder], length=35)):
        ids, mask = tokens([prompt])
        read = ids[mask.bool()].tolist()
        assert read[0] == tokens.start and read[-1] == tokens.end
        assert not {tokens.start, tokens.end} & set(read[1:-1])
        assert len(read) > 4  # and is not dropped either


@pytest.mark.parametrize("prompt", ["cat " * 500, "x" * 2000, "\U0001f431" * 2000])
def test_long_prompts_are_cut_with_a_warning_and_still_end(prompt, folder, caplog):
    for tokens in (clip_tokens([folder]), bert_tokens([folder], length=35)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            ids, mask = tokens([prompt])
        whole = len(tokens.encode(prompt)) + 2
        if whole > tokens.length:
            assert ids[0, -1] == tokens.end and bool(mask.all())
            assert f"last {whole - tokens.length} tokens of a prompt are not read" in caplog.text
        else:  # BERT: one unknown word
            assert int(mask.sum()) == whole and not caplog.text


def test_the_first_folder_that_holds_the_files_is_taken(folder, tmp_path):
    (tmp_path / "vocab.json").write_text("{}")  # alone it is no tokenizer
    assert clip_tokens([tmp_path / "none", tmp_path, folder]).digest == clip_tokens([folder]).digest


def test_a_missing_tokenizer_is_asked_for_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="vocab.json and merges.txt .*clip-vit-large"):
        clip_tokens([tmp_path])
    with pytest.raises(FileNotFoundError, match="vocab.txt .*bert-base-uncased"):
        bert_tokens([tmp_path], length=35)


def test_a_vocabulary_of_another_kind_is_refused(tmp_path):
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "vocab.txt").write_text("hello\n")
    with pytest.raises(ValueError, match="lacks <|startoftext|>"):
        clip_tokens([tmp_path])
    with pytest.raises(ValueError, match=r"lacks \[PAD\], \[UNK\]"):
        bert_tokens([tmp_path], length=35)


def test_another_vocabulary_has_another_fingerprint(folder, tmp_path):
    write_clip_tokenizer(tmp_path)
    assert clip_tokens([tmp_path]).digest == clip_tokens([folder]).digest
    with open(tmp_path / "merges.txt", "a") as file:
        file.write("b l\n")
    vocabulary = (tmp_path / "vocab.json").read_text().replace('"<|start', '"bl": 9999, "<|start')
    (tmp_path / "vocab.json").write_text(vocabulary)
    assert clip_tokens([tmp_path]).digest != clip_tokens([folder]).digest


def test_text_of_the_web_is_read_as_it_was_meant(folder):
    assert web_text("salt &amp;amp; \u201cpepper\u201d, it\u2019s") == 'salt & "pepper", it\'s'
    ids, _ = clip_tokens([folder], clean=web_text)(["cat &amp; dog"])
    assert torch.equal(ids, clip_tokens([folder])(["cat & dog"])[0])
