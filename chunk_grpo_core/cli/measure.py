"""Commands that look at a model or at a LoRA: pictures, the curve of relative L1, a comparison."""

# No ``from __future__ import annotations`` here: typer reads the annotations at run time.
import sys
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..configfile.reading import read_config_file
from ..configfile.run_config import RewardEntry, RunConfig
from ..disk.atomic import write_whole
from ..measure.both import on_both_sides, sides_of
from ..measure.evaluate import evaluate as measure
from ..measure.sampling import draw
from ..method.planners import adaptive_plan
from ..method.policy import Policy
from ..method.reward import NoReward, Reward
from ..method.schedule import shifted_grid
from ..prompts.example import examples_of
from ..rewards.settings import reward_settings
from ..runs.folder import RunFolder
from ..runs.held_out import check_held_out
from ..runs.load import load_policy, load_prompts, load_rewards
from ..runs.outcome import EVALUATION_SEED
from ..runs.recorded import RecordedRun, open_to_look
from ..runs.results import measure_curve
from ..settings.declared import shortened
from ..train.batch_limit import BatchLimit
from ..watch.comparison import Comparison
from ..watch.pictures import save_png, write_pictures
from ..watch.plots import plot_dynamics
from .flags import give_one
from .outcome import AsJson
from .outputs import file_to_write, folder_to_write
from .progress import ProgressBar, clear_errors
from .train import Changes

__all__ = ["Opened", "analyze", "evaluate", "open_source", "sample"]

Source = Annotated[
    Path,
    typer.Argument(
        metavar="SOURCE", help="A configuration file (.toml), or the folder of a finished run."
    ),
]
Seed = Annotated[int, typer.Option(min=0, max=2**64 - 1, help="Noise seed of the first prompt.")]
LoraOption = Annotated[
    Path | None, typer.Option(help="A LoRA file. Default: that of the run folder.")
]


def sample(
    source: Source,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="Draw this. May be repeated. Default: the first held-out prompts."),
    ] = None,
    lora: LoraOption = None,
    base: Annotated[bool, typer.Option("--base", help="Leave the LoRA of the run out.")] = False,
    count: Annotated[int, typer.Option(min=1, help="Pictures of each prompt.")] = 4,
    steps: Annotated[
        int | None, typer.Option(min=2, help="Sampling steps, shift 3. Default: the run's grid.")
    ] = None,
    seed: Seed = EVALUATION_SEED,
    out: Annotated[Path, typer.Option(help="Folder to write PNG files to.")] = Path("sampled"),
    changes: Changes = None,
    as_json: AsJson = False,
) -> dict[str, object] | None:
    """Draw pictures with the model, with or without a LoRA, without sampling noise."""
    with clear_errors("pictures so far were not written"), ProgressBar() as bar:
        give_one(base=base, lora=lora)
        folder_to_write(out)
        opened = open_source(source, changes)
        config = opened.config
        chosen = None if base else lora or opened.lora
        if chosen is None and opened.run and not base:
            raise ValueError(
                f"{source} has no lora.safetensors, which a run has at its end; finish the run, "
                "name a file with --lora, or draw the base model with --base"
            )
        prompts = examples_of(prompt or load_prompts(config).held_out[:4])
        if not prompts:
            raise ValueError(f"{source} holds no prompts out; say what to draw with --prompt")
        policy = load_policy(config, prompts, lora=chosen)
        opened.check_model(policy)
        if not (chosen or base or config.run.continue_from):
            typer.echo(
                f"{source} is a configuration without a LoRA: the base model draws", err=True
            )
        settings = config.settings
        with policy.adapter.disabled() if base else nullcontext():
            pictures = list(
                draw(
                    policy,
                    prompts,
                    shifted_grid(steps) if steps else settings.grid,
                    count=count,
                    seed=seed,
                    solver=settings.ode_solver,
                    limit=BatchLimit(size=settings.batch_size),
                    progress=lambda fraction: bar.update("drawing", fraction),
                )
            )
        files = write_pictures(pictures, [example.text for example in prompts], out, seed)
    if as_json:
        return {"pictures": [str(file) for file in files]}
    for file in files:
        typer.echo(file)
    return None


