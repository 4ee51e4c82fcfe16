"""The embedded tiny FLUX as MODEL, CLIP and VAE computes what the library computes."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import torch

from .models import LATENT, fill, noise, snapshot

CAPTIONS = (
    "a small red circle on a blue background",
    "two large green squares on a red background",
)


@contextlib.contextmanager
def _asset(lab):
    """Random weights in the place of the embedded file; yields (library model, nodes' triple)."""
    core = lab.module("chunk_grpo_core.models.tiny.model")
    tiny = lab.module("nodes.bridge.tiny")
    original = tiny.ASSET
    with tempfile.TemporaryDirectory() as folder:
        tiny.ASSET = Path(folder, "tiny.safetensors")
        flux = core.initialise(0)
        fill(flux.transformer, std=0.1)
        core.save_tiny_flux(flux, tiny.ASSET, {})
        try:
            with torch.inference_mode():
                yield core.load_tiny_flux(tiny.ASSET), tiny.load_tiny()
        finally:
            tiny.ASSET = original


def _encode(clip, text):
    import nodes

    return nodes.CLIPTextEncode().encode(clip, text)[0]


def _policy(lab, triple, captions=CAPTIONS, **options):
    model, clip, vae = triple
    lora = lab.module("chunk_grpo_core.lora.adapter").LoraConfig(rank=4, alpha=8.0)
    conditioning = {text: _encode(clip, text) for text in captions}
    policy = lab.module("nodes.bridge.policy").NativePolicy
    return policy(model, vae, conditioning, LATENT, lora, 0, **options)


def test_native_velocity_equals_diffusers(lab):
    predict = lab.module("chunk_grpo_core.models.flux.policy").predict_velocity
    with _asset(lab) as (flux, triple):
        policy = _policy(lab, triple)
        worst = 0.0
        for text in CAPTIONS:
            features, pooled = flux.text.encode([text, text])
            for t in (1.0, 0.6, 0.1):
                with torch.no_grad():
                    x_t, times = noise(2), torch.full((2,), t)
                    want = predict(flux.transformer, x_t, times, features, pooled)
                    got = policy.run(lambda v, x=x_t, t=t, text=text: v(x, t, text).detach())
                worst = max(worst, float((got - want).abs().max() / want.abs().max()))
        print("native against diffusers, relative", worst)
        assert worst <= 1e-5, worst


def _assert_same_pictures(lab, flux, triple):
    """EmptySD3LatentImage, CLIPTextEncode, KSampler 'simple', VAEDecode against the library."""
    from comfy_extras.nodes_sd3 import EmptySD3LatentImage

    import nodes as comfy_nodes

    model, clip, vae = triple
    latent = EmptySD3LatentImage.execute(64, 64, 2).args[0]
    assert lab.module("nodes.bridge.latents").latent_shape_of(model, latent) == LATENT
    positive, negative = _encode(clip, CAPTIONS[0]), _encode(clip, "")
    assert positive[0][0].shape == (1, 8, 96)
    assert positive[0][1]["pooled_output"].shape == (1, 64)
    (drawn,) = comfy_nodes.KSampler().sample(
        model, 7, 5, 1.0, "euler", "simple", positive, negative, latent
    )
    (images,) = comfy_nodes.VAEDecode().decode(vae, drawn)
    core = lab.module("chunk_grpo_core.models.tiny.model")
    want = core.sample_images(flux, [CAPTIONS[0]] * 2, seed=7, steps=5)
    assert images.shape == (2, 64, 64, 3)
    torch.testing.assert_close(images, want, rtol=0, atol=2e-3)


def test_standard_nodes_draw_the_librarys_pictures(lab):
    with _asset(lab) as (flux, triple):
        _assert_same_pictures(lab, flux, triple)


def test_the_embedded_file_draws_the_librarys_pictures(lab):
    core = lab.module("chunk_grpo_core.models.tiny.model")
    with torch.inference_mode():
        triple = lab.module("nodes.bridge.tiny").load_tiny()
        _assert_same_pictures(lab, core.load_tiny_flux(), triple)


def test_vae_is_the_codec(lab):
    import nodes

    with _asset(lab) as (flux, triple):
        images = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0))
        (latent,) = nodes.VAEEncode().encode(triple[2], images)
        want = flux.codec.encode(images)
        torch.testing.assert_close(latent["samples"], want, rtol=0, atol=1e-5)
        decoded = _policy(lab, triple).decode(latent["samples"])
        torch.testing.assert_close(decoded, flux.codec.decode(want), rtol=0, atol=1e-5)
        assert decoded.dtype == torch.float32 and not decoded.is_inference()
        assert triple[2].decode_tiled(latent["samples"]).shape == (2, 64, 64, 3)
        assert triple[2].encode(torch.rand(1, 66, 70, 3)).shape == (1, 16, 8, 8)


