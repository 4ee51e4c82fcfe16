"""Progress, interrupt, events and folders of the running ComfyUI."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch

from chunk_grpo_core.disk.names import safe_name

from .page_server import page_server


def test_progress_carries_the_picture(lab):
    import comfy.utils

    host = lab.module("nodes.bridge.host")
    calls = []
    comfy.utils.set_progress_bar_global_hook(lambda *args, **kwargs: calls.append((args, kwargs)))
    try:
        bar = host.progress_bar(10, node_id="7")
        host.show_progress(bar, 3, torch.ones(4, 6, 3))
        host.show_progress(bar, 10)
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
    (value, total, preview), keywords = calls[0]
    assert (value, total, keywords["node_id"]) == (3, 10, "7")
    assert preview[0] == "JPEG" and preview[1].size == (6, 4)
    assert preview[1].getpixel((0, 0)) == (255, 255, 255)
    assert calls[1][0] == (10, 10, None)


def test_interrupt_passes_through(lab):
    import comfy.model_management as memory

    host = lab.module("nodes.bridge.host")
    host.check_interrupt()
    memory.interrupt_current_processing()
    try:
        host.check_interrupt()
    except memory.InterruptProcessingException:
        host.check_interrupt()  # one Cancel stops one run
    else:
        raise AssertionError("Cancel was ignored")


def test_events_go_to_the_page_that_queued(lab):
    host = lab.module("nodes.bridge.host")
    sent = []

    class Fake:
        client_id = "who asked"

        def send_sync(self, *message):
            sent.append(message)

    with page_server(None):
        host.send_event("chunk_grpo.metrics", {})  # nobody to tell
    with page_server(Fake()):
        host.send_event("chunk_grpo.metrics", {"reward": 1.0})
    assert sent == [("chunk_grpo.metrics", {"reward": 1.0}, None)]  # to every page


def test_names_are_safe_and_folders_are_comfyuis(lab):
    import folder_paths

    host = lab.module("nodes.bridge.host")
    for name in ("run", "红色 2", "a.b-c+d_e 1", " padded "):
        assert safe_name(name) == name.strip()
    odd = (
        "",
        "..",
        "a/b",
        "a\\b",
        ".hidden",
        "-x",
        "a.",
        "a:b",
        "CON",
        "nul.txt",
        "x" * 81,
        "a\nb",
    )
    for name in odd:
        try:
            safe_name(name)
        except ValueError:
            continue
        raise AssertionError(f"accepted {name!r}")
    with tempfile.TemporaryDirectory() as folder:
        before, loras = folder_paths.get_output_directory(), folder_paths.get_folder_paths("loras")
        folder_paths.set_output_directory(folder)
        try:
            with host.new_run_folder() as first, host.new_run_folder() as second:
                assert (first.name, second.name) == ("run_0001", "run_0002")
            assert not first.exists()
            (host.run_folder("run_0041") / "plots").mkdir(parents=True)
            (host.output_folder() / "run_x").mkdir()
            with host.new_run_folder() as third:
                assert third.name == "run_0042"
            assert host.run_folder("mine") == Path(folder, "chunk_grpo", "mine")
        finally:
            folder_paths.set_output_directory(before)
    assert host.lora_path("style/red.safetensors") == Path(loras[0], "style", "red.safetensors")
    try:
        host.lora_path("../escape")
    except ValueError:
        return
    raise AssertionError(f"left the folder {os.fspath(loras[0])}")


def test_no_lora_file_is_overwritten(lab):
    import folder_paths

    host = lab.module("nodes.bridge.host")
    before = folder_paths.folder_names_and_paths["loras"]
    with tempfile.TemporaryDirectory() as folder:
        folder_paths.folder_names_and_paths["loras"] = ([folder], before[1])
        try:
            names = []
            for _ in range(3):
                with host.new_lora_path("style/red") as path:
                    with host.new_lora_path("style/red") as unused:
                        assert unused != path  # nobody else gets it meanwhile
                    path.write_bytes(b"LoRA")
                names.append(host.lora_name(path))
            assert len(list(Path(folder, "style").iterdir())) == 3
            assert names == [os.path.join("style", f"red{n}.safetensors") for n in ("", "_2", "_3")]
        finally:
            folder_paths.folder_names_and_paths["loras"] = before
