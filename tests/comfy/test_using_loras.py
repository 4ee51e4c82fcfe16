"""Apply LoRA and Evaluate LoRA in a real server: their numbers are those of other nodes."""

import io
import json
import re
import time
from types import SimpleNamespace

import pytest
from PIL import Image

from . import graphs
from .client import ComfyClient, PromptRejected
from .graphs import MODEL, VAE, change, find, node, sampling, shown_text

TRAIN, EVALUATE, APPLY = (
    f"ChunkGRPO_{name}" for name in ("TrainLoRA", "EvaluateLoRA", "ApplyLoRA")
)
SWITCH = 6  # of 9 steps: the first that starts behind 60 % of the sampling


def evaluation(**inputs):
    """Return an Evaluate node on the prompts, reward and sizes of the example by hand."""
    link = {"prompts": "2", "reward": "10", "sigmas": "4", "latent": "5"}
    widgets = {"pictures_per_prompt": 2, "noise_seed": 20_000, "batch_size": 0, "dark": True}
    linked = {name: [key, 0] for name, key in link.items()}
    return node(EVALUATE, model=MODEL, vae=VAE, **linked, **widgets, **inputs)


def tables(text):
    """Return the two lists of Evaluate LoRA: name -> base, LoRA, gain and interval as they are
    written, and prompt -> base, LoRA, gain."""
    of_score = r"^- (.+): gain (\S+)\n  - (?:95 % interval )?(.+)\n  - base (\S+), LoRA (\S+)\n"
    of_prompt = r"^- ([+-]\S+) \((\S+) to (\S+)\): (.+)$"
    scores = re.findall(of_score, text, re.MULTILINE)
    prompts = re.findall(of_prompt, text, re.MULTILINE)
    return {name: [base, lora, gain, span] for name, gain, span, base, lora in scores}, {
        prompt: [float(v) for v in (base, lora, gain)] for gain, base, lora, prompt in prompts
    }


@pytest.fixture(scope="module")
def trained(comfy_server):
    """Train two iterations, evaluate and save in the same graph."""
    client = ComfyClient(comfy_server.url)
    prompt = graphs.training(run_name="to be used", iterations=2)
    train = find(prompt, TRAIN)
    name = "using/lora"
    prompt["save"] = node("ChunkGRPO_SaveLoRA", lora=[train, 0], name=name, for_diffusers=False)
    prompt["evaluate"] = evaluation(lora=[train, 0])
    for slot, key in ((1, "plot"), (2, "pairs")):
        prompt[key] = node("PreviewImage", images=["evaluate", slot])
    run = client.run(prompt, 200)
    folder = comfy_server.output / "chunk_grpo" / "to be used"
    path = shown_text(run, "save")
    return SimpleNamespace(
        prompt=prompt,
        run=run,
        record=json.loads((folder / "evaluation.json").read_text()),
        train=shown_text(run, train),
        table=shown_text(run, "evaluate"),
        file=path.partition(f"{comfy_server.loras}/")[2],
    )


def applied(trained, **inputs):
    """Return the nodes that evaluation needs without training, and Apply LoRA on the file."""
    nodes = graphs.upstream(trained.prompt, "2", "4", "5", "10")
    widgets = {"lora_name": trained.file, "strength": 1.0, "start_percent": 0.0, "end_percent": 1.0}
    nodes["apply"] = node(APPLY, model=MODEL, **{**widgets, **inputs})
    return nodes


def mean(values):
    return sum(values) / len(values)


def scored(client, nodes, trained, models):
    """Sample with standard nodes as Evaluate LoRA does; name -> mean reward of each prompt."""
    prompts = trained.record["before"]["prompts"]
    for name, sampled in models.items():
        for index, caption in enumerate(prompts):
            nodes |= sampled(f"{name}{index}", caption, 20_000 + index)
            score = {"reward": ["10", 0], "images": [f"{name}{index}.images", 0], "prompt": caption}
            nodes[f"{name}{index}"] = node("ChunkGRPO_ScoreImages", **score)
    run = client.run(nodes)
    return {
        name: [
            mean(
                [float(line.split("\t")[1]) for line in shown_text(run, f"{name}{i}").splitlines()]
            )
            for i in range(len(prompts))
        ]
        for name in models
    }


def test_evaluate_repeats_the_measurement_of_the_training(trained):
    scores, prompts = tables(trained.table)
    before, after = trained.record["before"], trained.record["after"]
    assert before["rewards"] != after["rewards"]
    for index, caption in enumerate(before["prompts"]):
        expected = [mean(which["rewards"][index]) for which in (before, after)]
        assert prompts[caption][:2] == pytest.approx(expected, abs=6e-5)
    assert len(prompts) == 2
    words = r"reward (\S+) -> (\S+), gain (\S+) \(95 % interval (\S+ to \S+)\)"
    found = re.search(words, trained.train).groups()
    assert scores["tiny_world"][:4] == list(found)
    for name in before["extras"]:
        means = [mean(sum(which["extras"][name], [])) for which in (before, after)]
        assert [float(cell) for cell in scores[name][:2]] == pytest.approx(means, abs=6e-5)
    assert "2 prompts, 2 pictures of each, noise seeds 20000 to 20001" in trained.table


