"""Pages of the documentation that a tool writes in part: what stands between two marks."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

__all__ = ["between_marks", "write_page"]


def between_marks(text: str, name: str, body: str) -> str:
    """Put ``body`` between the two marks of that name in ``text``."""
    start, end = f"<!-- {name}: start -->", f"<!-- {name}: end -->"
    before, _, rest = text.partition(start)
    _, _, after = rest.partition(end)
    return f"{before}{start}\n{body}\n{end}{after}"


def write_page(about: str, path: Path, page: Callable[[str], str]) -> None:
    """Be the command line of a tool that writes one page; ``about`` is its docstring."""
    argparse.ArgumentParser(description=about.partition("\n")[0]).parse_args()
    path.write_text(page(path.read_text(encoding="utf-8")), encoding="utf-8")
