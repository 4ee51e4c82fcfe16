"""``chunk-grpo`` and ``python -m chunk_grpo_core``."""

from __future__ import annotations

import sys

from .optional import require

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    try:
        require("typer", "To use the command line")
        require("rich", "To use the command line")
    except ImportError as error:
        sys.exit(str(error))
    from .cli.app import app

    app()


if __name__ == "__main__":
    main()
