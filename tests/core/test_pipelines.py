"""Every family of diffusers' models is held to diffusers' own pipeline of it, recorded as it runs.

The pipelines are small ones of the true classes; their text encoders and VAEs, too. What a mistake
in an entry would break first is fast; the rest is slow.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from environment import package
from native_names import NATIVE
from pipeline_folders import PIPELINES, saved, skip_where_diffusers_is_old, small_pipeline
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from chunk_grpo_core.cli.app import app
from chunk_grpo_core.lora.adapter import LoraConfig
from chunk_grpo_core.lora.files import diffusers_lora, save_lora
from chunk_grpo_core.models.pipelines import loading
from chunk_grpo_core.models.registry import FAMILIES

PROMPT, NEGATIVE = "a red fox in the snow", "blurry hat"
STEPS, WIDTH, HEIGHT = 3, 64, 96
GUIDED = {
    "z-image": 2.0,
    "sd3": 4.0,
    "flux2": 2.5,
    "flux2-klein": 4.0,
    "qwen-image": 4.0,
    "qwen-image-2.1": 3.0,
    "chroma": 4.0,
    "krea2": 3.0,
}
"""A scale with which a pipeline calls the transformer for the negative prompt, too; FLUX.2 [dev],
whose guidance is an input, does not."""


def asked_of_the_pipeline(family: str, scale: float) -> dict[str, Any]:
    """Its own arguments for a scale of guidance; 0 is none."""
    options: dict[str, Any] = {"max_sequence_length": 16, "guidance_scale": scale}
    if family.startswith("qwen"):
        options["true_cfg_scale"] = options.pop("guidance_scale") or 1.0
    if not family.startswith("flux2"):
        options["negative_prompt"] = NEGATIVE
    if family == "qwen-image-2.1":
        del options["max_sequence_length"]
    return options


def asked_of_the_family(family: str, scale: float) -> dict[str, Any]:
    """The same in [model]."""
    negative = {"flux2": {}, "flux2-klein": {"negative_prompt": ""}}
    length = 512 if family == "qwen-image-2.1" else 16  # its pipeline cuts nothing
    text = negative.get(family, {"negative_prompt": NEGATIVE})
    return {"guidance": scale, "max_tokens": length, **text}


@dataclass
class Small:
    """A small pipeline and where it is."""

    family: str
    pipe: Any
    folder: Path
    cache: Path

    @property
    def unguided(self) -> dict[str, Any]:
        return asked_of_the_pipeline(self.family, 0.0)

    def encoded(self, images: torch.Tensor) -> torch.Tensor:
        """What the VAE makes of pictures; Qwen's has an axis for frames, and one transparency."""
        given = images.permute(0, 3, 1, 2) * 2 - 1
        if self.family == "qwen-image-2.1":
            given = torch.cat([given, torch.ones_like(given[:, :1])], dim=1)
        has_frames = "QwenImage" in type(self.pipe.vae).__name__
        return self.pipe.vae.encode(given[:, :, None] if has_frames else given).latent_dist.mode()

    def from_vae(self, pictures: torch.Tensor) -> torch.Tensor:
        pictures = (pictures[:, :, 0] if pictures.ndim == 5 else pictures) / 2 + 0.5
        return over_white(pictures.clamp(0, 1))

    def table(self, **changes: Any) -> Any:
        values: dict[str, Any] = {
            "path": str(self.folder), "width": WIDTH, "height": HEIGHT, "device": "cpu",
            "weights": "float32", "text_cache": str(self.cache),
            **asked_of_the_family(self.family, 0.0),
        }  # fmt: skip
        return FAMILIES[self.family].table(**{**values, **changes})

    def policy(self, lora: LoraConfig | None = None, **changes: Any) -> Any:
        table = self.table(**changes)
        lora = lora or LoraConfig(rank=2)
        return FAMILIES[self.family].load(table, [PROMPT], lora, 0, keep_on_cpu=False)


@pytest.fixture(scope="module", params=PIPELINES)
def small(request, tmp_path_factory):
    skip_where_diffusers_is_old(request.param)
    place = tmp_path_factory.mktemp(request.param)
    folder = saved(request.param, place / "small")
    return Small(request.param, small_pipeline(request.param), folder, place / "text")


@pytest.fixture(scope="module")
def plain(small):
    """A policy without guidance, for tests that change nothing in it."""
    return small.policy()


