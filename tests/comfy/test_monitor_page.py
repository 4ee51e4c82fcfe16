"""The live monitor of Train LoRA in real pages."""

from __future__ import annotations

import json
import re
import shutil
import time
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Context, Decimal

import pytest
from safetensors import safe_open

from . import graphs
from .client import ComfyClient

TRAIN = "ChunkGRPO_TrainLoRA"
PANEL = ".chunk-grpo.monitor"
MANY = 1000  # iterations that nobody waits for


def run_path(server, name):
    return server.output / "chunk_grpo" / name


@pytest.fixture(scope="module")
def finished(comfy_server):
    """A training of three iterations."""
    prompt = graphs.watched_training(7, iterations=3, run_name="finished")
    return ComfyClient(comfy_server.url).run(prompt)


class Panel:
    """The monitor as a person sees it."""

    def __init__(self, page):
        self.tab = page.page
        self.place = self.tab.locator(PANEL)

    def text(self, part):
        return self.place.locator(part).inner_text()

    def wait(self, state, rows=0, seconds=90):
        """Wait for a state and a number of rows; return that number."""
        found = self.tab.wait_for_function(
            """([panel, state, rows]) => {
              const head = document.querySelector(`${panel} .head`);
              if (!head?.querySelector(`.state.${state}`)) return false;
              const found = head.querySelector('.grow').textContent.match(/^(\\d+) \\//);
              return found && Number(found[1]) >= rows && [Number(found[1])];
            }""",
            arg=[PANEL, state, rows],
            timeout=seconds * 1000,
        )
        return found.json_value()[0]  # the page may be drawn again at any moment

    def readouts(self, iterations):
        """The line of numbers with the pointer over each iteration, and that without."""
        canvas = self.place.locator(".reward canvas")
        # On a busy machine the page may not have laid it out yet.
        self.tab.wait_for_function("canvas => canvas.clientWidth > 0", arg=canvas.element_handle())
        found = []
        for iteration in range(1, iterations + 1):
            canvas.evaluate(
                """(canvas, share) => {
                  const box = canvas.getBoundingClientRect();
                  const scale = box.width / canvas.clientWidth;
                  const x = 44 + share * (canvas.clientWidth - 52);
                  canvas.dispatchEvent(new PointerEvent('pointermove', {
                    clientX: box.left + x * scale, clientY: box.top + 20, bubbles: true,
                  }));
                }""",
                iteration / iterations,
            )
            self.tab.wait_for_timeout(80)
            found.append(self.text(".readout >> nth=0"))
        canvas.dispatch_event("pointerleave")
        self.tab.wait_for_timeout(80)
        return found, self.text(".readout >> nth=0")


def shown(number, digits=3):
    """A number as the page writes it."""
    if number != 0 and (abs(number) < 1e-3 or abs(number) >= 1e5):
        return re.sub(r"e([+-])0*", r"e\1", f"{number:.1e}")
    half_up = Context(prec=digits, rounding=ROUND_HALF_UP)
    text = f"{float(half_up.create_decimal(Decimal(number))):.{digits}g}"
    return str(int(float(text))) if float(text).is_integer() else text


