"""Pictures are scored, sorted and picked in a graph; a reward that cannot be loaded says why."""

from __future__ import annotations

import io

import pytest
from PIL import Image, ImageDraw, ImageFont

from chunk_grpo_core.rewards import REWARDS
from chunk_grpo_core.rewards.catalog import CATALOG

from .client import PromptRejected
from .graphs import input_options, node, shown_text

LOAD, SCORE, PICK = (
    f"ChunkGRPO_{name}" for name in ("LoadReward", "ScoreImages", "PickBestImages")
)


def load(name, **inputs):
    return node(LOAD, **{"name": name, "colour": "#2060c0", **inputs})


def refusal(client, prompt):
    """Why a graph did not run: refused at once, or when it came to the node."""
    try:
        run = client.run(prompt, check=False)
    except PromptRejected as error:
        return " ".join(error.messages())
    assert not run.ok
    return run.error.partition("\n")[0]


def score_one(**inputs):
    picture = node("EmptyImage", width=16, height=16, batch_size=1, color=0)
    score = node(SCORE, reward=["reward", 0], images=["picture", 0], prompt="a cat")
    return {"reward": load(**inputs), "picture": picture, "score": score}


def write_pictures(server):
    """Three pictures of one size, by the bytes of their JPEG: flat, stripes, noise."""
    flat, stripes = Image.new("RGB", (64, 64), "#404040"), Image.new("RGB", (64, 64))
    for x in range(0, 64, 8):
        stripes.paste((255, 255, 255), (x, 0, x + 4, 64))
    noise = Image.effect_noise((64, 64), 90).convert("RGB")
    for name, picture in (("flat", flat), ("stripes", stripes), ("noise", noise)):
        picture.save(server.input / f"{name}.png")
    return [jpeg_kilobytes(picture) for picture in (flat, stripes, noise)]


def jpeg_kilobytes(picture):
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=95)
    return len(stream.getvalue()) / 1000


def test_every_reward_is_offered_and_explained(comfy):
    definition = comfy.object_info()[LOAD]
    assert definition["input"]["required"]["name"][0] in (list(REWARDS), "COMBO")
    options = input_options(definition)["name"]
    assert options.get("options", list(REWARDS)) == list(REWARDS)
    for name in REWARDS:
        assert f"{name}: {CATALOG[name].measures}" in options["tooltip"]


@pytest.fixture
def picked(comfy, comfy_server):
    """Run: three pictures are scored by their size in JPEG, and two are picked."""
    sizes = write_pictures(comfy_server)
    prompt = {
        "reward": load("jpeg_compressibility"),
        "score": node(SCORE, reward=["reward", 0], images=["both", 0], prompt="a\nb\nc"),
        "pick": node(PICK, images=["both", 0], scores=["score", 3], count=2),
        "numbers": node("PreviewAny", source=["pick", 2]),
        "kept": node("PreviewAny", source=["pick", 1]),
        "save": node("SaveImage", images=["pick", 0], filename_prefix="picked"),
        "show": node("PreviewImage", images=["score", 2]),
    }
    for name in ("flat", "noise", "stripes"):
        prompt[name] = node("LoadImage", image=f"{name}.png")
    prompt["pair"] = node("ImageBatch", image1=["stripes", 0], image2=["noise", 0])
    prompt["both"] = node("ImageBatch", image1=["pair", 0], image2=["flat", 0])
    return comfy.run(prompt), sizes


def test_pictures_are_scored_and_the_best_are_picked_best_first(picked, comfy_server):
    run, (flat, stripes, noise) = picked
    rows = [line.split("\t") for line in shown_text(run, "score").splitlines()]
    assert [row[2] for row in rows] == ["a", "b", "c"]
    scores = [float(row[1]) for row in rows]
    assert flat < stripes < noise and scores[2] > scores[0] > scores[1]
    assert run.outputs["numbers"]["text"] == ["2", "0"]
    kept = [float(text) for text in run.outputs["kept"]["text"]]
    assert kept == pytest.approx([scores[2], scores[0]], abs=1e-4)
    files = [entry["filename"] for entry in run.outputs["save"]["images"]]
    saved = [Image.open(comfy_server.output / file).convert("RGB") for file in files]
    wanted = [Image.open(comfy_server.input / f"{name}.png") for name in ("flat", "stripes")]
    assert [picture.tobytes() for picture in saved] == [picture.tobytes() for picture in wanted]


