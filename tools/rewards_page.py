"""Write the catalogue of rewards into docs/rewards.md, between its two marks.

python tools/rewards_page.py
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

from chunk_grpo_core.rewards import REWARDS
from chunk_grpo_core.rewards.catalog import CATALOG, Entry
from tools.marks import between_marks, write_page

PAGE = Path(__file__).resolve().parents[1] / "docs" / "rewards.md"


def row(name: str, entry: Entry) -> str:
    """One reward in the table of all."""
    cells = (f"[`{name}`](#{name})", entry.measures, entry.range, entry.memory, entry.speed)
    return f"| {' | '.join(cells)} |"


def section(name: str, entry: Entry) -> str:
    """One reward: what it needs, what is proved, what is not."""
    lines = [f"### {name}\n", f"- Needs: {entry.needs}."]
    lines += [
        f"- File: [`{file.name}`]({file.page}), {file.size}, into `{file.folder}/`; licence: "
        f"{file.licence}."
        for file in entry.files
    ]
    lines.append(f"- Proved: {entry.evidence}")
    lines += [f"- Not proved: {entry.unproved}"] if entry.unproved else []
    return "\n".join(lines)


def page(text: str) -> str:
    """Put the table and the sections of all rewards that can be loaded between the marks."""
    shown = {name: CATALOG[name] for name in REWARDS}
    table = "\n".join(
        [
            "| name | a high score means | range | memory | speed |\n|---|---|---|---|---|",
            *(row(name, entry) for name, entry in shown.items()),
        ]
    )
    sections = "\n\n".join(section(name, entry) for name, entry in shown.items())
    return between_marks(text, "catalogue", f"\n{table}\n\n{sections}\n")


if __name__ == "__main__":
    write_page(__doc__, PAGE, page)