@dataclass
class Watched:
    """What was seen of one training in two pages, one of which was loaded again."""

    second: str = ""
    reloaded: int = 0
    before_reload: int = 0
    done: int = 0
    texts: list[str] = field(default_factory=list)
    readouts: tuple = ()
    group: list[str] = field(default_factory=list)
    prompt: dict = field(default_factory=dict)
    values: list = field(default_factory=list)
    after: dict = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def watched(comfy_server, comfy_browser):
    """A training in the page: seen in a second page, after a reload, stopped there and kept."""
    prompt = graphs.watched_training(4, iterations=MANY, run_name="in the page")
    prompt["save"] = graphs.node(
        "ChunkGRPO_SaveLoRA",
        lora=[graphs.find(prompt, TRAIN), 0],
        name="kept/of the page",
        for_diffusers=False,
    )
    seen = Watched()
    try:
        with comfy_browser.apart() as browser:
            page = browser.open()
            page.load_api(prompt, "watched")
            seen.prompt = page.prompt()
            page.page.evaluate("() => window.app.queuePrompt(0, 1)")
            panel = Panel(page)
            panel.wait("running", 1)
            page.page.wait_for_timeout(1500)  # the page keeps its draft of the workflow
            seen.before_reload = panel.wait("running", 2)
            page.page.reload(wait_until="domcontentloaded")
            page.page.wait_for_selector(PANEL, state="attached", timeout=120_000)
            seen.reloaded = panel.wait("running", seen.before_reload)
            other = browser.open()
            other.load_api(prompt, "elsewhere")
            Panel(other).wait("running", 1)
            seen.second = Panel(other).text(".head")
            page.page.locator(f"{PANEL} button.stop").evaluate("(button) => button.click()")
            seen.done = panel.wait("stopped", seen.reloaded)
            Panel(other).wait("stopped", seen.done)
            page.page.wait_for_function("() => window.app.graph.nodes.length > 0")
            comfy = ComfyClient(comfy_server.url)
            view = comfy.get("/chunk_grpo/runs/in%20the%20page")
            panel.tab.wait_for_function(
                "([panel, n]) => document.querySelectorAll(`${panel} .group img`).length === n",
                arg=[PANEL, len(view["group"]["samples"])],
            )
            seen.group = panel.place.locator(".group button").all_inner_texts()
            seen.values = [
                node["widgets_values"]
                for node in page.serialize()["nodes"]
                if node["type"] == TRAIN
            ]
            seen.after = page.prompt()
            seen.errors = page.errors + other.errors
    finally:
        ComfyClient(comfy_server.url).interrupt()
    yield seen


def test_a_second_page_shows_the_training(watched):
    assert "Stop and keep" in watched.second and f"/ {MANY}" in watched.second


def test_a_page_that_is_loaded_again_keeps_its_chart(watched):
    assert watched.reloaded >= watched.before_reload >= 2


def test_stop_and_keep_in_the_page_gives_the_lora(watched, comfy_server):
    folder = run_path(comfy_server, "in the page")
    assert len(graphs.read_lines(folder / "metrics.jsonl")) == watched.done < MANY
    end = time.monotonic() + 20  # the Save node runs after the training
    while not list(comfy_server.loras.glob("kept/*.safetensors")) and time.monotonic() < end:
        time.sleep(0.1)
    (saved,) = comfy_server.loras.glob("kept/*.safetensors")
    with safe_open(saved, "pt") as file, safe_open(folder / "lora.safetensors", "pt") as kept:
        assert sorted(file.keys()) == sorted(kept.keys())
        for name in kept.keys():
            assert file.get_tensor(name).equal(kept.get_tensor(name))


def test_the_newest_group_is_shown_best_first_with_its_advantages(watched, comfy):
    samples = comfy.get("/chunk_grpo/runs/in%20the%20page")["group"]["samples"]
    best_first = sorted(samples, key=lambda sample: -sample["reward"])
    for text, sample in zip(watched.group, best_first, strict=True):
        reward, advantage = text.split()
        assert reward == shown(sample["reward"])
        assert float(advantage) == pytest.approx(sample["advantage"], abs=0.0051)


def test_the_monitor_adds_nothing_to_prompts_and_saved_workflows(watched, comfy):
    assert watched.after == watched.prompt
    widgets = [
        name
        for name, options in graphs.input_options(comfy.object_info(TRAIN)).items()
        if "default" in options
    ]
    (values,) = watched.values
    assert len(values) == len(widgets)


def test_the_pages_had_no_errors(watched):
    assert watched.errors == []