def test_a_network_that_comes_with_a_package_scores_in_a_graph(comfy, comfy_server):
    for name, text in (("right", "OPEN 24h"), ("wrong", "closed")):
        picture = Image.new("RGB", (480, 120), "white")
        font = ImageFont.load_default(56)
        ImageDraw.Draw(picture).text((30, 25), text, "black", font)
        picture.save(comfy_server.input / f"{name}.png")
    prompt = {
        "reward": load("ocr"),
        "right": node("LoadImage", image="right.png"),
        "wrong": node("LoadImage", image="wrong.png"),
        "both": node("ImageBatch", image1=["right", 0], image2=["wrong", 0]),
        "score": node(
            SCORE, reward=["reward", 0], images=["both", 0], prompt='a sign that says "OPEN 24h"'
        ),
    }
    rows = shown_text(comfy.run(prompt), "score").splitlines()
    right, wrong = (float(row.split("\t")[1]) for row in rows)
    assert right == 1.0 and wrong < 0.5


@pytest.mark.parametrize("name", [name for name in REWARDS if CATALOG[name].files])
def test_missing_weights_are_named_with_size_licence_and_place(name, comfy, comfy_server):
    message = refusal(comfy, score_one(name=name, allow_download=False))
    file = next(file for file in CATALOG[name].files if file.name in message)
    assert file.licence in message and file.page in message
    assert str(comfy_server.base / "models" / "reward_models" / file.folder) in message
    assert "GB" in message or "MB" in message or "kB" in message


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"name": "ocr", "settings": "strict"}, ["'strict'", "KEY=VALUE"]),
        ({"name": "ocr", "settings": "strict=true\nstrict=false"}, ["strict", "twice"]),
        ({"name": "ocr", "settings": "strictly=true"}, ["strictly", "strict"]),
        ({"name": "pickscore", "settings": "path=a.pt"}, ["path", "file"]),
        ({"name": "pickscore", "settings": "dtype=float8"}, ["dtype", "'float8'", "bfloat16"]),
        ({"name": "pickscore", "file": "../a.pt"}, ["'../a.pt'", "inside the folders"]),
        ({"name": "pickscore", "file": "mine.pt"}, ["mine.pt", "reward_models"]),
        ({"name": "remote_http"}, ["remote_http", "url"]),
        ({"name": "remote_http", "url": "ftp://host"}, ["ftp://host", "http"]),
        ({"name": "vlm_judge", "url": ""}, ["vlm_judge", "url"]),
        ({"name": "target_image"}, ["target_image", "input image"]),
        ({"name": "taste"}, ["taste needs the head", "file"]),
        ({"name": "taste", "file": "../head.safetensors"}, ["outside output/chunk_grpo/taste"]),
        ({"name": "taste", "settings": "head=/etc/passwd"}, ["head", "file"]),
    ],
)
def test_what_cannot_be_loaded_says_what_is_wrong(inputs, words, comfy):
    message = refusal(comfy, score_one(**inputs))
    assert [word for word in words if word not in message] == [], message


def test_pick_best_images_refuses_scores_that_do_not_fit(comfy, comfy_server):
    write_pictures(comfy_server)
    prompt = score_one(name="brightness")
    prompt["two"] = node("EmptyImage", width=16, height=16, batch_size=2, color=0)
    prompt["pick"] = node(PICK, images=["two", 0], scores=["score", 3], count=1)
    prompt["save"] = node("PreviewImage", images=["pick", 0])
    message = refusal(comfy, prompt)
    assert "2 pictures need as many scores, got 1" in message