def over_white(pictures: torch.Tensor) -> torch.Tensor:
    """(B, 3 or 4, H, W) -> (B, H, W, 3)."""
    alpha = pictures[:, 3:] if pictures.shape[1] == 4 else torch.ones(1)
    return (pictures[:, :3] * alpha + 1.0 - alpha).permute(0, 2, 3, 1)


@dataclass
class Step:
    v_t: torch.Tensor
    x_t: torch.Tensor
    t: float


def record(pipe: Any, options: dict[str, Any]) -> tuple[list[Step], torch.Tensor, int]:
    """Run a pipeline: its steps, its picture, and how many samples went through the transformer."""
    steps, samples, scheduler = [], [], pipe.scheduler
    step, forward = scheduler.step, pipe.transformer.forward

    def recorded_step(model_output: Any, timestep: Any, sample: Any, **rest: Any) -> Any:
        level = float(scheduler.sigmas[len(steps)])
        steps.append(Step(model_output.clone(), sample.clone(), level))
        return step(model_output, timestep, sample, **rest)

    def recorded_forward(*args: Any, **named: Any) -> Any:
        given = args[0] if args else named["hidden_states"]
        samples.append(len(given))
        return forward(*args, **named)

    scheduler.step, pipe.transformer.forward = recorded_step, recorded_forward
    try:
        pictures = pipe(
            prompt=PROMPT, num_inference_steps=STEPS, width=WIDTH, height=HEIGHT,
            num_images_per_prompt=2, generator=torch.Generator().manual_seed(3),
            output_type="pt", **options,
        ).images  # fmt: skip
    finally:
        del scheduler.step, pipe.transformer.forward
    return steps, over_white(pictures), sum(samples)


@pytest.mark.parametrize("guided", [pytest.param(False, marks=pytest.mark.slow), True])
def test_velocity_levels_and_pictures_are_those_of_the_pipeline(small, guided):
    scale = GUIDED[small.family] if guided else 0.0
    steps, pictures, calls = record(small.pipe, asked_of_the_pipeline(small.family, scale))
    assert calls == 2 * STEPS * (2 if guided and small.family != "flux2" else 1)
    settings = asked_of_the_family(small.family, scale)
    policy = small.policy(**settings)
    grid = FAMILIES[small.family].grid(small.table(**settings), STEPS)
    levels = small.pipe.scheduler.sigmas
    torch.testing.assert_close(torch.tensor(grid.sigmas), levels, rtol=0, atol=1e-7)
    for step in steps:
        with torch.no_grad():
            v_t = policy.run(lambda velocity, s=step: velocity(s.x_t, s.t, PROMPT))
        assert v_t.shape == (2, *policy.latent_shape)
        torch.testing.assert_close(v_t, step.v_t, rtol=1e-4, atol=1e-5)
    x_0 = steps[-1].x_t + (levels[-1] - levels[-2]) * steps[-1].v_t
    torch.testing.assert_close(policy.decode(x_0), pictures, rtol=1e-4, atol=2e-6)


@pytest.mark.slow
def test_guidance_can_be_left_out_for_a_while(small, plain):
    policy = small.policy(**asked_of_the_family(small.family, GUIDED[small.family]))
    x_t = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(4))

    def velocity(of):
        with torch.no_grad():
            return of.run(lambda v: v(x_t, 0.5, PROMPT))

    if small.family == "flux2":  # guidance is an input of the model
        return
    with policy.unguided():
        assert torch.equal(velocity(policy), velocity(plain))
    assert not torch.allclose(velocity(policy), velocity(plain), atol=1e-3)


