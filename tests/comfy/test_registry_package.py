"""A server with the pack as the registry gives it: the files of its package, unpacked."""

from __future__ import annotations

import json
import shutil
import urllib.request

import pytest
from registry_package import ROOT, all_files, ignored
from schemas import node_schemas

from tools.comfyui.server import PACK_NAME, ComfyServer


@pytest.mark.slow
def test_an_installed_package_has_every_page_picture_template_and_locale(comfy_tree, tmp_path):
    names = all_files()
    left_out = ignored(names, tmp_path / "rules")
    for name in set(names) - left_out:
        place = tmp_path / PACK_NAME / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, place)
    (tmp_path / "base").mkdir()
    with ComfyServer(tmp_path / "base", packs=(tmp_path / PACK_NAME,)) as server:

        def get(path: str) -> bytes:
            with urllib.request.urlopen(f"{server.url}{path}", timeout=60) as answer:
                return answer.read()

        told = json.loads(get("/object_info"))
        assert set(node_schemas()) <= set(told)
        for name in node_schemas():
            assert get(f"/extensions/{PACK_NAME}/docs/{name}.md")
            assert get(f"/extensions/{PACK_NAME}/docs/images/{name}.jpg")
        templates = sorted(file.stem for file in (ROOT / "example_workflows").glob("*.json"))
        assert sorted(json.loads(get("/api/workflow_templates"))[PACK_NAME]) == templates
        for name in templates:
            assert get(f"/api/workflow_templates/{PACK_NAME}/{name}.json")
            assert get(f"/api/workflow_templates/{PACK_NAME}/{name}.jpg")
        assert {"en", "ja", "ko", "zh"} <= set(json.loads(get("/i18n")))
        scripts = [f for f in json.loads(get("/extensions")) if f"/{PACK_NAME}/" in f]
        assert len(scripts) == len(list((ROOT / "web" / "js").rglob("*.js")))
        assert json.loads(get("/global_subgraphs"))
