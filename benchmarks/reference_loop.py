"""The authors' training loop, restated plainly, to compare speed and results with.

What github.com/xingzhejun/GCPO (ea6cc4d, June 2026) does in one iteration on one card, in our own
words and on the library's small pure functions (``rules.py``, seeds), so that the numbers agree:

1. Rollout, one picture at a time: a batch of one through every step, log-densities kept, the
   picture decoded and scored at once.
2. Advantages inside each group.
3. Update, one sample at a time: each of its drawn chunks goes through the model as one batch of
   its steps, with one graph for the whole chunk; the ratio is the geometric mean over the chunk;
   clipped loss, backward. After the samples of one group: clip the gradient, AdamW.

What differs from the official code is what the trainer of this library does too, or the results
could not be compared: a LoRA, float32 initial noise of each group, sigma itself as the model's
time, x_0 of the deterministic last step as picture, whole groups in an update. Checkpointing is
off for the tiny FLUX; the official code has it on, which makes it slower and smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from chunk_grpo_core.lora.adapter import PeftAdapter
from chunk_grpo_core.method.chunks import draw_chunks
from chunk_grpo_core.method.noise import Noise, derive_seed
from chunk_grpo_core.method.reward import Reward
from chunk_grpo_core.method.rules import gaussian_log_p, sample_step
from chunk_grpo_core.models.flux.policy import predict_velocity
from chunk_grpo_core.train.config import TrainConfig
from chunk_grpo_core.train.requests import prompts_of_iteration

__all__ = ["ReferenceLoop", "Sample", "check_restated"]


@dataclass
class Sample:
    """One picture's trajectory."""

    group: int
    prompt: str
    states: Tensor
    """Shape (N + 1, *latent)."""
    old_log_p: Tensor
    """Shape (N - 1,)."""
    drawn: list[int]
    """Chunks it trains on."""
    score: float
    advantage: float = 0.0


