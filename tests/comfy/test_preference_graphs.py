"""Offline preferences in a real server: picks on disk, Preference Objective, Train LoRA."""

from __future__ import annotations

import itertools
import json
from statistics import fmean

import pytest
import torch

from chunk_grpo_core.configfile.record import read_record, read_settings
from chunk_grpo_core.rewards.taste.events import new_pick

from . import graphs
from .client import PromptRejected
from .graphs import MODEL, find, node, shown_text
from .picking import taste_of
from .test_architecture_graphs import graph, unchanged

CAPTION = "two small red circles on a blue background"
TRAIN, OBJECTIVE = "ChunkGRPO_TrainLoRA", "ChunkGRPO_PreferenceObjective"
NAMES = itertools.count()
WIDGETS = {"held_out": 2, "guidance": 3.5, "cache_gib": 0.0}


def white_picks(server, count=12, prompts=6, size=8, kind="duel"):
    """A new taste: the whiter picture wins."""
    name, dice = f"white {next(NAMES)}", torch.Generator().manual_seed(0)
    taste = taste_of(server, name)
    for number in range(count):
        pair = [
            (level + 0.2 * torch.rand(size, size, 3, generator=dice)).clamp(0, 1)
            for level in (0.75, 0.1)
        ]
        shown = [taste.keep(one, prompt=f"prompt {number % prompts}") for one in pair]
        if kind == "duel":
            taste.append(new_pick("duel", shown, 0))
        else:
            taste.append(new_pick("like", shown[:1], True))
    return name


def offline(prompt, taste, clip, **inputs):
    """A training that takes its prompts from picks, without a reward, a plan and a sampler."""
    prompt[OBJECTIVE] = node(OBJECTIVE, taste=taste, clip=clip, **{**WIDGETS, **inputs})
    train = find(prompt, TRAIN)
    links = prompt[train]["inputs"]
    for name in ("reward", "plan", "sampler"):
        links.pop(name, None)
    links |= {"settings": [OBJECTIVE, 0], "prompts": [OBJECTIVE, 2]}
    return prompt, train


