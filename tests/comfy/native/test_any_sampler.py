"""Any SAMPLER makes the rollouts of the forward form: as ComfyUI does, sample by sample."""

from __future__ import annotations

import pytest
import torch

from .models import (
    LATENT,
    architecture_policy,
    double,
    make_policy,
    models,
    noise,
    random_conditioning,
    random_model,
    snapshot,
    unchanged,
)

STEPS = 5
WITHOUT_NOISE = ("euler", "dpmpp_2m", "res_multistep")
WITH_NOISE = ("er_sde", "euler_ancestral", "lcm", "ddpm", "dpmpp_sde", "dpmpp_2m_sde")


def sampler_named(name):
    import comfy.samplers

    return comfy.samplers.sampler_object(name)


def grid_of(lab, model):
    """The scheduler ``simple``, as BasicScheduler gives it."""
    import comfy.samplers

    sampling = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", STEPS)
    return lab.module("chunk_grpo_core.method.schedule").TimeGrid.of(sigmas.tolist())


def any_sampler(lab, policy, sampler, size=None):
    limit = lab.module("chunk_grpo_core.train.batch_limit").BatchLimit(size=size)
    kind = sampler_named(sampler) if isinstance(sampler, str) else sampler
    return lab.module("nodes.bridge.any_sampler").AnySampler(kind, policy, limit)


def sampled(lab, policy, sampler, x_1, seeds, size=None, check=lambda: None):
    """x_0 of :class:`AnySampler`, in a phase of the policy."""
    stream = lab.module("chunk_grpo_core.method.stream").Stream
    example = lab.module("chunk_grpo_core.prompts.example").Example("p0")
    grid, handed = grid_of(lab, policy._model), any_sampler(lab, policy, sampler, size)

    def work(velocity):
        of_phase = stream.of(policy, velocity, batch_size=size, check_cancel=check)
        return handed.sample(of_phase, example, grid, x_1, seeds)

    return policy.run(work)


@pytest.mark.parametrize("name", WITHOUT_NOISE)
def test_rollouts_are_the_pictures_of_standard_nodes(lab, name):
    import comfy.sample

    with torch.inference_mode():
        model, conditioning, x_1 = random_model(lab), random_conditioning(), noise(3)
        with unchanged(model, conditioning):
            got = sampled(lab, make_policy(lab, model), name, x_1, [1, 2, 3])
        sigmas = torch.tensor(grid_of(lab, model).sigmas)
        want = comfy.sample.sample_custom(
            model, x_1, 1.0, sampler_named(name), sigmas, conditioning, conditioning,
            torch.zeros_like(x_1), disable_pbar=True, seed=0,
        )  # fmt: skip
        got = model.model.process_latent_out(got)
        assert float((got - want).abs().max() / want.abs().max()) < 1e-5


def test_euler_of_comfyui_is_the_librarys_euler_rollout(lab):
    noise_of_group = lab.module("chunk_grpo_core.method.noise").Noise(False, 11, 3)
    rules = lab.module("chunk_grpo_core.method.rules")
    rollout = lab.module("chunk_grpo_core.method.rollout").rollout
    with torch.inference_mode():
        policy = make_policy(lab, random_model(lab))
        x_1, grid = noise_of_group.initial(LATENT), grid_of(lab, policy._model)
        got = sampled(lab, policy, "euler", x_1, noise_of_group.step_seeds)
        ode = rules.SdeConfig(rule="ode", eta=0.0)
        want = policy.run(lambda v: rollout(v, "p0", grid, ode, noise_of_group, LATENT).x_0)
        assert float((got - want).abs().max() / want.abs().max()) < 1e-5


