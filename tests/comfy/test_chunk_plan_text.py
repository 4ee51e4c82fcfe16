"""The page reads and edits the text of chunk plans as the library does."""

import random

import pytest

from chunk_grpo_core.method.chunks import ChunkPlan, parse_weights
from chunk_grpo_core.method.dynamics import DynamicsCurve
from chunk_grpo_core.method.planners import needs_curve, read_plan
from tools.comfyui.server import PACK_NAME

from .chunk_editor import TYPE

pytestmark = pytest.mark.browser
MODULE = f"/extensions/{PACK_NAME}/js/lib/chunk_plan.js"


CURVE = DynamicsCurve(
    mean=tuple(0.9 - 0.1 * step + 0.008 * step * step for step in range(13)),
    std=(0.0,) * 13,
    prompts=1,
    samples=2,
    sigmas=tuple(1.0 - step / 13 for step in range(14)),
    rule="flow",
    eta=0.7,
    model="m",
)
SIZES_BY_HAND = (
    "2, 3, 4, 3", "[2,3,4,3]", "(2;3 4\t3)", " 2 3 4 3 ", "2,3,4,3,", ",12", "12", "0, 12", "13",
    "-1, 13", "+12", "1.0, 11", "1_2", "１２", "٣, ٩", "²", "step", "STEP", "step 2", "whole",
    "[whole]", "whole,", "size 4", "size,5", "size 0", "size 12", "size 13", "size", "size 4 4",
    "size x", "", " ", "[]", "two", "cut 4", "cut 4 2", "cut 0", "cut 13", "cut 4 4", "cut",
    "cut 4 2 1", "cut;4", "[cut 4]", "CUT,4", "cut x", "adaptive", "adaptive 2 4", "adaptive 4 2",
    "adaptive 2", "adaptive,2,4", "adaptive 13 14", "adaptive 0 4", "\x1c12\x85", "\ufeff12",
    "6\u30006", "cut\xa04", "size\xa04",
)  # fmt: skip
WEIGHTS_BY_HAND = (
    "uniform", "Uniform ", "[uniform]", "uniform 1", "curve", "curve 1", "softmax", "softmax 0.5",
    "softmax .5", "softmax 5.", "softmax 0", "softmax -1", "softmax x", "softmax 1e3",
    "softmax ٢", "1, 2, 3", "1 2 3", "1, 2", "0, 0, 0", "1, 0, 0", "1, -1, 1", "-0, 1, 1",
    "1e-3, .5, 5.", "1_0, 2, 3", "1__0, 2, 3", "_1, 2, 3", "nan, 1, 1", "inf, 1, 1",
    "Infinity 1 1", "-inf 1 1", "infi 1 1", "0x1, 1, 1", "", "1, 2, x", "٣, 1, 1", "1,2,3,",
    "1e, 2, 3", "e1, 2, 3", "., 1, 1", "+.5e+2, 1, 1",
)  # fmt: skip


def made_up(pieces, count, seed):
    draw = random.Random(seed)
    return ["".join(draw.choices(pieces, k=draw.randint(1, 7))) for _ in range(count)]


def library_sizes(text, steps):
    try:
        return list(read_plan(text, steps, CURVE).sizes)
    except ValueError:
        return "wrong"


def test_the_page_reads_sizes_as_the_library_does(comfy_page):
    pieces = [
        "2",
        "3",
        "12",
        "0",
        "7",
        ",",
        " ",
        ";",
        ", ",
        "size ",
        "cut ",
        "adaptive ",
        "step",
        "[",
        "]",
        "x",
    ]
    texts = [*SIZES_BY_HAND, *made_up(pieces, 3000, 1)]
    read = comfy_page.page.evaluate(
        f"""async (cases) => {{
          const {{ readSizes }} = await import("{MODULE}");
          return cases.map(([text, ran]) => readSizes(text, 12, ran));
        }}""",
        [[text, [12] if needs_curve(text) else None] for text in texts],
    )
    different = []
    for text, answer in zip(texts, read, strict=True):
        ours = library_sizes(text, 12)
        theirs = "wrong" if answer["problem"] else answer["sizes"]
        if needs_curve(text) and ours != "wrong":
            ours = [12]  # the page takes what the server made of it
        if ours != theirs:
            different.append((text, ours, answer))
    assert different == []
    right = [text for text in texts if library_sizes(text, 12) != "wrong"]
    assert 20 < len(right) < len(texts) - 20


def library_weights(text, plan):
    try:
        return parse_weights(text, plan, CURVE).weights
    except ValueError:
        return "wrong"


