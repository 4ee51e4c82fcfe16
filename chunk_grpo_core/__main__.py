"""``chunk-grpo`` and ``python -m chunk_grpo_core``."""

from __future__ import annotations

import json
import os
import sys

from .optional import require
from .train.cpu_rows import ask_for_equal_rows

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    try:
        require("typer", "To use the command line")
        require("rich", "To use the command line")
    except ImportError as error:
        if "--json" in sys.argv[1:]:
            facts = {"error": str(error), "type": "ImportError", "exit_code": 2}
            print(json.dumps(facts))
        print(error, file=sys.stderr)
        sys.exit(2)
    ask_for_equal_rows(os.environ)
    try:
        from .cli.app import app
    except KeyboardInterrupt:  # packages take seconds to import
        sys.exit(130)
    app()


if __name__ == "__main__":
    main()
