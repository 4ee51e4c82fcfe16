"""A reward's network is a model like any other to ComfyUI's memory management."""

from __future__ import annotations

import functools
import importlib.util
import sys
import tempfile
from pathlib import Path

from .user_folder import user_folder

FILE = Path(__file__).resolve().parents[2] / "tiny_rewards.py"
CAPTIONS = ["a photo of a cat", "red dog", "a blue cat"]


@functools.cache
def tiny(lab):
    """Return the small networks of the reward tests; here the core is a part of the pack."""
    name = "chunk_grpo_core.rewards.networks.clip"
    sys.modules[name] = lab.module(name)
    try:
        spec = importlib.util.spec_from_file_location("tiny_rewards", FILE)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        del sys.modules["chunk_grpo_core.rewards.networks.clip"]


@functools.cache
def models(lab):
    """Write a tiny PickScore where ComfyUI keeps reward models; return that folder."""
    import folder_paths

    bridge = lab.module("nodes.bridge.rewards")
    folder = Path(tempfile.mkdtemp(prefix="reward-models-"))
    make = tiny(lab)
    shape = make.clip_shape(make.write_clip_tokenizer(folder / "pickscore"))
    make.write_clip(folder / "pickscore", make.reference_clip(shape))
    lab.module("chunk_grpo_core.rewards.networks.pickscore").CLIP_H = shape
    folder_paths.add_model_folder_path(bridge._FOLDER, str(folder), is_default=True)
    return folder


def unmanaged(lab):
    """Load the same reward without ComfyUI."""
    load_reward = lab.module("chunk_grpo_core.rewards").load_reward
    return load_reward("pickscore", folders=[models(lab)])


def images(lab):
    """Three small pictures."""
    return tiny(lab).pictures(3)


def managed(lab, **inputs):
    """Load it by the node."""
    models(lab)
    node = lab.module("nodes.load_reward").LoadReward
    return node.execute("pickscore", "#000000", **inputs).result[0]


def loaded_by_comfyui():
    """Whose weights ComfyUI counts."""
    import comfy.model_management as memory

    return [entry.model for entry in memory.current_loaded_models]


def test_scores_and_record_are_those_of_the_reward(lab):
    import torch

    reward, plain = managed(lab), unmanaged(lab)
    found, expected = reward.score(images(lab), CAPTIONS), plain.score(images(lab), CAPTIONS)
    assert torch.equal(found.values, expected.values) and found.valid.all()
    assert expected.values.std() > 1e-3
    assert (reward.name, reward.fingerprint) == (plain.name, plain.fingerprint)


def test_the_network_is_loaded_for_a_score_and_makes_room_for_others(lab):
    import comfy.model_management as memory
    import torch

    memory.unload_all_models()
    reward = managed(lab)
    assert loaded_by_comfyui() == [], "nothing is on the card before the first score"
    first = reward.score(images(lab), CAPTIONS).values
    assert loaded_by_comfyui() == [reward.patcher]
    assert reward.patcher.loaded_size() > 0
    weights = sum(p.nbytes for p in reward.reward.network.parameters())
    assert reward.patcher.model_size() >= weights
    memory.free_memory(1e30, memory.get_torch_device())
    assert loaded_by_comfyui() == []
    assert torch.equal(reward.score(images(lab), CAPTIONS).values, first)
    memory.unload_all_models()


def test_a_move_follows_the_device_of_the_patcher(lab):
    import comfy.model_management as memory
    import torch

    reward = managed(lab)
    moves = []
    inner = reward.reward.network.to

    def to(*args, **kwargs):
        moves.append(args)
        return inner(*args, **kwargs)

    reward.patcher.model.to = to
    try:
        reward.score(images(lab), CAPTIONS)
        memory.unload_all_models()
    finally:
        del reward.patcher.model.to
    devices = [d for args in moves for d in args if isinstance(d, torch.device)]
    assert devices[-1] == memory.text_encoder_offload_device(), moves


