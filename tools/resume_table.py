"""Write into docs/command_line.md which settings may change when a run goes on, and why.

python tools/resume_table.py
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from chunk_grpo_core.train.may_change import MAY_CHANGE  # noqa: E402
from tools.marks import between_marks, write_page  # noqa: E402

PAGE = ROOT / "docs" / "command_line.md"


def page(text: str) -> str:
    """Put the table between the marks; keys with the same reason share a row."""
    keys: dict[str, list[str]] = {}
    for key, why in MAY_CHANGE.items():
        keys.setdefault(why, []).append(f"`{key}`")
    rows = [f"| {' '.join(names)} | {why} |" for why, names in keys.items()]
    table = "\n".join(["| may change | why, or with what effect |", "|---|---|", *rows])
    return between_marks(text, "may change", table)


if __name__ == "__main__":
    write_page(__doc__, PAGE, page)
