"""Prompt Set in a real server: files of the input folder, wildcards, and what changes on disk."""

from __future__ import annotations

import json
import shutil

import pytest

from . import graphs
from .client import PromptRejected
from .graphs import node

CAPTIONS = [f"a {size} {colour} circle on a black background"
            for size in ("small", "large") for colour in ("red", "green", "blue")]  # fmt: skip


@pytest.fixture
def folder(comfy_server):
    """Give the input folder, with prompt files and wildcards in it."""
    files = {
        "train.jsonl": "\n".join(json.dumps({"prompt": text}) for text in CAPTIONS),
        "test.csv": f"id,caption\n1,{CAPTIONS[0]}\n2,two large white squares on a red background\n",
        "wildcards/colour.txt": "# colours\nred\ngreen\nblue\n",
        "bad.jsonl": '{"prompt": "a"}\n{"prompt": }\n',
        "sheet.csv": f"Prompt;Art\n{CAPTIONS[0]};x\n",
        "wildcards/shapes.yaml": "shape:\n  round: [circle]\n",
    }
    for name, body in files.items():
        path = comfy_server.input / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(body)
    yield comfy_server.input
    for name in files:
        (comfy_server.input / name).unlink(missing_ok=True)


def graph(**inputs):
    """Return the tiny FLUX, a Prompt Set and a node that shows its summary."""
    defaults = {"text": "", "held_out_text": "", "held_out": 2, "split_seed": 0, "guidance": 3.5}
    return {
        "tiny": node("ChunkGRPO_LoadTinyFlux"),
        "set": node("ChunkGRPO_PromptSet", clip=["tiny", 1], **{**defaults, **inputs}),
        "shown": node("PreviewAny", source=["set", 1]),
    }


def summary(comfy, **inputs):
    return comfy.run(graph(**inputs)).outputs["shown"]["text"][0]


def refusal(comfy, **inputs):
    with pytest.raises(PromptRejected) as caught:
        comfy.submit(graph(**inputs))
    return " ".join(caught.value.messages())


def test_a_prompt_of_before_files_and_wildcards_still_runs(comfy):
    text = summary(comfy, text="\n".join(CAPTIONS), held_out=2)
    assert text.startswith("4 prompts to train on, 2 held out.")


def test_files_are_listed_and_read(comfy, folder):
    (_, options) = comfy.object_info("ChunkGRPO_PromptSet")["input"]["optional"]["file"]
    assert {"none", "train.jsonl", "test.csv", "bad.jsonl"} <= set(options["options"])
    text = summary(comfy, file="train.jsonl", held_out_file="test.csv", held_out=8)
    assert text.startswith("5 prompts to train on, 2 held out.")
    assert "0 repeated, 1 in the held-out list" in text


def test_the_summary_says_what_was_guessed_about_a_file(comfy, folder):
    text = summary(comfy, file="sheet.csv", text="a small red __shape/round__", held_out=0)
    assert text.startswith("2 prompts to train on")
    assert "sheet.csv: cells are separated by semicolons." in text
    assert "sheet.csv: prompts are read from 'Prompt'." in text


def test_the_prompts_of_a_file_are_rolled_out(comfy, folder):
    prompt = graph(file="train.jsonl", held_out=0, variants=0)
    prompt["sampler"] = node("ChunkGRPO_FlowSDESampler", rule="flow", eta=0.7)
    prompt["sigmas"] = node("ChunkGRPO_ShiftedSigmas", steps=3, shift=3.0)
    prompt["latent"] = node("EmptySD3LatentImage", width=64, height=64, batch_size=1)
    prompt["out"] = node(
        "ChunkGRPO_RollOutTrajectories",
        model=["tiny", 0], prompts=["set", 0], sampler=["sampler", 0], sigmas=["sigmas", 0],
        latent=["latent", 0], prompt_count=6, group_size=1, seed=0,
    )  # fmt: skip
    prompt["images"] = node("VAEDecode", samples=["out", 1], vae=["tiny", 2])
    prompt["preview"] = node("PreviewImage", images=["images", 0])
    assert len(comfy.images(comfy.run(prompt))) == 6


