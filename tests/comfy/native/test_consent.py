"""What a workflow may not decide alone takes a line in a file on the server."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from .user_folder import user_folder


def refusal(check, *values: Any) -> str:
    try:
        check(*values)
    except ValueError as error:
        return str(error)
    return ""


NEAR = ("http://127.0.0.1:8181", "http://localhost", "https://[::1]:9/x", "http://127.8.9.1:1")
FAR = (
    "http://gpu-box:8181", "https://example.test", "http://192.168.1.2:1", "http://0.0.0.0:8181",
    "http://localhost.evil.test", "http://127.0.0.1.evil.test", "http://127.1", "http://2130706433",
    "http://[fe80::1]:1", "http://0x7f.0.0.1",
)  # fmt: skip


def test_pictures_go_to_this_machine_alone_unless_the_owner_says_so(lab):
    check = lab.module("nodes.bridge.consent").check_may_send
    with user_folder() as folder:
        assert [url for url in NEAR if refusal(check, "remote_http", url)] == []
        for url in FAR:
            message = refusal(check, "remote_http", url)
            assert f"'send to {url}'" in message, message
            assert str(folder / "chunk_grpo_allow.txt") in message


def test_the_line_that_the_error_names_is_the_consent(lab):
    consent = lab.module("nodes.bridge.consent")
    for url in FAR:
        with user_folder() as folder:
            message = refusal(consent.check_may_send, "remote_http", url)
            line = message.partition("add the line '")[2].partition("'")[0]
            file = Path(message.rpartition("' to ")[2].removesuffix(" and run again"))
            assert file == folder / "chunk_grpo_allow.txt"
            file.write_text(f"# mine\n\n  {line}  \n")
            assert refusal(consent.check_may_send, "vlm_judge", url) == ""
            assert refusal(consent.check_may_send, "vlm_judge", "http://other.test")
            assert refusal(consent.check_may_download, "pickscore")


def test_an_address_is_the_same_in_other_letters_and_with_the_usual_port(lab):
    check = lab.module("nodes.bridge.consent").check_may_send
    with user_folder(b"\xef\xbb\xbfsend   to HTTP://Gpu-Box:80/\r\nsend to https://b.test:443\r\n"):
        for url in ("http://gpu-box", "http://gpu-box:80/under/here", "https://B.test"):
            assert refusal(check, "remote_http", url) == ""
        for url in (
            "https://gpu-box",
            "http://gpu-box:8080",
            "http://b.test",
            "http://gpu-box.test",
        ):
            assert refusal(check, "remote_http", url)


def test_only_whole_lines_count(lab):
    consent = lab.module("nodes.bridge.consent")
    lines = (
        b"# send to http://a.test\nsend http://a.test\nhttp://a.test\ndownload\ndownloads clip\n"
    )
    with user_folder(lines + b"send to *\nsend to\ndownload pick score\n"):
        assert refusal(consent.check_may_send, "remote_http", "http://a.test")
        assert refusal(consent.check_may_download, "pickscore")
    with user_folder(b"\xff\xfe\x00"):
        assert "cannot be read" in refusal(consent.check_may_download, "pickscore")


def test_weights_are_downloaded_only_with_the_owners_consent(lab):
    rewards = lab.module("nodes.bridge.rewards")
    asked = []

    def fetch(file, folder, **options):
        asked.append(file.name)

    before, rewards.fetch_file = rewards.fetch_file, fetch
    try:
        with user_folder() as folder:
            message = refusal(rewards.fetch_missing, "hpsv2")
            assert "'download hpsv2'" in message and asked == []
            (folder / "chunk_grpo_allow.txt").write_text("download hpsv2\n")
            rewards.fetch_missing("hpsv2")
            assert asked
            assert "'download imagereward'" in refusal(rewards.fetch_missing, "imagereward")
    finally:
        rewards.fetch_file = before


def test_every_setting_that_is_a_path_or_an_address_is_no_setting_of_the_node(lab):
    import inspect

    from chunk_grpo_core.rewards import networks  # noqa: F401
    from chunk_grpo_core.rewards.geneval.load import load_geneval
    from chunk_grpo_core.rewards.networks import (
        aesthetic,
        clipscore,
        hpsv2,
        hpsv3,
        imagereward,
        pickscore,
    )
    from chunk_grpo_core.rewards.networks.network import LoadOptions
    from chunk_grpo_core.rewards.remote.http import JsonServer

    node = lab.module("nodes.load_reward")
    makers = [load_geneval, LoadOptions, JsonServer, aesthetic.load_aesthetic]
    makers += [clipscore.load_clipscore, hpsv2.load_hpsv2, hpsv3.load_hpsv3]
    makers += [imagereward.load_imagereward, pickscore.load_pickscore]
    paths = {
        name
        for make in makers
        for name, parameter in inspect.signature(make).parameters.items()
        if "Path" in str(parameter.annotation) or name == "url"
    }
    assert {"path", "folders", "tokenizers", "url"} <= paths
    assert paths <= set(node._OF_OTHER_INPUTS)
    for name in sorted(paths):
        assert name in refusal(node._check, "pickscore", "#2060c0", f"{name}=/etc/passwd", "")


def test_a_run_folder_that_is_a_link_to_elsewhere_is_refused(lab):
    import folder_paths

    host = lab.module("nodes.bridge.host")
    with tempfile.TemporaryDirectory() as folder:
        before = folder_paths.get_output_directory()
        folder_paths.set_output_directory(folder)
        try:
            runs, outside = host.output_folder(), Path(folder, "outside")
            runs.mkdir()
            outside.mkdir()
            (runs / "linked").symlink_to(outside, target_is_directory=True)
            assert "through a link" in refusal(host.run_folder, "linked")
            assert host.run_folder("plain") == runs / "plain"
        finally:
            folder_paths.set_output_directory(before)


def test_a_lora_name_has_few_folders(lab):
    host = lab.module("nodes.bridge.host")
    assert host.lora_path("a/b/c/d/e").name == "e.safetensors"
    assert "folders" in refusal(host.lora_path, "a/b/c/d/e/f")
    assert refusal(host.lora_path, "x" * 78 + ".safetensors") == ""
