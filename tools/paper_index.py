"""Write the presets into docs/paper_index.md, between its two marks.

python tools/paper_index.py
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

from chunk_grpo_core.presets import NOT_IN_THE_SOURCE, PRESETS, Preset
from chunk_grpo_core.presets.recipe import shown
from tools.marks import between_marks, write_page

PAGE = Path(__file__).resolve().parents[1] / "docs" / "paper_index.md"


def section(preset: Preset) -> str:
    """One preset: its table, what is off, its notes."""
    stated = [setting for setting in preset.values if setting.source != NOT_IN_THE_SOURCE]
    off = [f"`{s.key}` ({shown(s.value)})" for s in preset.values if s not in stated]
    rows = [f"| `{s.key}` | {shown(s.value)} | {s.source} |" for s in stated]
    return "\n".join(
        [
            f"### `{preset.name}`\n\n{preset.title}.\n",
            "| key | value | source |\n|---|---|---|",
            *rows,
            *([f"\nOff, because the recipe does not use it: {', '.join(off)}."] if off else []),
            "\nWhat is different here:\n",
            *(f"- {note}" for note in preset.notes),
        ]
    )


def page(text: str) -> str:
    """Put the sections of all presets between the marks of ``text``."""
    sections = "\n\n".join(section(preset) for preset in PRESETS.values())
    return between_marks(text, "presets", f"\n{sections}\n")


if __name__ == "__main__":
    write_page(__doc__, PAGE, page)