def analyze(
    source: Source,
    prompts: Annotated[int, typer.Option(min=1, help="Prompts to average over.")] = 4,
    out: Annotated[Path | None, typer.Option(help="Write the plot to this PNG file.")] = None,
    changes: Changes = None,
    as_json: AsJson = False,
) -> dict[str, object] | None:
    """Measure how much each step changes a latent (relative L1), and propose chunks.

    The base model is measured, with the grid and the rule that would train.
    """
    with clear_errors("nothing was written"), ProgressBar() as bar:
        if out is not None:
            file_to_write(out)
        opened = open_source(source, changes)
        config = opened.config
        chosen = load_prompts(config).train[:prompts]
        policy = load_policy(config, chosen)
        opened.check_model(policy)
        with policy.adapter.disabled():
            curve = measure_curve(
                policy,
                chosen,
                config.settings,
                lambda fraction: bar.update("relative L1", fraction),
            )
        plan = config.train_config(curve).plan
        sizes = plan.sizes if plan else ()
        proposal = ", ".join(map(str, adaptive_plan(curve).sizes))
        if out is not None:
            save_png(plot_dynamics(curve, plan), out)
    if as_json:
        return {**curve.to_json(), "plan": sizes, "adaptive": proposal}
    table = Table(title=f"{curve.model}: {curve.rule}, eta {curve.eta:g}, {curve.samples} samples")
    for title in ("step", "sigma", "relative L1", "between prompts", "chunk"):
        table.add_column(title, justify="right")
    for step, (mean, std) in enumerate(zip(curve.mean, curve.std, strict=True)):
        chunk = plan.chunk_of(step) + 1 if plan and step < plan.steps else "not trained"
        sigma = f"{curve.sigmas[step]:.3f}"
        table.add_row(str(step + 1), sigma, f"{mean:.4f}", f"{std:.4f}", str(chunk))
    output = Console(file=sys.stdout)
    output.print(table)
    output.print(f"adaptive chunks of this curve: {proposal}", highlight=False)
    return None


def evaluate(
    source: Source,
    lora: LoraOption = None,
    reward: Annotated[
        str | None,
        typer.Option(help="Judge with this reward instead of those of the file, by its name."),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(help="KEY=VALUE for --reward, for example device=cuda; repeatable."),
    ] = None,
    pictures: Annotated[
        int | None, typer.Option(min=1, help="Pictures of each prompt. Default: run.pictures.")
    ] = None,
    seed: Seed = EVALUATION_SEED,
    out: Annotated[
        Path | None, typer.Option(help="Folder for table.md, gains.png, pairs.png.")
    ] = None,
    changes: Changes = None,
    as_json: AsJson = False,
) -> dict[str, object] | None:
    """Compare a LoRA with the base model on held-out prompts, same noise, with an interval.

    Judge also with a reward that was not trained on: what rises alone may be reward hacking.
    """
    with clear_errors("nothing was written"), ProgressBar() as bar:
        if out is not None:
            folder_to_write(out)
        opened = open_source(source, changes)
        config = opened.config
        if reward is not None:
            entry = RewardEntry(name=reward, weight=1.0, settings=reward_settings(setting or []))
            config = replace(config, rewards=(entry,))
        elif setting:
            raise ValueError(
                f"--setting {shortened(setting[0])} is of --reward, which was not given; to change "
                "a reward of the file write --set reward.KEY=VALUE"
            )
        chosen = lora or opened.lora
        if chosen is None:
            raise ValueError(
                f"{source} has no lora.safetensors, which a run has at its end; name a file with "
                "--lora"
            )
        held_out = load_prompts(config).held_out
        check_held_out(held_out)
        judge = load_rewards(config)
        if isinstance(judge, NoReward):
            raise ValueError(
                f"{source} has no reward to judge with; name one with --reward, or compare by eye: "
                "chunk-grpo duels"
            )
        if reward is None:
            opened.check_reward(judge)
        policy, settings = load_policy(config, held_out, lora=chosen), config.settings
        opened.check_model(policy)
        limit = BatchLimit(size=settings.batch_size)
        before, after = on_both_sides(
            sides_of(policy),
            lambda side, progress: measure(
                side,
                judge,
                held_out,
                settings.grid,
                seeds=pictures or config.run.pictures,
                seed=seed,
                solver=settings.ode_solver,
                limit=limit,
                progress=progress,
            ),
            bar.update,
        )
        comparison = Comparison(before=before, after=after, reward=judge.name, noise_seed=seed)
        gain, text = comparison.gain, comparison.table()
        if out is not None:
            write_whole(out / "table.md", text + "\n")
            save_png(comparison.plot(), out / "gains.png")
            save_png(comparison.pairs(), out / "pairs.png")
    if as_json:
        facts = {"reward": judge.name, "gain": gain.mean, "gain_ci95": [gain.low, gain.high]}
        return {**facts, "before": before.to_json(), "after": after.to_json()}
    return typer.echo(text)


@dataclass(frozen=True)
class Opened:
    """A configuration, from a file or from a run."""

    config: RunConfig
    changes: list[str]
    run: RecordedRun | None = None
    lora: Path | None = None
    """That of the run."""

    def check_model(self, policy: Policy) -> None:
        """Make sure that the model is that of the run, unless ``--set`` names another."""
        if self.run and not self._sets("model"):
            self.run.check_model(policy)

    def check_reward(self, reward: Reward) -> None:
        """Make sure that the reward is that of the run, unless ``--set`` names another."""
        if self.run and not self._sets("reward"):
            self.run.check_reward(reward)

    def _sets(self, table: str) -> bool:
        return any(change.strip().startswith(f"{table}.") for change in self.changes)


def open_source(source: Path, changes: list[str] | None) -> Opened:
    """The configuration of a file or a run folder."""
    changes = changes or []
    if not source.is_dir():
        return Opened(read_config_file(source, changes), changes)
    folder = RunFolder(source)
    run, lora = open_to_look(folder, changes), folder.lora_file
    return Opened(run.config, changes, run, lora if lora.exists() else None)