def test_the_monitor_shows_the_numbers_of_the_run_folder(finished, comfy_server, comfy_page):
    """A finished run is chosen from the list; every row is read under the pointer."""
    comfy_page.load_api(graphs.watched_training(5, iterations=3))
    panel = Panel(comfy_page)
    choice = panel.place.locator("select")
    choice.dispatch_event("focus")
    comfy_page.page.wait_for_selector(f"{PANEL} option[value=finished]", state="attached")
    choice.select_option("finished")
    assert panel.wait("finished", 3) == 3
    folder = run_path(comfy_server, "finished")
    rows = graphs.read_lines(folder / "metrics.jsonl")
    held_out = {row["iterations"]: row for row in graphs.read_lines(folder / "held_out.jsonl")}
    texts, newest = panel.readouts(3)
    assert newest == texts[-1]
    for row, text in zip(rows, texts, strict=True):
        done = row["iteration"] + 1
        measured = held_out[max(n for n in held_out if n <= done)]
        assert f"iteration {done} " in text
        assert f" {shown(row['reward_mean'])} ± {shown(row['reward_std'], 2)} " in text
        assert f"held-out {shown(measured['mean'])}" in text
    title, clips = panel.text(".small .readout >> nth=0").split(" chunk ")
    assert title == "clip fraction,"
    legend = [(str(k), shown(v, 2)) for k, v in enumerate(rows[-1]["clip_fraction"], 1)]
    assert list(zip(*[iter(clips.split())] * 2, strict=True)) == legend
    assert panel.text(".small .readout >> nth=1").split()[-1] == shown(rows[-1]["approx_kl"], 2)
    phases = panel.place.locator(".phases").get_attribute("title")
    for name in ("rollout", "update"):
        assert f"{name} {shown(rows[-1]['seconds'][name], 2)} s" in phases
    assert comfy_page.errors == []


CHECK = """() => {
  const node = window.app.graph.nodes.find((n) => n.type === "ChunkGRPO_TrainLoRA");
  node.widgets.find((w) => w.name === "check_only").value = true;
  window.comfyAPI.api.api.dispatchCustomEvent("execution_start", {});
}"""


def test_until_a_training_begins_its_panel_says_that_the_graph_runs(finished, comfy_page):
    """Stated by the events that ComfyUI sends to all pages."""
    comfy_page.load_api(graphs.watched_training(8, iterations=3))
    nothing = Panel(comfy_page).place.locator(".nothing")
    for event, text in (
        ("execution_start", "Running: the training has not begun yet"),
        ("execution_error", "No run yet: press Run"),
    ):
        comfy_page.page.evaluate(
            "(name) => window.comfyAPI.api.api.dispatchCustomEvent(name, {})", event
        )
        assert nothing.inner_text() == text
    comfy_page.page.evaluate(CHECK)
    assert nothing.inner_text() == "Checking: it tries a little and keeps nothing"


def test_the_panel_shows_what_a_check_has_found_until_a_run_takes_its_place(comfy, comfy_page):
    prompt = graphs.watched_training(9, iterations=2, run_name="after the check")
    prompt = graphs.change(prompt, TRAIN, check_only=True)
    comfy_page.load_api(prompt)
    name, data = comfy_page.queue()
    assert name == "execution_success", data
    (key,) = [key for key, each in prompt.items() if each["class_type"] == TRAIN]
    (check,) = comfy.wait(data["prompt_id"], 10).outputs[key]["chunk_grpo_check"]
    found = Panel(comfy_page).place.locator(".check")
    found.wait_for(state="visible")
    texts = dict(
        zip(
            found.locator("dt").all_inner_texts(),
            found.locator("dd").all_inner_texts(),
            strict=True,
        )
    )
    minutes, seconds = map(int, texts["in all"].split(":"))
    assert abs(60 * minutes + seconds - check["seconds"]) <= 0.5
    assert texts["an iteration"].startswith(f"{shown(check['seconds_per_iteration'])} s; 2 of them")
    assert texts["memory"] == f"{check['fitting']} pictures at once fit"
    assert texts["self-test"].startswith(f"passed: error {shown(check['self_test']['error'], 2)}")
    assert f"{shown(check['reward_mean'], 4)} on average" in texts["reward"]
    assert found.locator(".message").all_inner_texts() == []
    run = comfy.run(graphs.change(prompt, TRAIN, check_only=False))
    assert run.outputs[key]["chunk_grpo_run"] == ["after the check"]
    Panel(comfy_page).wait("finished", 2)
    assert not found.is_visible()
    assert comfy_page.errors == []


