"""python -m benchmarks.faults --kills 100 --inputs 1500 --seed 1"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from .campaign import Campaign, say, shares
from .gates import GATES
from .material import Material, check_cold, prepare
from .outcomes import FAILURES, Kind, Outcome, table
from .warm import Warm


def main(words: list[str] | None = None) -> int:
    """Run a campaign; 1 if anything failed or nothing was tried, 130 if it was interrupted.

    The table of what there is comes in any case.
    """
    options = _options(words)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # it reports, too
    outcomes: list[Outcome] = []
    start, is_whole = time.monotonic(), False
    try:
        _run(options, outcomes)
        is_whole = True
    except KeyboardInterrupt:
        say("interrupted; what there is so far:")
    finally:
        signal.signal(signal.SIGTERM, before)
        failing = sum(outcome.kind in FAILURES for outcome in outcomes)
        print(table(outcomes))
        about = f"{time.monotonic() - start:.0f} s, seed {options.seed}"
        print(f"{len(outcomes)} cases, {failing} failing, {about}; ", end="")
        print(f"report and failing cases in {options.out}/")
    return (1 if failing or not outcomes else 0) if is_whole else 130


def _run(options: argparse.Namespace, outcomes: list[Outcome]) -> None:
    """Do what was asked for, adding to the outcomes as they come."""
    start = time.monotonic()
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="faults-")))
        warms = [stack.enter_context(Warm(cold=options.cold)) for _ in range(options.jobs)]
        material = prepare(warms[0], work / "material")
        campaign = Campaign(tuple(warms), material, work / "cases", options.out, options.seed)
        campaign.begin()
        try:
            if not options.only:
                outcomes += _cold(material, work)
            for outcome in _chosen(campaign, options):
                outcomes.append(outcome)
                campaign.note(outcome)
                if outcome.kind in FAILURES or options.only:
                    about = f"{outcome.name}: {outcome.kind.value}, {outcome.about:.100}"
                    say(f"{about}: {outcome.detail:.300}")
        finally:
            campaign.report(outcomes, time.monotonic() - start)


def _cold(material: Material, work: Path) -> list[Outcome]:
    """Whether what is forked trains to the bytes of what is not; hashes differ there, too."""
    start = time.monotonic()
    try:
        check_cold(material, work)
        kind, detail = Kind.accepted, ""
    except RuntimeError as error:
        kind, detail = Kind.difference, str(error)
    return [Outcome("cold run", 0, "not forked", kind, detail, time.monotonic() - start, 0.0)]


def _chosen(campaign: Campaign, options: argparse.Namespace) -> Iterator[Outcome]:
    if options.only:
        for name in options.only:
            yield from _only(campaign, name, options.inputs)
        return
    if options.kills:
        yield from campaign.kills(options.kills)
        yield from campaign.disks(list(range(max(1, options.kills // 3))))
    counts = shares(options.inputs)
    yield from campaign.inputs([(gate, n) for gate in counts for n in range(counts[gate])])
    if options.inputs:
        yield from campaign.clients(max(4, options.inputs // 20))


def _only(campaign: Campaign, name: str, inputs: int) -> Iterator[Outcome]:
    gate, _, number = name.partition(":")
    if gate == "kills":
        yield from [campaign.kill(int(number))] if number else campaign.kills(100)
    elif gate == "disk":
        yield from campaign.disks([int(number)] if number else list(range(33)))
    elif gate == "clients":
        yield from campaign.clients(int(number) + 1 if number else max(4, inputs // 20))
    elif gate in GATES:
        count = shares(inputs)[gate]
        yield from campaign.inputs([(gate, n) for n in ([int(number)] if number else range(count))])
    else:
        names = ", ".join(("kills", "disk", "clients", *GATES))
        raise SystemExit(f"--only {name!r}: there are {names}, each also with :NUMBER")


def _options(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="signals to running processes")
    parser.add_argument("--inputs", type=int, default=1500, help="inputs at all gates together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="command lines at once")
    parser.add_argument("--out", type=Path, default=Path("faults"), help="folder of the report")
    parser.add_argument("--cold", action="store_true", help="fork nothing: five seconds each")
    parser.add_argument(
        "--only", action="append", metavar="GATE[:NUMBER]", help="one gate, or one case of it"
    )
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main())