def test_the_page_reads_weights_as_the_library_does(comfy_page):
    plan = ChunkPlan((2, 4, 6))
    pieces = [
        "1",
        "0",
        ".5",
        "0.25",
        ",",
        " ",
        ", ",
        "e1",
        "-",
        "_",
        "softmax ",
        "curve",
        "uniform",
        "inf",
    ]
    texts = [*WEIGHTS_BY_HAND, *made_up(pieces, 3000, 2)]
    read = comfy_page.page.evaluate(
        f"""async ([texts, curve]) => {{
          const {{ readWeights }} = await import("{MODULE}");
          const shown = ({{ problem, weights }}) => [problem, weights?.map(String) ?? null];
          return texts.map((text) => shown(readWeights(text, [2, 4, 6], curve)));
        }}""",
        [texts, CURVE.to_json()],
    )
    different = []
    for text, (problem, weights) in zip(texts, read, strict=True):
        ours = library_weights(text, plan)
        theirs = "wrong" if problem else weights and tuple(map(float, weights))
        same = theirs == ours
        if isinstance(ours, tuple) and isinstance(theirs, tuple):
            same = theirs == pytest.approx(ours, rel=1e-12)
        if not same:
            different.append((text, ours, theirs))
    assert different == []


EDITS = (
    ("moveBoundary", [[2, 3, 4, 7], 1, 6.6], [2, 5, 2, 7]),
    ("moveBoundary", [[2, 3], 0, -9], [1, 4]),
    ("moveBoundary", [[2, 3], 0, 9], [4, 1]),
    ("splitChunk", [[2, 7], 1], [2, 4, 3]),
    ("splitChunk", [[2, 7], 1, 3.2], [2, 1, 6]),
    ("splitChunk", [[2, 7], 1, 99], [2, 6, 1]),
    ("splitChunk", [[1], 0], None),
    ("mergeChunks", [[2, 3, 4], 1], [2, 7]),
    ("mergeChunks", [[2, 3], 1], None),
    ("weightsAfterSplit", ["0.40, 1", 2, 0], "0.40, 0.40, 1"),
    ("weightsAfterSplit", ["curve", 2, 0], "curve"),
    ("weightsAfterSplit", ["1, 2, 3", 2, 0], "1, 2, 3"),
    ("weightsAfterMerge", ["0.1, 0.25, 3", 3, 0], "0.175, 3"),
    ("weightsAfterMerge", ["1, 2.00009, 1", 3, 1], "1, 1.5"),
    ("weightsAfterMerge", ["softmax 0.5", 2, 0], "softmax 0.5"),
)


def test_edits_keep_the_steps_and_carry_the_weights(comfy_page):
    results = comfy_page.page.evaluate(
        f"""async (edits) => {{
          const plans = await import("{MODULE}");
          return edits.map(([name, values]) => plans[name](...values));
        }}""",
        [edit[:2] for edit in EDITS],
    )
    assert results == [wanted for _, _, wanted in EDITS]


# Which run a page shows again


def run_of(workflow, nodes, output):
    extra = {"extra_pnginfo": {"workflow": {"id": workflow}}} if workflow else {}
    types = {key: {"class_type": kind} for key, kind in nodes.items()}
    return {"prompt": [0, "x", types, extra, []], "outputs": {"8": output}}


NO_ID = "00000000-0000-0000-0000-000000000000"
OURS = {"8": TYPE, "9": "PreviewImage"}


@pytest.mark.parametrize(
    "runs, found",
    [
        ([("a", {"8": TYPE}, "new"), ("a", {"8": TYPE}, "old")], "new"),
        ([("b", OURS, "theirs"), ("a", {"8": TYPE}, "ours")], "ours"),
        ([("a", {"8": "Other"}, "other")], None),
        ([(None, OURS, "through the API")], "through the API"),
        ([(None, {"8": TYPE, "9": "SaveImage"}, "another graph")], None),
        (
            [(NO_ID, {"8": TYPE, "7": TYPE}, "another file"), (NO_ID, OURS, "this file")],
            "this file",
        ),
        ([], None),
    ],
)
def test_the_history_is_searched_for_the_newest_run_of_this_node(runs, found, comfy_page):
    result = comfy_page.page.evaluate(
        f"""async ([runs, type, open]) => {{
          const {{ newestOutput }} = await import("/extensions/{PACK_NAME}/js/lib/history.js");
          return newestOutput(runs, "8", type, "a", (id) => open[id]);
        }}""",
        [[run_of(*run) for run in runs], TYPE, OURS],
    )
    assert result == found