def shaken(adapter: Any, size: float = 0.3) -> None:
    """Move every weight, as training would."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


@pytest.mark.slow
def test_a_saved_lora_is_the_same_function_in_the_pipeline(small, tmp_path):
    policy = small.policy(LoraConfig(rank=2, targets="all-linear"))
    (before, *_), _, _ = record(small.pipe, small.unguided)
    shaken(policy.adapter)
    weights = diffusers_lora(policy.adapter.state_dict(), policy.adapter.config.file_alpha)
    file = save_lora(weights, tmp_path / "lora.safetensors", {})
    pipe = small_pipeline(small.family)
    pipe.load_lora_weights(file)
    (first, *_), _, _ = record(pipe, small.unguided)
    with torch.no_grad():
        v_t = policy.run(lambda velocity: velocity(first.x_t, first.t, PROMPT))
    assert float((first.v_t - before.v_t).norm() / before.v_t.norm()) > 0.05
    torch.testing.assert_close(v_t, first.v_t, rtol=1e-4, atol=2e-5)


NO_LINEAR_OF_A_TASK = re.compile(r"norm|adaLN|_mod\b|modulation")
"""Names of layers in blocks that are neither attention nor MLP."""


def test_lora_targets_take_the_whole_of_what_they_name(small):
    layers = {
        name
        for name, layer in small.pipe.transformer.named_modules()
        if isinstance(layer, torch.nn.Linear)
    }
    entry = FAMILIES[small.family].load.args[0]
    in_blocks = {n for n in layers if n.startswith(tuple(f"{b}." for b in entry.blocks))}
    taken = {
        preset: {name for name in layers if re.fullmatch(pattern, name)}
        for preset, pattern in entry.targets.items()
    }
    assert taken["all-linear"] == in_blocks
    assert taken["attention+mlp"] == {n for n in in_blocks if not NO_LINEAR_OF_A_TASK.search(n)}
    is_attention = re.compile(r"\.(attn\d?|attention)\.")
    assert taken["attention"] == {n for n in taken["attention+mlp"] if is_attention.search(n)}


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["bf16", "float16"])
def test_16_bits_compute_about_the_same(small, plain, weights):
    policy = small.policy(weights=weights)
    x_t = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        narrow, wide = (p.run(lambda velocity: velocity(x_t, 0.6, PROMPT)) for p in (policy, plain))
    assert narrow.dtype == torch.float32
    assert float((narrow - wide).norm() / wide.norm()) < 0.1
    assert torch.isfinite(policy.decode(x_t)).all()
    # Layers of the text's side may have no part in the picture, and so no gradient.
    policy.run(lambda velocity: velocity(x_t, 0.6, PROMPT).square().mean().backward())
    gradients = [p.grad for p in policy.adapter.parameters() if p.grad is not None]
    assert gradients and all(bool(torch.isfinite(g).all()) for g in gradients)
    assert any(bool(g.any()) for g in gradients)


@pytest.mark.slow
def test_a_batch_of_different_times_is_each_of_its_samples(plain):
    policy = plain
    x_t = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        both, first, second = policy.run(
            lambda velocity: (
                velocity(x_t, torch.tensor([0.9, 0.3]), PROMPT),
                velocity(x_t[:1], 0.9, PROMPT),
                velocity(x_t[1:], 0.3, PROMPT),
            )
        )
    torch.testing.assert_close(both, torch.cat([first, second]), rtol=1e-4, atol=1e-5)


def test_a_call_does_not_ask_the_transformer_for_its_type(plain, monkeypatch):
    """The answer walks through all modules, with FLUX.1 for as long as a seventh of a call."""
    kind, asked = type(plain.transformer), []
    monkeypatch.setattr(kind, "dtype", property(lambda module: asked.append(1)))
    with torch.no_grad():
        plain.run(lambda velocity: velocity(torch.zeros(1, *plain.latent_shape), 0.5, PROMPT))
    assert not asked


@pytest.mark.slow
def test_gradients_are_measured_changes_with_and_without_checkpointing(small):
    lora = LoraConfig(rank=2, targets="all-linear")
    shape = small.policy().latent_shape
    x_t, weight = torch.randn(2, 1, *shape, generator=torch.Generator().manual_seed(1))
    gradients, velocities = [], []
    for checkpointing in (False, True):
        policy = small.policy(lora, gradient_checkpointing=checkpointing)
        shaken(policy.adapter, 0.02)
        parameters = policy.adapter.parameters()
        v_t = policy.run(lambda velocity: velocity(x_t, 0.6, PROMPT))
        velocities.append(v_t.detach())
        found = torch.autograd.grad((v_t * weight).sum(), parameters, allow_unused=True)
        whole = [
            torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)
        ]
        gradients.append(torch.cat([g.flatten() for g in whole]))
    size = gradients[1].norm()

    @torch.no_grad()
    def after(move: float) -> torch.Tensor:
        for parameter, gradient in zip(parameters, whole, strict=True):
            parameter.add_(gradient, alpha=float(move / size))
        return policy.run(lambda velocity: velocity(x_t, 0.6, PROMPT))

    assert torch.equal(after(0.0), velocities[1])  # else no ratio would begin at 1
    step = 2e-3
    rise = ((after(step) - after(-2 * step)) * weight).sum() / (2 * step)
    torch.testing.assert_close(rise, size, rtol=0.02, atol=0)
    torch.testing.assert_close(velocities[0], velocities[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_pictures_are_encoded_as_the_pipelines_vae_does(small, plain):
    images = torch.rand(2, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(5))
    latents = plain.encode(images)
    assert latents.shape == (2, *plain.latent_shape)
    torch.testing.assert_close(latents[1:], plain.encode(images[1:]))
    # An encoder that scaled otherwise than the decoder would give other pictures.
    pictures = small.from_vae(small.pipe.vae.decode(small.encoded(images)).sample)
    torch.testing.assert_close(plain.decode(latents), pictures, rtol=1e-4, atol=1e-5)


def config(small: Small, tmp_path: Path, **model: str) -> Path:
    table = {
        "type": small.family, "path": str(small.folder), "text_cache": str(small.cache),
        "weights": "float32", "device": "cpu", **model,
        **asked_of_the_family(small.family, GUIDED[small.family]),
    }  # fmt: skip
    lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in table.items())
    file = tmp_path / "small.toml"
    file.write_text(
        "iterations = 3\nprompts_per_iteration = 2\ngroup_size = 2\n"
        "self_test = true\n"
        f"[model]\n{lines}\nwidth = 64\nheight = 64\n"
        '[prompts]\ntext = ["a red fox", "a large bird", "two owls", "a hat"]\nheld_out = 2\n'
        '[reward]\nname = "target_colour"\n[grid]\nsteps = 3\nshift = "model"\n'
        '[plan]\nchunks = "1, 1"\n[lora]\nrank = 2\n[optimizer]\nlearning_rate = 1e-2\n'
        "[run]\npictures = 1\n"
    )
    return file


def train(file: Path, folder: Path) -> dict[str, Any]:
    done = CliRunner().invoke(
        app, ["train", str(file), "--out", str(folder), "--json"], catch_exceptions=False
    )
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_three_iterations_from_the_command_line(small, tmp_path):
    facts = train(config(small, tmp_path), tmp_path / "run")
    assert facts["iterations"] == 3 and facts["ratio_error_first_update"] == 0.0
    trained = load_file(tmp_path / "run" / "lora.safetensors")
    assert any(bool(tensor.any()) for name, tensor in trained.items() if "lora_B" in name)
    pipe = small_pipeline(small.family)
    pipe.load_lora_weights(tmp_path / "run" / "lora.safetensors")


@pytest.mark.slow
def test_a_single_file_with_its_makers_names_trains_to_the_same_numbers(small, tmp_path):
    if small.family not in NATIVE:
        pytest.skip("its single files are read at true size alone, or are those of the folder")
    package("accelerate")
    file = tmp_path / "transformer.safetensors"
    save_file(NATIVE[small.family](dict(small.pipe.transformer.state_dict())), file)
    runs = []
    for name, model in (("folder", {}), ("file", {"transformer": str(file)})):
        train(config(small, tmp_path, **model), tmp_path / name)
        runs.append(load_file(tmp_path / name / "lora.safetensors"))
    assert runs[0].keys() == runs[1].keys()
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_mistakes_name_what_is_wrong(small, tmp_path):
    other = "sd3" if small.family != "sd3" else "chroma"
    wrong = Small(other, small.pipe, small.folder, small.cache)
    another_class = "model.path: .* holds a .*, not a .*chunk-grpo models"
    with pytest.raises(ValueError, match=another_class):
        wrong.policy()
    with pytest.raises(ValueError, match=another_class):  # while a file is read, for its levels
        FAMILIES[other].grid(wrong.table(), STEPS)
    damaged = shutil.copytree(small.folder, tmp_path / "damaged")
    (damaged / "vae" / "config.json").write_text('{"block_out_channels": 3}')
    if small.family != "qwen-image-2.1":  # its VAE says nothing about it
        with pytest.raises(ValueError, match="VAE .*are damaged"):
            FAMILIES[small.family].grid(small.table(path=str(damaged)), STEPS)
    for part in ("vae", "transformer"):
        folder = small.folder / ("transformer" if part == "vae" else "vae")
        with pytest.raises(ValueError, match=f"model.{part}: .* holds a '?.*, not a "):
            small.policy(**{part: str(folder)})
    with pytest.raises(ValueError, match="model.weights is 'fp7'; it must be one of float32"):
        small.policy(weights="fp7")
    with pytest.raises(ValueError, match="model.path is missing; name the folder of a diffusers"):
        small.policy(path="")
    junk = tmp_path / "junk.safetensors"
    save_file({"a": torch.zeros(1)}, junk)
    with pytest.raises(ValueError, match=r"model.transformer: .*junk.safetensors "):
        small.policy(transformer=str(junk))
    lora = LoraConfig(rank=2, targets="nothing")
    with pytest.raises(ValueError, match="lora.targets 'nothing' matches no linear layer"):
        small.policy(lora)


@pytest.mark.parametrize(
    ("family", "model", "said"),
    [
        ("z-image", {"path": "/m/Z-Image", "guidance": 0.0}, r"guidance = 4, unless"),
        ("z-image", {"path": "/m/Z-Image", "guidance": 3.0}, ""),
        ("z-image", {"path": "Tongyi-MAI/Z-Image-Turbo", "guidance": 0.0}, ""),
        ("z-image", {"path": "/m/Z-Image-Turbo", "guidance": 4.0}, "Z-Image-Turbo, whose .* 0, "),
        (
            "z-image",
            {"path": "/m/Z-Image", "transformer": "z_image_turbo_bf16.safetensors"},
            "",
        ),
        ("sd3", {"path": "stabilityai/stable-diffusion-3.5-large-turbo"}, "guidance = 1, unless"),
        ("sd3", {"path": "stabilityai/stable-diffusion-3.5-large"}, ""),
        ("sd3", {"path": "/m/my-finetune"}, ""),
    ],
)
def test_guidance_that_a_known_checkpoint_is_not_sampled_with_is_told(family, model, said):
    one = FAMILIES[family]
    found = loading.unusual_guidance(one.load.args[0], one.checkpoints, one.table(**model))
    assert bool(found) == bool(said) and re.search(said, found), found


def test_a_training_warns_of_unusual_guidance(tmp_path, caplog):
    if not loading.is_new_enough(package("diffusers").__version__, "0.39"):
        pytest.skip("needs diffusers 0.39")
    folder = saved("z-image", tmp_path / "Z-Image")
    small = Small("z-image", None, folder, tmp_path / "text")
    small.policy(guidance=0.0)
    (said,) = [entry.message for entry in caplog.records if "model.guidance" in entry.message]
    assert "is sampled with 4 by its makers" in said


PICTURE_PIPELINES = {
    "z-image": "ZImageOmniPipeline",
    "sd3": "StableDiffusion3Img2ImgPipeline",
    "flux2-klein": "Flux2KleinInpaintPipeline",
    "qwen-image": "QwenImageEditPlusPipeline",
    "chroma": "ChromaInpaintPipeline",
}


@pytest.mark.parametrize("family", ["flux", *PICTURE_PIPELINES])
def test_a_pipeline_that_draws_from_a_picture_is_refused_by_name(family, tmp_path):
    kind = PICTURE_PIPELINES.get(family, "FluxKontextPipeline")
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": kind}))
    table = FAMILIES[family].table(path=str(tmp_path), device="cpu")
    with pytest.raises(ValueError, match=f"holds a '?{kind}.*draws from a picture.*Prompt Set"):
        FAMILIES[family].load(table, [PROMPT], LoraConfig(), 0, keep_on_cpu=False)


def test_an_old_diffusers_is_answered_with_the_pip_line(small, monkeypatch):
    entry = FAMILIES[small.family].load.args[0]
    monkeypatch.setattr(loading, "require", lambda *words: SimpleNamespace(__version__="0.30"))
    with pytest.raises(ImportError, match=f'0.30 is .* pip install -U "diffusers>={entry.since}"'):
        small.policy()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["flux2-klein", "krea2"])
def test_a_distilled_checkpoint_takes_no_notice_of_guidance(family, tmp_path):
    skip_where_diffusers_is_old(family)
    pipe = small_pipeline(family)
    pipe.register_to_config(is_distilled=True)
    pipe.save_pretrained(tmp_path / "small")
    small = Small(family, pipe, tmp_path / "small", tmp_path / "text")
    (first, *_), _, calls = record(pipe, small.unguided)
    assert calls == 2 * STEPS
    policy = small.policy(guidance=GUIDED[family])
    with torch.no_grad():
        v_t = policy.run(lambda velocity: velocity(first.x_t, first.t, PROMPT))
    torch.testing.assert_close(v_t, first.v_t, rtol=1e-4, atol=1e-5)
    grid = FAMILIES[family].grid(small.table(), STEPS)
    levels = pipe.scheduler.sigmas
    torch.testing.assert_close(torch.tensor(grid.sigmas), levels, rtol=0, atol=1e-7)