@pytest.mark.parametrize("name", [*WITH_NOISE, "heun with s_churn", "flow sde, first half"])
def test_a_picture_depends_on_its_own_noise_and_seed_alone(lab, name):
    import comfy.samplers

    if name == "heun with s_churn":  # the global generator
        sampler = comfy.samplers.ksampler("heun", {"s_churn": 1.0})
    elif name == "flow sde, first half":
        sde = lab.module("chunk_grpo_core.method.rules").SdeConfig()
        sampler = lab.module("nodes.bridge.sampler").flow_sde_sampler(sde, 0.0, 0.5)
    else:
        sampler = sampler_named(name)
    with torch.inference_mode():
        policy, x_1, seeds = make_policy(lab, random_model(lab)), noise(3), [5, 6, 2**63 - 1]
        together = sampled(lab, policy, sampler, x_1, seeds)
        torch.manual_seed(77)  # whatever else draws
        before = torch.get_rng_state()
        again = sampled(lab, policy, sampler, x_1, seeds)
        assert torch.equal(again, together) and torch.equal(torch.get_rng_state(), before)
        in_pairs = sampled(lab, policy, sampler, x_1, seeds, size=2)
        last = sampled(lab, policy, sampler, x_1[2:], seeds[2:])
        size = float(together.abs().max())
        for other in (in_pairs, torch.cat([together[:2], last])):
            assert float((other - together).abs().max()) < 1e-4 * size
        others = sampled(lab, policy, sampler, x_1, [7, 8, 9])
        assert float((others - together).flatten(1).abs().amax(1).min()) > 1e-2 * size


def test_a_group_that_does_not_fit_is_sampled_in_halves(lab):
    with torch.inference_mode():
        policy, x_1 = make_policy(lab, random_model(lab)), noise(4)
        want = sampled(lab, policy, "er_sde", x_1, [1, 2, 3, 4], size=1)
        handed = any_sampler(lab, policy, "er_sde")
        call, sizes = handed._call, []

        def with_little_memory(stream, example, sigmas, x, seeds):
            sizes.append(len(x))
            if len(x) > 2:
                raise torch.OutOfMemoryError("no room")
            return call(stream, example, sigmas, x, seeds)

        handed._call = with_little_memory
        stream = lab.module("chunk_grpo_core.method.stream").Stream
        example = lab.module("chunk_grpo_core.prompts.example").Example("p0")
        grid = grid_of(lab, policy._model)
        got = policy.run(lambda v: handed.sample(stream(v), example, grid, x_1, [1, 2, 3, 4]))
        assert sizes == [4, 2, 2]
        assert float((got - want).abs().max() / want.abs().max()) < 1e-4


def test_a_cancel_is_heard_between_steps(lab):
    class Stopped(Exception):
        pass

    calls = []

    def check():
        calls.append(1)
        if len(calls) == 2:
            raise Stopped

    with torch.inference_mode():
        policy = make_policy(lab, random_model(lab))
        with pytest.raises(Stopped):
            sampled(lab, policy, "dpmpp_2m", noise(1), [1], check=check)
        assert len(sampled(lab, policy, "dpmpp_2m", noise(1), [1])) == 1


@pytest.mark.parametrize(
    ("name", "cfg", "words"),
    [
        ("ddpm", 1.0, None),
        ("dpm_fast", 1.0, "the sampler is dpm_fast.*leaves noise"),
        ("dpm_adaptive", 1.0, "the sampler is dpm_adaptive.*leaves noise"),
        ("euler_cfg_pp", 1.0, "the sampler is euler_cfg_pp.*cfg is 1"),
        ("euler_cfg_pp", 3.0, None),
        ("uni_pc", 1.0, None),
    ],
)
def test_what_does_not_finish_pictures_of_flow_models_is_refused_by_name(lab, name, cfg, words):
    check = lab.module("nodes.bridge.any_sampler").check_sampler
    if words is None:
        check(sampler_named(name), cfg)
        return
    with pytest.raises(ValueError, match=words):
        check(sampler_named(name), cfg)


