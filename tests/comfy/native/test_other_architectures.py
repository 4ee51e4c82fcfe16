"""The flow models of pictures beyond the six that the other tests train, as far as this ComfyUI
knows them: exact gradients, ComfyUI's own velocity, nothing left behind.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ..tiny_architectures.models import ALL, ARCHITECTURES, OTHERS, is_there
from ..tiny_architectures.rows import REFUSED, ROWS, cells
from .gradients import float64_policy, gradient_errors, reached
from .models import (
    architecture_policy,
    assert_euler_equals_comfyui,
    models,
    noise,
    survives_errors_and_cancel,
    train,
    unchanged,
    velocity_at,
)


def _there() -> list[str]:
    there = [name for name in OTHERS if is_there(name)]
    print("not in this ComfyUI:", sorted(OTHERS.keys() - set(there)))
    assert {"lumina2", "auraflow", "hunyuan_image"} <= set(there)
    return there


@contextlib.contextmanager
def _frozen_routing(policy) -> Iterator[None]:
    """HiDream's tokens stay with their experts: a difference over a jump is no derivative."""
    gates = [
        m for m in policy._model.model.diffusion_model.modules() if hasattr(m, "norm_topk_prob")
    ]
    for gate in gates:
        gate.forward = _frozen(gate)
    yield
    for gate in gates:
        del gate.forward


def _frozen(gate):
    experts = []

    def forward(states):
        if not experts:
            with torch.no_grad():
                experts.append(type(gate).forward(gate, states)[0])
        scores = (states.reshape(-1, states.shape[-1]) @ gate.weight.T.to(states)).softmax(-1)
        return experts[0], scores.gather(1, experts[0]), None

    return forward


def test_gradients_equal_finite_differences(lab):
    for name in _there():
        policy = float64_policy(lab, name)
        with _frozen_routing(policy):
            errors = gradient_errors(policy)
        worst = max(errors, key=errors.__getitem__)
        idle = len(policy.adapter.parameters()) - len(reached(policy))
        print(name, len(errors), "tensors, worst", errors[worst], worst, idle, "idle")
        assert errors[worst] <= 1e-3, (name, worst, errors[worst])
        assert idle <= 16, (
            name,
            idle,
        )  # text branch of a last block, refiner of reference pictures


def test_euler_steps_are_comfyuis_own_sampling(lab):
    with torch.inference_mode():
        for name in _there():
            model = models.build(name)
            sigmas = _sigmas(model)
            policy = architecture_policy(lab, name, model, sigmas=sigmas)
            assert_euler_equals_comfyui(policy, model, models.conditioning(name, 1))


def _sigmas(model) -> list[float]:
    import comfy.samplers

    sampling = model.get_model_object("model_sampling")
    return comfy.samplers.calculate_sigmas(sampling, "simple", 4).tolist()


def test_rollouts_are_the_training_forward_bit_for_bit(lab):
    with torch.inference_mode():
        for name in _there():
            policy = architecture_policy(lab, name)
            train(policy, 1)
            x_t = noise(2, latent=policy.latent_shape)

            def work(velocity, x_t=x_t):
                with torch.no_grad():
                    rolled_out = velocity(x_t, 0.6, "p0")
                return torch.equal(velocity(x_t, 0.6, "p0"), rolled_out)

            assert policy.run(work), name


def test_training_leaves_the_model_as_it_was(lab):
    with torch.inference_mode():
        for name in _there():
            model = models.build(name)
            with unchanged(model, models.conditioning(name, 1), OTHERS[name].latent):
                policy = architecture_policy(lab, name, model, targets="attention+mlp")
                losses = train(policy, 4)
                assert losses[-1] < losses[0], (name, losses)


def test_errors_and_cancel_leave_the_model_as_it_was(lab):
    with torch.inference_mode():
        for name in _there():
            model = models.build(name)
            policy = architecture_policy(lab, name, model)
            survives_errors_and_cancel(policy, model, models.conditioning(name, 1))


def test_comfyuis_loaders_compute_the_function_that_was_trained(lab):
    """Merged and, where there is such a loader, bypassed; Apply LoRA as well."""
    import comfy.sd

    names = ("load_lora_for_models", "load_bypass_lora_for_models")
    loaders = [getattr(comfy.sd, name) for name in names if hasattr(comfy.sd, name)]
    apply_lora = lab.module("nodes.bridge.applied").apply_lora
    with torch.inference_mode():
        for name in [*ARCHITECTURES, *_there()]:
            model, work = models.build(name), velocity_at(latent=ALL[name].latent)
            policy = architecture_policy(lab, name, model)
            generator = torch.Generator().manual_seed(1)
            with torch.inference_mode(False), torch.no_grad():
                for factor in policy.adapter.parameters():
                    factor.copy_(0.1 * torch.randn(factor.shape, generator=generator))
            wanted, lora = policy.run(work), policy.lora_model()
            loaded = [load(model, None, lora, 1.0, 0.0)[0] for load in loaders]
            for other in [*loaded, apply_lora(model, lora)]:
                found = architecture_policy(lab, name, other, targets=None).run(work)
                error = float((found - wanted).norm() / wanted.norm())
                assert error <= 1e-5, (name, error)
            base = architecture_policy(lab, name, model, targets=None).run(work)
            assert float((base - wanted).norm() / wanted.norm()) > 0.01, name


def test_models_that_sample_otherwise_are_refused_by_name(lab):
    check = lab.module("nodes.bridge.session").check_flow_model
    refused = {"CosmosT2IPredict2": "COSMOS_RFLOW", "HiDreamO1": "noise_scale"}
    for kind, reason in refused.items():
        model = _empty(kind)
        if model is None:
            print("not in this ComfyUI:", kind)
            continue
        with pytest.raises(ValueError, match=rf"this MODEL \(\w+\) .*{reason}"):
            check(model)


def _empty(kind: str):
    """A MODEL of this kind without weights; None if ComfyUI does not have it."""
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models

    if not hasattr(comfy.supported_models, kind):
        return None
    settings = getattr(comfy.supported_models, kind)({"image_model": kind.lower()})
    settings.unet_config |= {"disable_unet_model_creation": True, "extra_ff_mult": 4}
    settings.set_inference_dtype(torch.float32, None)
    model = settings.get_model({}, "")
    return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


def test_the_table_of_the_documents_has_a_dash_where_comfyui_lacks_the_model(lab):
    import comfyui_version

    columns = {"0.3.75": 0, "0.28.2": 1}
    if comfyui_version.__version__ not in columns:
        pytest.skip("the table is about two other versions of ComfyUI")
    page = Path(__file__).resolve().parents[3] / "docs" / "models.md"
    table = cells(page.read_text(encoding="utf-8"))
    there = {row: [is_there(name) for name in names] for row, names in ROWS.items()}
    there |= {row: [_empty(kind) is not None] for row, kind in REFUSED.items()}
    for row, models_there in there.items():
        cell = table[row][columns[comfyui_version.__version__]]
        assert set(models_there) == {cell != "-"}, row