def test_evaluate_shows_a_plot_and_the_pairs(trained, comfy):
    for key in ("plot", "pairs"):
        (file,) = trained.run.outputs[key]["images"]
        with Image.open(io.BytesIO(comfy.view(file))) as picture:
            assert min(picture.size) >= 200
            assert len(picture.convert("RGB").getcolors(10**6)) > 100


def test_standard_nodes_reproduce_what_evaluate_says(trained, comfy):
    _, prompts = tables(trained.table)
    found = scored(
        comfy,
        applied(trained),
        trained,
        {
            "base": lambda key, caption, seed: sampling(key, MODEL, caption, seed, 2),
            "lora": lambda key, caption, seed: sampling(key, ["apply", 0], caption, seed, 2),
        },
    )
    captions = trained.record["before"]["prompts"]
    for slot, name in enumerate(("base", "lora")):
        expected = [prompts[caption][slot] for caption in captions]
        assert found[name] == pytest.approx(expected, abs=1e-3)


def test_hybrid_sampling_is_two_samplers_one_after_the_other(trained, comfy):
    """LoRA up to 60 % in one node, against SplitSigmas and two SamplerCustomAdvanced."""
    nodes = applied(trained)
    nodes["split"] = node("SplitSigmas", sigmas=["4", 0], step=SWITCH)
    nodes["no noise"] = node("DisableNoise")

    def two_stages(key, caption, seed):
        first = sampling(key, ["apply", 0], caption, seed, 2)
        first[f"{key}.sampled"]["inputs"]["sigmas"] = ["split", 0]
        rest = sampling(f"{key}b", MODEL, caption, seed, 2)
        rest[f"{key}b.sampled"]["inputs"] |= {
            "noise": ["no noise", 0],
            "sigmas": ["split", 1],
            "latent_image": [f"{key}.sampled", 0],
        }
        first[f"{key}.images"]["inputs"]["samples"] = [f"{key}b.sampled", 0]
        del rest[f"{key}b.noise"], rest[f"{key}b.latent"], rest[f"{key}b.images"]
        return {**first, **rest}

    expected = scored(comfy, nodes, trained, {"hybrid": two_stages})["hybrid"]
    hybrid = applied(trained, end_percent=0.6)
    hybrid["evaluate"] = evaluation(second_model=["apply", 0])
    _, prompts = tables(shown_text(comfy.run(hybrid), "evaluate"))
    captions = trained.record["before"]["prompts"]
    assert [prompts[caption][1] for caption in captions] == pytest.approx(expected, abs=1e-3)
    _, full = tables(trained.table)
    assert [prompts[c][1] for c in captions] != [full[c][1] for c in captions]


def test_a_lora_socket_and_its_file_are_the_same(trained, comfy):
    prompt = applied(trained)
    prompt["evaluate"] = evaluation(second_model=["apply", 0])
    assert shown_text(comfy.run(prompt), "evaluate") == trained.table


def test_evaluate_reports_progress_and_can_be_cancelled(trained, comfy):
    prompt = applied(trained)
    prompt["evaluate"] = evaluation(second_model=["apply", 0])
    prompt = change(prompt, EVALUATE, noise_seed=7)
    seen = [data["value"] for data in comfy.record(prompt).events_named("progress")]
    # Of each model two prompts drawn and two scored; newer servers leave some out.
    assert seen == sorted(set(seen) & {45, 90, 95, 100, 145, 190, 195, 200})
    assert seen[0] <= 100 < seen[-1]  # both models
    pressed = []

    def press_cancel(name, data):
        if name == "progress" and not pressed:
            pressed.append(time.monotonic())
            comfy.interrupt()

    run = comfy.record(
        change(prompt, EVALUATE, pictures_per_prompt=16), on_event=press_cancel, check=False
    )
    assert time.monotonic() - pressed[0] < 10
    assert run.interrupted and run.error is None
    assert comfy.run(change(prompt, EVALUATE, noise_seed=8)).ok


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"start_percent": 0.7, "end_percent": 0.6}, ["start_percent is 0.7", "end_percent 0.6"]),
        ({"end_percent": 1.5}, ["end_percent", "1.5", "max of 1"]),
        ({"lora_name": "none"}, ["lora is not connected", "'none'"]),
        ({"lora_name": "missing.safetensors"}, ["missing.safetensors"]),
    ],
)
def test_apply_says_what_is_wrong(inputs, words, trained, comfy):
    prompt = applied(trained, **inputs)
    prompt["evaluate"] = evaluation(second_model=["apply", 0])
    message = failed(comfy, prompt)
    assert [word for word in words if word not in message] == [], message


def test_evaluate_needs_something_to_compare(trained, comfy):
    prompt = {**applied(trained), "evaluate": evaluation()}
    assert "connect either lora or second_model" in failed(comfy, prompt)


def test_evaluate_needs_held_out_prompts(trained, comfy):
    prompt = change(applied(trained), "ChunkGRPO_PromptSet", held_out=1)
    prompt["evaluate"] = evaluation(second_model=["apply", 0])
    message = failed(comfy, prompt)
    assert (
        "prompts held out: 1; a measurement needs at least 2" in message and "Prompt Set" in message
    )


def failed(client, prompt):
    """Return why a prompt was refused or failed."""
    try:
        run = client.run(prompt, check=False)
    except PromptRejected as refusal:
        return " ".join(refusal.messages())
    assert not run.ok
    return run.error.partition("\n")[0]
