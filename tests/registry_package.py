"""What the registry packs of this repository: every file but those that ``.comfyignore`` names."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKED = ("web", "nodes", "chunk_grpo_core", "locales", "example_workflows", "subgraphs")
LEFT_OUT = ("docs", "tests", "tools", "benchmarks")


def all_files() -> list[str]:
    """Files of the pack and of the repository around it, by their path in it."""
    inside = [file for folder in (*PACKED, *LEFT_OUT) for file in (ROOT / folder).rglob("*")]
    files = [file for file in (*inside, *ROOT.glob("*.*")) if file.is_file()]
    return [
        file.relative_to(ROOT).as_posix()
        for file in files
        if "__pycache__" not in file.parts and file.name != ".git"
    ]


def ignored(names: list[str], scratch: Path) -> set[str]:
    """Those of ``names`` that ``.comfyignore`` leaves out, which is read as git reads such files.

    Args:
        names: Paths in the repository.
        scratch: An empty folder, for a repository that has no other rules.
    """
    subprocess.run(["git", "init", "-q", scratch], check=True)
    rules = ["-c", f"core.excludesFile={ROOT / '.comfyignore'}"]
    done = subprocess.run(
        ["git", *rules, "check-ignore", "--no-index", "--stdin"],
        cwd=scratch,
        input="\n".join(names),
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1), done.stderr
    return set(done.stdout.splitlines())