def test_it_works_inside_inference_mode_and_stays_a_plain_tensor(lab):
    import torch

    with torch.inference_mode():  # as ComfyUI runs every node
        reward = managed(lab)
        reward.score(images(lab), CAPTIONS)
    assert not any(p.is_inference() for p in reward.reward.network.parameters())
    values = reward.score(images(lab), CAPTIONS).values
    assert values.dtype == torch.float32 and not values.is_inference()


def test_parts_of_a_combination_are_managed(lab):
    import comfy.model_management as memory
    import torch

    memory.unload_all_models()
    nodes = lab.module("nodes.rewards")
    reward = managed(lab)
    bright = lab.module("nodes.load_reward").LoadReward.execute("brightness", "#000000").result[0]
    both = nodes.CombineRewards.execute(bright, reward, 1.0, 0.5).result[0]
    found = both.score(images(lab), CAPTIONS).values
    assert loaded_by_comfyui() == [reward.patcher]
    parts = [part.score(images(lab), CAPTIONS).values for part in (bright, reward)]
    torch.testing.assert_close(found, parts[0] + 0.5 * parts[1])
    memory.unload_all_models()


def test_the_file_and_the_settings_of_the_node_count(lab):
    import torch

    plain = unmanaged(lab).score(images(lab), CAPTIONS).values
    named = managed(lab, file="pickscore/model.safetensors", settings="batch_size = 1\n# why\n")
    torch.testing.assert_close(named.score(images(lab), CAPTIONS).values, plain)
    half = managed(lab, settings="dtype=bfloat16")
    assert next(half.reward.network.parameters()).dtype == torch.bfloat16
    assert half.fingerprint != named.fingerprint


def test_a_name_that_leads_out_of_the_folders_is_refused(lab):
    for file, kind in (("../model.safetensors", ValueError), ("none.pt", FileNotFoundError)):
        try:
            managed(lab, file=file)
        except kind as error:
            assert file in str(error), error
        else:
            raise AssertionError(f"{file} was taken")


def test_missing_weights_are_named_and_nothing_is_downloaded(lab):
    import socket

    node = lab.module("nodes.load_reward").LoadReward
    folder = str(models(lab) / "imagereward")

    def refuse(*_):
        raise AssertionError("the network was used")

    connect, socket.socket.connect = socket.socket.connect, refuse
    try:
        node.execute("imagereward", "#000000")
    except FileNotFoundError as error:
        message = str(error)
    else:
        raise AssertionError("weights came from nowhere")
    finally:
        socket.socket.connect = connect
    for word in ("ImageReward.pt", "1.79 GB", "licence", folder):
        assert word in message, (word, message)


def test_allow_download_fetches_only_what_is_missing(lab):
    bridge = lab.module("nodes.bridge.rewards")
    folder, asked = models(lab), []
    original = bridge.fetch_file

    def fetch(file, target, *, progress):
        progress(0.5)
        asked.append((file.name, Path(target)))

    bridge.fetch_file = fetch
    try:
        managed(lab, allow_download=True)
        assert asked == [], "all files of pickscore are there"
        with user_folder(b"download imagereward"):
            bridge.fetch_missing("imagereward")
    finally:
        bridge.fetch_file = original
    assert ("ImageReward.pt", folder) in asked


def test_cancel_stops_a_download(lab):
    import comfy.model_management as memory

    bridge = lab.module("nodes.bridge.rewards")
    models(lab)
    original = bridge.fetch_file

    def fetch(file, target, *, progress):
        memory.interrupt_current_processing()
        progress(0.1)
        raise AssertionError("Cancel was ignored")

    bridge.fetch_file = fetch
    try:
        with user_folder(b"download imagereward"):
            bridge.fetch_missing("imagereward")
    except memory.InterruptProcessingException:
        pass
    finally:
        bridge.fetch_file = original
        memory.interrupt_current_processing(False)