@dataclass(kw_only=True)
class ReferenceLoop:
    """Trains ``adapter`` inside ``transformer``; call :meth:`iterate`."""

    transformer: Any
    adapter: PeftAdapter
    encode: Callable[[str], tuple[Tensor, Tensor]]
    decode: Callable[[Tensor], Tensor]
    latent_shape: tuple[int, ...]
    reward: Reward
    prompts: Sequence[str]
    config: TrainConfig
    device: torch.device = torch.device("cpu")
    guidance: float | None = None
    """See :func:`~chunk_grpo_core.models.flux.policy.predict_velocity`."""
    losses: list[float] = field(default_factory=list)
    """Of each update so far."""
    ratios: int = 0
    """Chunk ratios so far."""
    clipped: int = 0
    """Those of them that the clip took out of the gradient."""
    on_gradient: Callable[[], None] = lambda: None
    """Called before each optimiser step, before the gradient is clipped."""
    on_call: Callable[[int], None] = lambda samples: None
    """Told how many samples go through the model."""
    on_scores: Callable[[Tensor], None] = lambda scores: None
    """Told the scores of each iteration."""

    def __post_init__(self) -> None:
        check_restated(self.config)
        settings = self.config.optimizer
        self._parameters = self.adapter.parameters()
        self._adamw = torch.optim.AdamW(
            self._parameters,
            lr=settings.learning_rate,
            betas=(settings.beta1, settings.beta2),
            eps=settings.eps,
            weight_decay=settings.weight_decay,
        )
        self._features: dict[str, tuple[Tensor, Tensor]] = {}
        self._dtype = self.transformer.dtype

    def iterate(self, iteration: int) -> None:
        """One rollout and its updates."""
        config = self.config
        prompts = prompts_of_iteration(
            self.prompts, iteration, config.prompts_per_iteration, config.seed
        )
        samples = [
            self._roll_out(iteration, group, prompt, index)
            for group, prompt in enumerate(prompts)
            for index in range(config.group_size)
        ]
        self.on_scores(torch.tensor([sample.score for sample in samples]))
        self._compare(samples)
        for update in range(config.optimizer.updates_per_rollout):
            part = [
                sample
                for sample in samples
                if sample.group % config.optimizer.updates_per_rollout == update
            ]
            self.losses.append(sum(self._train_on(sample, len(part)) for sample in part))
            self.on_gradient()
            torch.nn.utils.clip_grad_norm_(self._parameters, config.optimizer.max_grad_norm)
            self._adamw.step()
            self._adamw.zero_grad()

    def _velocity(self, x_t: Tensor, t: Tensor, prompt: str) -> Tensor:
        if prompt not in self._features:
            with torch.no_grad():
                self._features[prompt] = self.encode(prompt)
        features, pooled = (p.expand(len(x_t), *p.shape[1:]) for p in self._features[prompt])
        self.on_call(len(x_t))
        transformer, dtype = self.transformer, self._dtype
        return predict_velocity(
            transformer, x_t, t.to(x_t.device), features, pooled, self.guidance, dtype
        )

    @torch.no_grad()
    def _roll_out(self, iteration: int, group: int, prompt: str, index: int) -> Sample:
        config = self.config
        noise = Noise(
            config.share_initial_noise,
            derive_seed(config.seed, "rollout", iteration, group),
            1,
            index,
        )
        (generator,) = noise.generators()
        x_t = noise.initial(self.latent_shape).to(self.device)
        states, log_p = [x_t], []
        for t, s in config.grid.pairs():
            v_t = self._velocity(x_t, torch.tensor([t]), prompt)
            transition = config.sde.transition(x_t, v_t, t, s)
            z = torch.randn(*self.latent_shape, generator=generator) if s > 0 else x_t[0]
            x_t = sample_step(transition, z[None].to(self.device))
            states.append(x_t)
            if s > 0:
                log_p.append(gaussian_log_p(x_t, transition))
        images = self.decode(x_t).clamp(0.0, 1.0).cpu()
        score = float(self.reward.score(images, [prompt]).values[0])
        seed = derive_seed(config.seed, "chunks", iteration, group)
        drawn = draw_chunks(config.plan, config.chunk_fraction, config.group_size, seed)[index]
        chunks = drawn.nonzero().flatten().tolist()
        return Sample(group, prompt, torch.cat(states), torch.cat(log_p), chunks, score)

    def _compare(self, samples: Sequence[Sample]) -> None:
        """A_i = (r_i - mean) / std inside each group, clamped; 0 without spread."""
        clamp = self.config.advantage.clamp
        for group in range(self.config.prompts_per_iteration):
            members = [sample for sample in samples if sample.group == group]
            scores = torch.tensor([sample.score for sample in members], dtype=torch.float64)
            if scores.std() > 1e-6:
                advantages = ((scores - scores.mean()) / scores.std()).clamp(-clamp, clamp)
                for sample, advantage in zip(members, advantages.tolist(), strict=True):
                    sample.advantage = advantage

    def _train_on(self, sample: Sample, batch: int) -> float:
        """Backward of one sample's share of the loss of an update over ``batch`` samples."""
        config, total = self.config, 0.0
        pairs, bounds = config.grid.pairs(), config.plan.bounds()
        for chunk in sample.drawn:
            first, last = bounds[chunk]
            x_t, x_s = sample.states[first:last], sample.states[first + 1 : last + 1]
            v_t = self._velocity(
                x_t, torch.tensor([t for t, _ in pairs[first:last]]), sample.prompt
            )
            new = torch.cat(
                [
                    gaussian_log_p(
                        x_s[i, None], config.sde.transition(x_t[i, None], v_t[i, None], *pair)
                    )
                    for i, pair in enumerate(pairs[first:last])
                ]
            )
            ratio = (new - sample.old_log_p[first:last]).mean().exp()
            low, high = 1.0 - config.objective.clip_low, 1.0 + config.objective.clip_high
            gain = torch.min(ratio * sample.advantage, ratio.clamp(low, high) * sample.advantage)
            self.ratios += 1
            self.clipped += not torch.autograd.grad(gain, ratio, retain_graph=True)[0].any()
            loss = -gain / (len(sample.drawn) * batch)
            loss.backward()
            total += loss.item()
        return total


def check_restated(config: TrainConfig) -> None:
    """Refuse settings that this loop does not have.

    Raises:
        ValueError: There is one.
    """
    objective, settings = config.objective, config.optimizer
    strange = {
        "objective.ratio": objective.ratio != "chunk",
        "objective.trust_region": objective.trust_region != "clip",
        "objective.ratio_norm": objective.ratio_norm,
        "objective.step_weights": objective.step_weights != "equal",
        "a penalty": objective.has_penalty,
        "noise": config.noise != "all",
        "window": config.window.kind != "all",
        "advantage": (config.advantage.scale, config.advantage.centre, config.advantage.keep)
        != ("group-std", "mean", None),
        "optimizer.name": settings.name != "adamw",
        "optimizer.epochs": settings.epochs != 1,
        "optimizer.warmup_updates": settings.warmup_updates != 0,
        "optimizer.ema_decay": settings.ema_decay is not None,
    }
    if refused := [name for name, is_strange in strange.items() if is_strange]:
        raise ValueError(f"the reference loop does not restate {', '.join(refused)}")
