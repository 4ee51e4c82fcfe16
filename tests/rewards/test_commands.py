"""``chunk-grpo score`` and ``chunk-grpo fetch``; downloads come from a server in the test."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch
from typer.testing import CliRunner

from chunk_grpo_core.cli.app import app
from chunk_grpo_core.rewards import catalog
from chunk_grpo_core.rewards.fetch import fetch_file
from chunk_grpo_core.rewards.files import WeightFile
from chunk_grpo_core.rewards.networks import aesthetic
from chunk_grpo_core.watch.pictures import save_png

pytestmark = pytest.mark.slow  # all of it together

BODY = b"weights " * 100_000
FILE = WeightFile(
    folder="judge",
    name="a+b.safetensors",
    repo="someone/judge",
    bytes=len(BODY),
    licence="MIT",
    revision="abc",
    sha256=hashlib.sha256(BODY).hexdigest(),
)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def images(tmp_path):
    """Give two red pictures of one size, a green one of another, and a grey one."""
    red, green = torch.tensor([1.0, 0, 0]), torch.tensor([0, 1.0, 0])
    colours = {"a": red.expand(4, 6, 3), "b": green.expand(5, 5, 3), "c": red.expand(4, 6, 3)}
    return [save_png(picture, tmp_path / f"{name}.png") for name, picture in colours.items()]


# score


def test_pictures_of_all_sizes_are_scored_in_the_order_given(images):
    settings = ("--reward", "target_colour", "--setting", "colour=#ff0000")
    found = run("score", *images, *settings, "--json")
    assert found.exit_code == 0, found.output
    record = json.loads(found.stdout)
    assert record["reward"] == "target_colour"
    assert record["fingerprint"]["colour"] == "#ff0000"
    assert [row["image"] for row in record["scores"]] == [str(image) for image in images]
    scores = [row["score"] for row in record["scores"]]
    assert scores == pytest.approx([1.0, 1 / 3, 1.0])


def test_prompts_belong_to_pictures_and_extras_are_told(tmp_path):
    from chunk_grpo_core.models.tiny.render import render
    from chunk_grpo_core.models.tiny.world import caption, parse

    text = "a small red circle on a blue background"
    assert caption(parse(text)) == text
    image = save_png(render([parse(text)], 0)[0], tmp_path / "x.png")
    other = text.replace("red", "green")
    prompts = ("--prompt", text, "--prompt", other)
    found = run("score", image, image, "--reward", "tiny_world", *prompts, "--json")
    right, wrong = json.loads(found.stdout)["scores"]
    assert (right["prompt"], wrong["prompt"]) == (text, other)
    assert right["score"] > wrong["score"]
    assert right["extras"]["strict"] == 1.0 > wrong["extras"]["strict"]


def test_a_prompt_file_brings_one_prompt_with_its_metadata_for_each_picture(
    images, tmp_path, monkeypatch
):
    from chunk_grpo_core.rewards import ocr

    monkeypatch.setattr(ocr, "RapidOcr", lambda **settings: ReadsOpen())
    rows = [{"prompt": "a sign", "target_text": target} for target in ("open", "shut")]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    words = ("score", images[0], images[0], "--reward", "ocr", "--prompt-file", file)
    scores = json.loads(run(*words, "--json").stdout)["scores"]
    assert [(row["prompt"], row["score"]) for row in scores] == [("a sign", 1.0), ("a sign", 0.0)]
    both = run(*words, "--prompt", "a sign")
    assert both.exit_code == 2 and "both given" in both.stderr


class ReadsOpen:
    """Reads the same word in every picture."""

    fingerprint = {"engine": "none"}

    def __call__(self, levels):
        return "OPEN"


def test_the_table_names_pictures_and_scores(images):
    found = run("score", images[0], "--reward", "target_colour", "--setting", "colour=#ff0000")
    assert found.exit_code == 0 and "1.0000" in found.stdout and "target_colour" in found.stdout


def test_a_picture_without_a_score_is_null_and_never_0(images, monkeypatch):
    from chunk_grpo_core.method.reward import RewardBatch

    class Broken:
        name, fingerprint = "broken", {}

        def score(self, images, examples):
            return RewardBatch.failed(len(images))

    monkeypatch.setattr("chunk_grpo_core.cli.rewards.load_reward", lambda name: Broken())
    found = run("score", images[0], "--reward", "broken", "--json")
    assert json.loads(found.stdout)["scores"][0]["score"] is None
    assert "no score" in run("score", images[0], "--reward", "broken").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--reward", "nothing"), "reward is 'nothing'"),
        (("--reward", "target_colour", "--setting", "colour"), "write KEY=VALUE"),
        (("--reward", "target_colour", "--setting", "color=1"), "color"),
        (
            ("--reward", "target_colour", "--prompt", "a", "--prompt", "b"),
            "--prompt: 2 prompts for 1",
        ),
        (("--reward", "pickscore", "--setting", 'folders=["nowhere"]'), "get model.safetensors"),
    ],
)
def test_mistakes_are_one_line(images, arguments, message):
    found = run("score", images[0], *arguments)
    assert found.exit_code == 2
    assert message in " ".join(found.stderr.split()) and "Traceback" not in found.stderr


def test_a_file_with_too_many_prompts_is_named(images, tmp_path):
    (tmp_path / "many.txt").write_text("a cat\na dog\n")
    more = ("--reward", "target_colour", "--prompt-file", tmp_path / "many.txt")
    found = run("score", images[0], *more)
    assert found.exit_code == 2 and "many.txt: 2 prompts for 1" in found.stderr.replace("\n", "")


def test_a_file_that_is_missing_is_named(tmp_path):
    found = run("score", tmp_path / "none.png", "--reward", "target_colour")
    assert found.exit_code == 2 and "none.png" in found.stderr.replace("\n", "")


# fetch


class Host(BaseHTTPRequestHandler):
    """Serves BODY; some paths fail."""

    def do_GET(self):
        self.server.asked.append(self.path)
        if "missing" in self.path:
            self.send_error(401)
            return
        body = self.server.bodies.get(self.path.rpartition("/")[2], BODY)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if "short" in self.path else body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def host():
    """Give a server with its address, the paths asked for, and bodies by file name."""
    server = HTTPServer(("127.0.0.1", 0), Host)
    server.asked, server.bodies = [], {}
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_file_is_fetched_once_from_its_revision(host, tmp_path):
    fractions = []
    path, digest = fetch_file(FILE, tmp_path, base_url=host.url, progress=fractions.append)
    assert path == tmp_path / "judge" / FILE.name and path.read_bytes() == BODY
    assert digest == FILE.sha256
    assert host.asked == ["/someone/judge/resolve/abc/a%2Bb.safetensors"]
    assert fractions[-1] == 1.0 and fractions == sorted(fractions)
    assert fetch_file(FILE, tmp_path, base_url=host.url) == (path, digest)
    assert len(host.asked) == 1


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"sha256": "0" * 64}, ValueError, "has SHA-256"),
        ({"name": "missing.pt"}, OSError, "answered 401 .*someone/judge.* licence"),
        ({"name": "short.pt"}, OSError, "stopped|IncompleteRead|more expected"),
    ],
)
def test_what_is_not_the_whole_right_file_is_not_kept(changes, error, message, host, tmp_path):
    with pytest.raises(error, match=message):
        fetch_file(replace(FILE, **changes), tmp_path, base_url=host.url)
    assert list((tmp_path / "judge").iterdir()) == []


def test_a_file_that_is_there_but_wrong_is_not_taken_for_the_right_one(host, tmp_path):
    path = tmp_path / "judge" / FILE.name
    path.parent.mkdir()
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="another file or damaged"):
        fetch_file(FILE, tmp_path, base_url=host.url)
    assert path.read_bytes() == b"something else" and not host.asked


def test_files_come_over_http_alone(tmp_path):
    with pytest.raises(ValueError, match="must begin with https://"):
        fetch_file(FILE, tmp_path, base_url="file:///etc")


def test_nothing_is_fetched_without_yes(host, tmp_path):
    found = run("fetch", "pickscore", "--to", tmp_path, "--base-url", host.url)
    assert found.exit_code == 1 and not host.asked and not list(tmp_path.iterdir())
    for fact in ("model.safetensors", "3.94 GB", "vocab.json", "--yes"):
        assert fact in found.stdout + found.stderr


def test_all_files_of_a_reward_are_fetched_to_where_they_are_looked_for(
    host, tmp_path, monkeypatch
):
    files = [replace(file, sha256=None) for file in catalog.CATALOG["aesthetic"].files]
    entry = replace(catalog.CATALOG["aesthetic"], files=tuple(files))
    monkeypatch.setitem(catalog.CATALOG, "aesthetic", entry)
    found = run("fetch", "aesthetic", "--yes", "--to", tmp_path, "--base-url", host.url)
    assert found.exit_code == 0, found.output
    assert [p.rpartition("/")[2] for p in host.asked] == [
        "sac%2Blogos%2Bava1-l14-linearMSE.pth", "model.safetensors"]  # fmt: skip
    assert f"/raw/{aesthetic.HEAD.revision}/" in host.asked[0]
    assert (tmp_path / "aesthetic" / aesthetic.HEAD.name).is_file()
    assert (tmp_path / "clipscore" / "model.safetensors").is_file()


def test_an_unknown_reward_cannot_be_fetched():
    found = run("fetch", "target_colour", "--yes")
    assert found.exit_code == 2 and "there are files to fetch for" in found.stderr
