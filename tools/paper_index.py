"""Write the presets into docs/paper_index.md, between its two marks.

python tools/paper_index.py
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

from chunk_grpo_core.presets import NOT_IN_THE_SOURCE, PRESETS, Preset
from chunk_grpo_core.presets.recipe import shown

PAGE = Path(__file__).resolve().parents[1] / "docs" / "paper_index.md"
START, END = "<!-- presets: start -->", "<!-- presets: end -->"


def section(preset: Preset) -> str:
    """One preset: its table, what is off, its departures."""
    stated = [setting for setting in preset.values if setting.source != NOT_IN_THE_SOURCE]
    off = [f"`{s.key}` ({shown(s.value)})" for s in preset.values if s not in stated]
    rows = [f"| `{s.key}` | {shown(s.value)} | {s.source} |" for s in stated]
    return "\n".join(
        [
            f"### `{preset.name}`\n\n{preset.title}.\n",
            "| key | value | source |\n|---|---|---|",
            *rows,
            *([f"\nNot in the source and left off: {', '.join(off)}."] if off else []),
            "\nWhat is different here:\n",
            *(f"- {departure}" for departure in preset.departures),
        ]
    )


def page(text: str) -> str:
    """Put the sections of all presets between the marks of ``text``."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    sections = "\n\n".join(section(preset) for preset in PRESETS.values())
    return f"{before}{START}\n\n{sections}\n\n{END}{after}"


def main() -> None:
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