def test_a_run_that_does_not_learn_shows_its_alarm(finished, comfy_server, comfy_page):
    """The rows of a finished run, with all advantages 0."""
    folder = run_path(comfy_server, "silent")
    shutil.copytree(run_path(comfy_server, "finished"), folder)
    rows = graphs.read_lines(folder / "metrics.jsonl")
    lines = [json.dumps({**row, "advantage_std": 0.0}) for row in rows]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    comfy_page.load_api(graphs.watched_training(5, iterations=3))
    panel = Panel(comfy_page)
    choice, alarms = panel.place.locator("select"), panel.place.locator(".alarms")
    choice.dispatch_event("focus")
    comfy_page.page.wait_for_selector(f"{PANEL} option[value=silent]", state="attached")
    choice.select_option("silent")
    alarms.get_by_text("no-signal").wait_for(state="visible")
    (said,) = ComfyClient(comfy_server.url).get("/chunk_grpo/runs/silent")["alarms"]
    assert alarms.inner_text() == said and alarms.get_attribute("role") == "alert"
    choice.select_option("finished")
    panel.wait("finished", 3)
    comfy_page.page.wait_for_function(f"!document.querySelector('{PANEL} .alarms').textContent")
    assert not alarms.is_visible()
    assert comfy_page.errors == []


def test_a_picture_of_the_group_opens_large(finished, comfy_page):
    comfy_page.load_api(graphs.watched_training(5, iterations=3))
    panel = Panel(comfy_page)
    panel.place.locator("select").dispatch_event("focus")
    comfy_page.page.wait_for_selector(f"{PANEL} option[value=finished]", state="attached")
    panel.place.locator("select").select_option("finished")
    panel.wait("finished", 3)
    panel.place.locator(".group button").first.evaluate("(button) => button.click()")
    box = comfy_page.page.locator(".chunk-grpo-lightbox")
    assert box.locator("img").evaluate("(i) => i.decode().then(() => i.naturalWidth)") == 64
    assert "1 of 4" in box.inner_text()
    comfy_page.page.keyboard.press("Escape")
    assert box.count() == 0


def test_the_panel_lies_inside_its_node_in_both_renderers(finished, comfy_page):
    comfy_page.load_api(graphs.watched_training(6, iterations=3))
    for vue in (False, True):
        comfy_page.use_vue_nodes(vue)
        comfy_page.show_all()
        comfy_page.page.wait_for_selector(PANEL)
        node, panel = comfy_page.page.evaluate(
            """(panel) => {
              const type = 'ChunkGRPO_TrainLoRA';
              const node = window.app.graph.nodes.find((n) => n.comfyClass === type);
              const box = document.querySelector(panel).getBoundingClientRect();
              const { scale, offset } = window.app.canvas.ds;
              const page = window.app.canvas.canvas.getBoundingClientRect();
              const left = (node.pos[0] + offset[0]) * scale + page.left;
              const right = left + node.size[0] * scale;
              return [[left, right], [box.left, box.right, box.height / scale]];
            }""",
            PANEL,
        )
        assert node[0] - 1 <= panel[0] and panel[1] <= node[1] + 1
        assert panel[2] >= 500
    comfy_page.use_vue_nodes(False)
    assert comfy_page.errors == []
