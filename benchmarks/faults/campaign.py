"""One campaign: cases one after the other, failing ones kept, everything reproducible."""

from __future__ import annotations

import json
import random
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue

from .disk import disk_trial
from .gates import GATES
from .hostile_clients import client_trials
from .kills import kill_trial
from .material import Material
from .outcomes import FAILURES, Case, Kind, Outcome, judge, table
from .warm import Limits, Warm

__all__ = ["Campaign", "shares"]

_MOST_MIB = 400
"""A command of the tiny model that takes more beyond what it began with has run out of bounds; a
million prompts take 100."""


@dataclass(frozen=True)
class Campaign:
    """What all parts share."""

    warms: tuple[Warm, ...]
    """One for each job that runs at once."""
    material: Material
    work: Path
    """Folder for cases; those that end well are deleted."""
    out: Path
    """Folder for the report and for failing cases."""
    seed: int

    def inputs(self, names: list[tuple[str, int]]) -> Iterator[Outcome]:
        """Cases of gates, by name and number."""
        yield from self._each([lambda warm, n=n: self.case(warm, *n) for n in names])

    def kills(self, count: int) -> Iterator[Outcome]:
        """Trials until ``count`` signals have hit a running process."""
        hits, number = 0, 0
        while hits < count:
            jobs = range(number, number + len(self.warms))
            number = jobs.stop
            trials = [
                lambda warm, n=n: kill_trial(warm, self.material, self.work, self.seed, n)
                for n in jobs
            ]
            for trial in self._each(trials):
                hits += trial.kills
                yield self.kept(trial.outcome, self.work / f"kills-{trial.outcome.number}")
        say(f"{hits} signals met a running process")

    def kill(self, number: int) -> Outcome:
        """One trial by its number."""
        trial = kill_trial(self.warms[0], self.material, self.work, self.seed, number)
        return self.kept(trial.outcome, self.work / f"kills-{number}")

    def disks(self, numbers: list[int]) -> Iterator[Outcome]:
        """Full disks, read-only folders, several processes."""
        jobs = [
            lambda warm, n=n: disk_trial(warm, self.material, self.work, self.seed, n)
            for n in numbers
        ]
        for outcome in self._each(jobs):
            yield self.kept(outcome, self.work / f"disk-{outcome.number}")

    def clients(self, count: int) -> Iterator[Outcome]:
        """Hostile requests to ``serve-reward``."""
        yield from client_trials(self.warms[0], self.work, count, self.seed)

    def case(self, warm: Warm, gate: str, number: int) -> Outcome:
        """Make one case, run it, judge it; keep its folder if it fails."""
        rng = random.Random(f"{self.seed}/{gate}/{number}")
        name = f"{gate.replace(' ', '-').strip('-[]')}-{number}"
        folder = self.work / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        case = GATES[gate][1](rng, folder, self.material)
        begun = _memory(warm)
        limits = Limits(seconds=case.seconds, memory_mib=4000)
        try:
            ended = warm.run(case.argv, folder, limits)
        finally:
            if case.close:
                case.close()
        try:
            kind, detail = judge(case, ended, folder)
        except Exception as error:  # what the check met is no result of its own
            kind, detail = Kind.difference, f"the result cannot be read: {error!r}"
        grown = ended.mib - begun
        if kind in (Kind.clear, Kind.accepted) and grown > _MOST_MIB:
            kind, detail = Kind.timeout, f"took {grown:.0f} MiB"
        outcome = Outcome(gate, number, case.about, kind, detail, ended.seconds, grown)
        return self.kept(outcome, folder, case, ended.stderr)

    def kept(
        self, outcome: Outcome, folder: Path, case: Case | None = None, stderr: str = ""
    ) -> Outcome:
        """Move the folder of a failing case to the report, delete that of others."""
        if outcome.kind in FAILURES and folder.exists():
            place = self.out / "failing" / folder.name
            shutil.rmtree(place, ignore_errors=True)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(folder, place)
            (place / "case.txt").write_text(self._how(outcome, case, stderr), encoding="utf-8")
        else:
            shutil.rmtree(folder, ignore_errors=True)
        for stream in folder.parent.glob(f".{folder.name}-*"):
            stream.unlink()
        return outcome

    def _how(self, outcome: Outcome, case: Case | None, stderr: str) -> str:
        lines = [
            f"{outcome.kind.value}: {outcome.detail}",
            outcome.about,
            f"python -m benchmarks.faults --seed {self.seed} --only={shlex.quote(outcome.name)}",
        ]
        if case:
            words = shlex.join(("python", "-m", "chunk_grpo_core", *case.argv))
            lines += ["", "or here, as far as its files tell:", words if len(words) < 2000 else ""]
        return "\n".join([*lines, "", stderr])

    def _each(self, jobs: list[Callable[[Warm], object]]) -> Iterator:
        """Run jobs, as many at once as there are warm processes; results in order."""
        free: SimpleQueue[Warm] = SimpleQueue()
        for warm in self.warms:
            free.put(warm)

        def run(job: Callable[[Warm], object]) -> object:
            warm = free.get()
            try:
                return job(warm)
            finally:
                free.put(warm)

        with ThreadPoolExecutor(len(self.warms)) as pool:
            yield from pool.map(run, jobs)

    def begin(self) -> None:
        """Make the folder of the report, without the outcomes of an earlier campaign."""
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "outcomes.jsonl").unlink(missing_ok=True)

    def note(self, outcome: Outcome) -> None:
        """Add an outcome to ``outcomes.jsonl``, which is there whatever ends the campaign."""
        with open(self.out / "outcomes.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({**asdict(outcome), "kind": outcome.kind.value}) + "\n")

    def report(self, outcomes: list[Outcome], seconds: float) -> None:
        """Write ``report.json`` and ``report.md``."""
        rows = [{**asdict(outcome), "kind": outcome.kind.value} for outcome in outcomes]
        body = {"seed": self.seed, "seconds": round(seconds), "outcomes": rows}
        (self.out / "report.json").write_text(json.dumps(body, indent=1), encoding="utf-8")
        failing = [
            f"- `{o.name}` {o.kind.value}, {o.about:.120}: {o.detail:.300}" for o in outcomes
        ]
        failing = [line for line, o in zip(failing, outcomes, strict=True) if o.kind in FAILURES]
        text = "\n".join([table(outcomes), "", *failing, ""])
        (self.out / "report.md").write_text(text, encoding="utf-8")


def _memory(warm: Warm) -> float:
    return warm.ask(do="memory")["mib"]


def shares(inputs: int) -> dict[str, int]:
    """How many of ``inputs`` each gate gets."""
    total = sum(share for share, _ in GATES.values())
    return {name: round(inputs * share / total) for name, (share, _) in GATES.items()}


def say(text: str) -> None:
    """Progress, on standard error."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