def rows_of(server, name):
    lines = (server.output / "chunk_grpo" / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def of_architecture(name, taste, **training):
    sizes = {"iterations": 12, "prompts_per_iteration": 4, "group_size": 2, **training}
    prompt, train = offline(graph(name, **sizes), taste, ["tiny", 1], beta=20.0)
    return graphs.upstream(prompt, train)


@pytest.mark.parametrize("name", ["z_image", "qwen_image"])
def test_tiny_models_learn_what_was_picked_without_any_reward(name, comfy, comfy_server):
    run_name = f"picked_{name}"
    prompt = of_architecture(name, white_picks(comfy_server), run_name=run_name)
    with unchanged(comfy, prompt):
        run = comfy.run(prompt, 300)
    rows = rows_of(comfy_server, run_name)
    assert rows[0]["preference_loss"] > rows[-1]["preference_loss"]
    assert fmean(row["preference_accuracy"] for row in rows[-4:]) > 0.6
    assert rows[-1]["implicit_reward_better"] > rows[-1]["implicit_reward_worse"]
    said = shown_text(run, "train")
    assert "Nothing was measured, since no reward is connected" in said
    assert "no score" not in said
    folder = comfy_server.output / "chunk_grpo" / run_name
    assert read_record(folder).reward == "none" and (folder / "plots/before_after.png").is_file()
    assert not (folder / "held_out.jsonl").read_text()


def tiny_flux(taste, **training):
    """The example by hand, made offline."""
    sizes = {"iterations": 6, "prompts_per_iteration": 8, "group_size": 2, "rank": 16}
    prompt = graphs.training(**{**sizes, "learning_rate": 2e-3, **training})
    prompt, train = offline(prompt, taste, ["1", 1])
    return prompt, train


def test_the_tiny_flux_trains_on_the_picks_that_come_with_the_pack_and_its_lora_loads(
    comfy, comfy_server
):
    prompt, train = tiny_flux("example", run_name="offline")
    prompt[OBJECTIVE]["inputs"]["prompts"] = ["2", 0]
    prompt[train]["inputs"]["reward"] = ["10", 0]  # it only measures
    prompt["save"] = node(
        "ChunkGRPO_SaveLoRA", lora=[train, 0], log=[train, 2], name="offline", for_diffusers=False
    )
    run = comfy.run(prompt, 400)
    shown = run.outputs[OBJECTIVE]["chunk_grpo_settings"]
    assert shown[0]["key"] == "picks" and "clicks on" in shown[0]["value"]
    said = shown_text(run, train)
    assert "Held-out reward" in said and "of the clicks that it trained on" in said
    rows = rows_of(comfy_server, "offline")
    assert rows[-1]["preference_loss"] < rows[0]["preference_loss"]
    settings = read_settings(comfy_server.output / "chunk_grpo" / "offline")
    assert (settings.algorithm, settings.preference.picks) == ("preference", "example")

    shows = graphs.base_nodes()
    file = shown_text(run, "save").partition(f"{comfy_server.loras}/")[2]
    shows["lora"] = node("LoraLoaderModelOnly", model=MODEL, lora_name=file, strength_model=1.0)
    for key, model in (("base", MODEL), ("with", ["lora", 0])):
        shows |= graphs.sampling(key, model, CAPTION, 5, 1)
        shows[key] = node("ChunkGRPO_ScoreImages", reward=["10", 0], prompt=CAPTION,
                          images=[f"{key}.images", 0])  # fmt: skip
    drawn = comfy.run(shows, 200)
    assert shown_text(drawn, "base") != shown_text(drawn, "with")


def test_a_run_goes_on_exactly_although_more_was_picked_and_says_so_when_it_cannot(
    comfy, comfy_server
):
    taste = white_picks(comfy_server)
    sizes = {"iterations": 4, "learning_rate": 0.02}
    comfy.run(of_architecture("z_image", taste, run_name="picks-whole", **sizes), 300)
    comfy.run(of_architecture("z_image", taste, run_name="picks-parts", iterations=2,
                              learning_rate=0.02), 300)  # fmt: skip
    picks = taste_of(comfy_server, taste)
    again = picks.keep(torch.rand(8, 8, 3), prompt="prompt 0")
    picks.append(new_pick("like", [again], True))
    picks.append(new_pick("duel", [again, picks.picks()[0].shown[0]], 0))
    comfy.run(of_architecture("z_image", taste, run_name="picks-parts", resume=True, **sizes), 300)

    def numbers(name):
        timed = ("seconds", "peak_gib")
        return [{k: v for k, v in row.items() if k not in timed}
                for row in rows_of(comfy_server, name)]  # fmt: skip

    assert numbers("picks-parts") == numbers("picks-whole")


REFUSED = {
    "no picks": ({"taste": "nobody"}, ["taste: there are no picks of", "Pick Pictures"]),
    "odd pairs": ({"group_size": 3}, ["group_size is 3", "it must be even"]),
    "a reward that is needed": ({"settings": None}, ["reward is missing", "chunk_grpo"]),
    "prompts of Prompt Set": ({"prompts": ["prompts", 0]}, ["carry no picks", "Preference Obj"]),
    "a sampler": ({"sampler": ["sampler", 0]}, ["sampler is connected", "take the link off"]),
    "a plan": ({"plan": ["plan", 0]}, ["plan is connected", "Preference Objective"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained_is_named(case, comfy, comfy_server):
    changes, words = REFUSED[case]
    prompt = of_architecture("z_image", white_picks(comfy_server), run_name="never")
    whole = graph("z_image")
    prompt |= {key: whole[key] for key in ("prompts", "sampler", "sigmas", "plan")}
    for name, value in changes.items():
        target = OBJECTIVE if name == "taste" else "train"
        prompt[target]["inputs"][name] = value
    if case == "a reward that is needed":
        prompt["train"]["inputs"] |= {"settings": ["basic", 0], "sampler": ["sampler", 0]}
        prompt["train"]["inputs"]["plan"] = ["plan", 0]
        prompt["basic"] = node("ChunkGRPO_GRPOSettings", clip=0.01)
    run = comfy.run(prompt, 100, check=False)
    assert not run.ok
    assert [word for word in words if word not in run.error] == [], run.error
    assert not (comfy_server.output / "chunk_grpo/never").exists()


@pytest.mark.parametrize("name", ["../../up", "a\nb", "", "x" * 300, "a/b"])
def test_a_name_that_no_taste_can_have_is_refused_before_anything_runs(name, comfy, comfy_server):
    prompt = of_architecture("z_image", white_picks(comfy_server), run_name="never")
    prompt[OBJECTIVE]["inputs"]["taste"] = name
    with pytest.raises(PromptRejected, match="taste - .* cannot be a file name"):
        comfy.run(prompt, 100)


def test_likes_alone_are_for_kto(comfy, comfy_server):
    taste = white_picks(comfy_server, kind="like")
    prompt = of_architecture("z_image", taste, run_name="likes", iterations=1)
    run = comfy.run(prompt, 100, check=False)
    assert 'objective "dpo" needs comparisons' in run.error
    prompt[OBJECTIVE]["inputs"]["objective"] = "kto"
    comfy.run(prompt, 200)
    assert rows_of(comfy_server, "likes")[0]["preference_loss"] == pytest.approx(0.5, abs=2e-2)


@pytest.mark.parametrize("what", ["gone", "damaged", "another"])
def test_a_picture_that_is_not_what_was_picked_is_named(what, comfy, comfy_server):
    taste = white_picks(comfy_server)
    files = sorted((taste_of(comfy_server, taste).folder / "pictures").glob("*.png"))
    for file in files:
        if what == "gone":
            file.unlink()
        elif what == "damaged":
            file.write_bytes(file.read_bytes()[:60])
    if what == "another":
        bodies = [file.read_bytes() for file in files]
        for file, body in zip(files, bodies[1:] + bodies[:1], strict=True):
            file.write_bytes(body)
    run = comfy.run(of_architecture("z_image", taste, run_name="never"), 100, check=False)
    assert not run.ok and any(file.name[:8] in run.error for file in files), run.error
    assert "Traceback" not in run.error