def test_a_sampler_that_gives_no_numbers_is_named(lab):
    import comfy.samplers

    def sample_broken(model, x, sigmas, extra_args=None, callback=None, disable=None):
        return x / 0

    with torch.inference_mode():
        policy = make_policy(lab, random_model(lab))
        with pytest.raises(ValueError, match=r"the sampler broken\(gain=2\) made.*not finite"):
            broken = comfy.samplers.KSAMPLER(sample_broken, {"gain": 2})
            broken.sampler_function = lambda *a, gain, **k: sample_broken(*a, **k)
            broken.sampler_function.__name__ = "sample_broken"
            sampled(lab, policy, broken, noise(1), [1])


def test_chunk_grpo_refuses_other_samplers_and_points_to_the_forward_form(lab):
    rollouts_of = lab.module("nodes.bridge.any_sampler").rollouts_of
    with pytest.raises(ValueError, match="the sampler is sample_dpmpp_2m; .*Forward Objective"):
        rollouts_of(sampler_named("dpmpp_2m"), "chunk_grpo", 1.0)
    sde = lab.module("chunk_grpo_core.method.rules").SdeConfig(eta=0.3)
    flow = lab.module("nodes.bridge.sampler").flow_sde_sampler
    assert rollouts_of(flow(sde), "chunk_grpo", 1.0) == (sde, None)
    assert rollouts_of(flow(sde), "forward", 1.0) == (sde, None)
    half = flow(sde, 0.0, 0.5)
    assert rollouts_of(half, "forward", 1.0)[1] is half
    with pytest.raises(ValueError, match="noise_to 0.5"):
        rollouts_of(half, "chunk_grpo", 1.0)


class Vae:
    """Three channels of a latent as a picture."""

    def decode(self, latent):
        return latent.float()[:, :3].movedim(1, -1).sigmoid()


def reward_of(lab):
    """Brightness."""
    batch = lab.module("chunk_grpo_core.method.reward").RewardBatch

    class Brightness:
        name, fingerprint = "brightness", {}

        def score(self, images, examples):
            return batch.of(images.flatten(1).mean(1))

    return Brightness()


def forward_config(lab, model, **changes):
    settings = {
        "algorithm": "forward", "grid": grid_of(lab, model), "sde.rule": "ode", "sde.eta": 0.0,
        "share_initial_noise": False, "iterations": 2, "prompts_per_iteration": 1,
        "group_size": 4, "optimizer.updates_per_rollout": 1, "optimizer.learning_rate": 1e-3,
    }  # fmt: skip
    return lab.module("chunk_grpo_core.train.config").TrainConfig.of(settings | changes)


def trainer_of(lab, policy, sampler, config, **options):
    forward = lab.module("chunk_grpo_core.algorithms.forward").Forward
    algorithm = forward(config, any_sampler(lab, policy, sampler))
    trainer = lab.module("chunk_grpo_core.train.trainer").Trainer
    with torch.inference_mode(False):
        return trainer(policy, reward_of(lab), ["p0"], config, algorithm=algorithm, **options)


@pytest.mark.parametrize("architecture", ["z_image", "flux2"])
def test_other_architectures_train_with_any_sampler_and_pass_the_self_test(lab, architecture):
    events = lab.module("chunk_grpo_core.train.events")
    with torch.inference_mode():
        model = models.build(architecture)
        for name in WITHOUT_NOISE:
            policy = architecture_policy(lab, architecture, model, vae=Vae())
            policy.run(lambda velocity: None)
            before, rows = snapshot(model), []

            def listen(event, rows=rows):
                if isinstance(event, events.IterationEnd):
                    rows.append(event.metrics)

            loop = trainer_of(lab, policy, name, forward_config(lab, model), listener=listen)
            with torch.inference_mode(False):
                loop.train()
            assert snapshot(model) == before
            assert len(rows) == 2 and rows[0]["reward_std"] > 0
            assert 0 < abs(rows[1]["velocity_norm"] - 1.0) < 0.1


