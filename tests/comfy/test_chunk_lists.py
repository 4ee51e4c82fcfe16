"""What the chunk editor computes in the page: edits of a list of sizes, and which run it shows."""

import pytest

from tools.comfyui.server import PACK_NAME

from .chunk_editor import TYPE

pytestmark = pytest.mark.browser
MODULE = f"/extensions/{PACK_NAME}/js/lib/chunk_plan.js"
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
    ("splitNumbers", [["0.40", "1"], 0], ["0.40", "0.40", "1"]),
    ("mergeNumbers", [[0.1, 0.25, 3], 0], [0.175, 3]),
    ("mergeNumbers", [[1, 2.00009, 1], 1], [1, 1.5]),
    ("mergeNumbers", [["1", "2", "3"], 1, "2.5"], ["1", "2.5"]),
    ("formatNumbers", [["0.40", "1"]], "0.40, 1"),
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