def test_unknown_words_reach_the_user(lab):
    with _asset(lab) as (_, (_, clip, _)):
        try:
            _encode(clip, "a small red elephant")
        except ValueError as error:
            assert "elephant" in str(error) and "circle" in str(error)
        else:
            raise AssertionError("an unknown word was accepted")


def test_clones_and_saved_states_work(lab):
    """What checkpoint-saving and LoRA nodes ask of the objects."""
    import comfy.sd

    with _asset(lab) as (_, (model, clip, vae)):
        assert clip.clone().get_sd().keys() == clip.get_sd().keys() != set()
        assert vae.get_sd()
        lora = _policy(lab, (model, clip, vae)).lora_model()
        loaded, loaded_clip = comfy.sd.load_lora_for_models(model, clip, lora, 1.0, 1.0)
        assert len(loaded.patches) == len(lora) // 3 and _encode(loaded_clip, CAPTIONS[0])


def test_the_lora_for_diffusers_is_the_trained_function(lab):
    """The converted file, merged into the library's transformer, gives the native velocity."""
    predict = lab.module("chunk_grpo_core.models.flux.policy").predict_velocity
    export = lab.module("chunk_grpo_core.lora.files")
    with _asset(lab) as (flux, triple):
        adapter = (policy := _policy(lab, triple)).adapter
        generator = torch.Generator().manual_seed(1)
        state = adapter.state_dict()
        adapter.load_state_dict(
            {n: 0.05 * torch.randn(t.shape, generator=generator) for n, t in state.items()}
        )
        got = policy.run(lambda v: v(noise(2), 0.6, CAPTIONS[0]).detach())
        features, pooled = flux.text.encode([CAPTIONS[0]] * 2)
        times = torch.full((2,), 0.6)
        base = predict(flux.transformer, noise(2), times, features, pooled)
        lora = export.convert_lora(policy.lora_model(), "diffusers")
        for name in [name for name in lora if name.endswith(".lora_A.weight")]:
            module = flux.transformer.get_submodule(name.removeprefix("transformer.")[:-14])
            module.weight += lora[name.replace("lora_A", "lora_B")] @ lora[name]
        want = predict(flux.transformer, noise(2), times, features, pooled)
        assert float((want - base).abs().max()) > 0.1
        torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


def test_the_trainer_trains_it(lab):
    """The library's loop on this policy, under inference mode as in a node's execute()."""
    config = lab.module("chunk_grpo_core.train.config")
    trainer = lab.module("chunk_grpo_core.train.trainer")
    events = lab.module("chunk_grpo_core.train.events")
    schedule = lab.module("chunk_grpo_core.method.schedule")
    chunks = lab.module("chunk_grpo_core.method.chunks")
    reward = lab.module("chunk_grpo_core.models.tiny.reward").TinyWorldReward()
    rows = []

    def listen(event):
        if isinstance(event, events.IterationEnd):
            rows.append(dict(event.metrics))

    with _asset(lab) as (_, triple):
        policy = _policy(lab, triple)
        policy.run(lambda velocity: None)
        before = snapshot(triple[0])
        settings = config.TrainConfig(
            grid=schedule.shifted_grid(5),
            plan=chunks.fixed_size_plan(2, 4),
            iterations=2,
            prompts_per_iteration=2,
            group_size=4,
        )
        with torch.inference_mode(False):
            loop = trainer.Trainer(policy, reward, CAPTIONS, settings, listener=listen)
            loop.train()
        assert snapshot(triple[0]) == before
        assert [row["ratio_error_first_update"] for row in rows] == [0.0, 0.0]
        moved = policy.adapter.state_dict()
        assert any(float(t.abs().sum()) > 0 for n, t in moved.items() if ".lora_B." in n)