def test_a_killed_training_goes_on_with_the_noise_of_its_sampler(lab, tmp_path):
    checkpoints = lab.module("chunk_grpo_core.train.checkpoint").Checkpoints

    class Killed(Exception):
        pass

    heard = []

    def trained(calls=10**9, **options):
        heard.clear()

        def check():
            heard.append(1)
            if len(heard) > calls:
                raise Killed

        policy = make_policy(lab, model, vae=Vae())
        config = forward_config(lab, model, iterations=3)
        loop = trainer_of(lab, policy, "er_sde", config, check_cancel=check, **options)
        with torch.inference_mode(False):
            done = loop.resume()
            loop.train()
        return done, policy.adapter.state_dict()

    with torch.inference_mode():
        model = random_model(lab)
        make_policy(lab, model).run(lambda velocity: None)
        before = snapshot(model)
        _, whole = trained()
        calls = len(heard) - 15  # in the last iteration
        with pytest.raises(Killed):
            trained(calls=calls, checkpoints=checkpoints(tmp_path))
        done, resumed = trained(checkpoints=checkpoints(tmp_path))
        assert 0 < done < 3
        assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
        assert snapshot(model) == before


@pytest.mark.parametrize("architecture", ["flux", "flux2", "z_image"])
def test_gradients_of_the_matching_loss_equal_finite_differences(lab, architecture):
    """The streamed gradient, against the loss written out, through ComfyUI's blocks."""
    matching = lab.module("chunk_grpo_core.method.matching")
    draw_times = lab.module("chunk_grpo_core.method.matching_times").draw_times
    streams = lab.module("chunk_grpo_core.method.matching_stream")
    stream = lab.module("chunk_grpo_core.method.stream").Stream
    example = lab.module("chunk_grpo_core.prompts.example").Example("p0")
    config = matching.ForwardConfig(times=2, kl_ref=0.3)
    with torch.inference_mode():
        policy = architecture_policy(lab, architecture, double(models.build(architecture)))
    generator, latent = torch.Generator().manual_seed(3), policy.latent_shape
    for parameter in policy.adapter.parameters():
        values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data = 0.2 * values
    x_0, advantages = noise(2, latent=latent), torch.tensor([1.0, -0.7])
    noised = draw_times(config, (1.0, 0.8, 0.5), latent, range(2), seed=4)
    task = streams.MatchingTask(example, x_0, noised, advantages)

    def loss(velocity, task):
        total = 0.0
        for k in range(2):
            for i in range(2):
                t, eps = float(noised.t[k, i]), noised.eps[k, i]
                x_t = ((1 - t) * x_0[i] + t * eps)[None].double()
                v = velocity(x_t, t, example)[0].double()
                error = (v - (eps - x_0[i])).square().mean()
                gap = (v - task.reference[k, i]).square().mean()
                total = total + (advantages[i] * error + 0.3 * gap) / 4
        return float(total)

    def work(velocity):
        of_phase = stream(velocity)
        with policy.adapter.disabled():
            prepared = streams.with_reference_velocity(of_phase, task)
        streams.accumulate_matching(of_phase, prepared, config, scale=1.0, is_on_policy=True)
        reached = [p for p in policy.adapter.parameters() if p.grad is not None]
        size = torch.cat([p.grad.flatten() for p in reached]).norm()
        exact, step, values = float(size), 1e-3, []
        with torch.no_grad():
            for sign in (1, -1):
                for parameter in reached:
                    parameter.add_(parameter.grad / size, alpha=sign * step)
                values.append(loss(velocity, prepared))
                for parameter in reached:
                    parameter.sub_(parameter.grad / size, alpha=sign * step)
        return exact, (values[0] - values[1]) / (2 * step)

    exact, numeric = policy.run(work)
    print(architecture, "matching gradient", exact, "finite difference", numeric)
    assert abs(numeric - exact) < 1e-3 * exact
