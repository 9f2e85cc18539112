"""The console script; `python -m grokfast` is the same."""

from __future__ import annotations

import os
import sys

# OpenMP threads that wait for each other spin for milliseconds by default: on a machine where another process keeps a
# core busy that cost a factor of 20 (14 instead of 271 steps/s of `quick` on 2 cores). Spinning this often instead gave
# 110 steps/s there, and 5 to 10% less on an idle machine.
SPIN_COUNT = "10000"


def main() -> int:
    """Run the command line; returns the exit status."""
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT  # libgomp reads it when torch loads it
    from grokfast.cli.streams import run

    return run(_command)


def _command() -> int:
    from grokfast.cli import main as command

    return command()


if __name__ == "__main__":
    sys.exit(main())
