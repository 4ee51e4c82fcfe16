"""People find the nodes by what they do: the words of the search of ComfyUI's page."""

from __future__ import annotations

import pytest

PACK = "ChunkGRPO_"
QUERIES = {
    "rl": "TrainLoRA",
    "reinforcement learning": "TrainLoRA",
    "grpo": ("TrainLoRA", "GRPOPreset", "GRPOSettings", "GRPOObjective", "GRPOExploration"),
    "dpo": ("PreferenceObjective", "TrainLoRA"),
    "preference": ("PreferenceObjective", "PickPictures", "FitTaste"),
    "reward": ("LoadReward", "CombineRewards", "BalanceRewards"),
    "aesthetic": ("LoadReward", "ScoreImages"),
    "score": "ScoreImages",
    "pickscore": "LoadReward",
    "taste": "FitTaste",
    "lora train": "TrainLoRA",
    "align": "TrainLoRA",
}
"""What people type -> the node, or one of the nodes, that must come first."""
MOST = 2
"""Its lowest place in the list of all nodes, ComfyUI's own among them."""
BEHIND_SDPOSE = {"dpo": 8}
"""Its place where names of ComfyUI's own nodes hold the letters by chance."""
SEARCH = """(queries) => {
  const app = document.querySelector("#vue-app").__vue_app__;
  const store = app.config.globalProperties.$pinia._s.get("nodeDef");
  return queries.map((query) =>
    store.nodeSearchService.searchNode(query, [], { limit: 64 }).map((node) => node.name));
}"""

OTHER_SOURCES = """(prefix) => {
  const app = document.querySelector("#vue-app").__vue_app__;
  const store = app.config.globalProperties.$pinia._s.get("nodeDef");
  return Object.values(store.nodeDefsByName)
    .filter(({ name, nodeSource }) => name.startsWith(prefix) && nodeSource.type !== "custom_nodes")
    .map(({ name, nodeSource }) => `${name}: ${nodeSource.type}`);
}"""


def test_every_node_has_words(comfy):
    found = {name: node for name, node in comfy.object_info().items() if name.startswith(PACK)}
    assert len(found) > 20
    if not any("search_aliases" in node for node in found.values()):
        pytest.skip("this version of ComfyUI knows no search words")
    missing = [name for name, node in found.items() if not node.get("search_aliases")]
    assert missing == []


def test_what_people_type_finds_the_right_node(comfy, comfy_page):
    if "search_aliases" not in comfy.object_info(f"{PACK}TrainLoRA"):
        pytest.skip("this version of ComfyUI knows no search words")
    results = comfy_page.page.evaluate(SEARCH, list(QUERIES))
    ranks = {}
    for (query, wanted), names in zip(QUERIES.items(), results, strict=True):
        right = {f"{PACK}{name}" for name in ([wanted] if isinstance(wanted, str) else wanted)}
        places = [place for place, name in enumerate(names, 1) if name in right]
        ranks[query] = min(places, default=None), names[:4]
    print(ranks)
    most = {query: BEHIND_SDPOSE.get(query, MOST) for query in QUERIES}
    late = {query: rank for query, rank in ranks.items() if not 1 <= (rank[0] or 99) <= most[query]}
    assert late == {}


def test_no_node_is_lost_under_the_filter_extensions(comfy, comfy_page):
    """A node with an ``essentials_category`` is: pages up to 1.58 show that tab for core nodes."""
    assert sum(name.startswith(PACK) for name in comfy.object_info()) > 20
    assert comfy_page.page.evaluate(OTHER_SOURCES, PACK) == []