def test_wildcards_come_from_the_folder(comfy, folder):
    line = "a {small|large} __colour__ circle on a black background"
    assert "5 prompts to train on, 1 held out" in summary(comfy, text=line, held_out=1, variants=9)
    every = summary(comfy, text=line, file="train.jsonl", held_out_share=0.5, variants=9)
    assert "3 prompts to train on, 3 held out" in every and "6 repeated" in every
    run = comfy.run(graph(text="a __color__ circle"), check=False)
    assert "text, line 1: there is no wildcard 'color'; the folder 'wildcards' has: colour" in (
        run.error
    )
    run = comfy.run(graph(text="a __colour__ circle", wildcards="nowhere"), check=False)
    assert "'nowhere' has no .txt or .yaml files" in run.error


def test_an_edited_file_is_read_again_and_an_unchanged_one_is_not(comfy, folder):
    inputs = {"file": "train.jsonl", "text": "a small __colour__ cross on a black background"}
    inputs |= {"variants": 50, "held_out": 0}

    def ran():
        run = comfy.record(graph(**inputs))
        cached = {key for data in run.events_named("execution_cached") for key in data["nodes"]}
        return "set" not in cached, run.outputs["shown"]["text"][0]

    assert ran()[1].startswith("9 prompts")
    assert ran()[0] is False
    with (folder / "train.jsonl").open("a") as file:
        file.write('\n{"prompt": "a large white circle on a black background"}')
    again, text = ran()
    assert again and text.startswith("10 prompts")
    (folder / "wildcards/colour.txt").write_text("red\ngreen\nblue\nyellow\n")
    again, text = ran()
    assert again and text.startswith("11 prompts")
    assert ran()[0] is False


def test_encoded_prompts_are_found_again_on_disk(comfy, comfy_server):
    cache = comfy_server.output / "chunk_grpo" / ".conditioning"
    shutil.rmtree(cache, ignore_errors=True)  # other tests encode the same captions
    text = "\n".join(f"two small {c} circles on a white background" for c in ("red", "blue"))
    summary(comfy, text=text, held_out=0)
    found = summary(comfy, text=f"{text}\ntwo small black circles on a white background")
    assert "Encoded: 1, from the cache: 3 (the empty prompt" in found
    assert {file.suffix for file in cache.iterdir()} == {".safetensors"}
    assert "Encoded: 3, from the cache: 0 (the empty prompt" in summary(
        comfy, text=text, held_out=0, cache_gib=0
    )


def test_a_file_that_cannot_be_read_is_refused_before_anything_runs(comfy, folder):
    for inputs, words in (
        ({"file": "bad.jsonl"}, ["bad.jsonl, line 2", "not JSON"]),
        ({"file": "../server.log"}, ["'../server.log'", "outside ComfyUI's input folder"]),
        ({"variants": -1}, ["variants", "min of 0"]),
        ({"held_out_share": 1.0}, ["held_out_share", "max of 0.99"]),
    ):
        message = refusal(comfy, **inputs)
        assert [word for word in words if word not in message] == [], message


def test_a_second_file_or_folder_that_is_wrong_is_refused_before_the_encoder_loads(comfy, folder):
    for inputs, words in (
        ({"held_out_file": "bad.jsonl"}, ["bad.jsonl, line 2", "not JSON"]),
        ({"wildcards": "../models"}, ["'../models'", "outside"]),
    ):
        run = comfy.run(graph(**inputs), check=False)
        message = run.error.partition("\n")[0]
        assert [word for word in words if word not in message] == [], message


def test_a_workflow_saved_with_fewer_widgets_opens_with_the_defaults(comfy, comfy_page):
    name = graphs.DYNAMICS
    graph = graphs.workflow(name)
    (old,) = (entry for entry in graph["nodes"] if entry["type"] == "ChunkGRPO_PromptSet")
    before = ("clip", "text", "held_out_text", "held_out", "split_seed", "guidance")
    old["inputs"] = [entry for entry in old["inputs"] if entry["name"] in before]
    old["widgets_values"] = old["widgets_values"][: len(before) - 1]
    old["outputs"] = old["outputs"][:1]
    old["widgets_values"][2:4] = [5, 77]
    comfy_page.load(graph, name)
    (inputs,) = (
        entry["inputs"]
        for entry in comfy_page.prompt().values()
        if entry["class_type"] == "ChunkGRPO_PromptSet"
    )
    options = graphs.input_options(comfy.object_info("ChunkGRPO_PromptSet"))
    wanted = {
        key: options[key]["default"] for key in options.keys() - before if "default" in options[key]
    }
    assert {key: inputs[key] for key in wanted} == wanted
    assert (inputs["held_out"], inputs["split_seed"], inputs["guidance"]) == (5, 77, 3.5)
    assert comfy_page.alerts() == []
