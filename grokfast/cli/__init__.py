"""The commands: `grokfast run`, `sweep`, `branch`, `ablate`, `compare`, `reproduce`, `report`, `list` and so on."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tyro

import grokfast
from grokfast.cli.common import KNOWN, Screen, UsageError, option, registry, why
from grokfast.store import StoreError
from grokfast.text import command


class Command(NamedTuple):
    """Where a command's function is, to be imported where it is wanted, and the first line of its docstring.

    `takes_arguments`: the function makes the command, of the arguments: a preset's values are the options' defaults.
    """

    module: str
    function: str
    help: str
    takes_arguments: bool = False


COMMANDS = {
    "run": Command(
        "run", "run_command",
        "Train a preset to its end and say what happened; every option of the experiment can be changed.",
        takes_arguments=True,
    ),
    "sweep": Command(
        "sweep", "sweep_command", "Train an experiment for every combination of values, and say what happened where.",
        takes_arguments=True,
    ),
    "branch": Command(
        "branch", "branch",
        "Fork a run after some of its steps into many arms: same weights and state, other options from there on.",
    ),
    "ablate": Command(
        "ablate", "ablate_command",
        "Turn each technique of a preset off, on, up or down in turn, and say what that does to when it generalises.",
        takes_arguments=True,
    ),
    "compare": Command(
        "compare", "compare_command",
        "Tune every accelerator and plain AdamW with one budget of runs, and compare them on fresh seeds.",
        takes_arguments=True,
    ),
    "reproduce": Command(
        "reproduce", "reproduce", "Train what a paper trained, and say whether its figures come out: how sure, and why."
    ),
    "report": Command(
        "report", "report",
        "Make one HTML page of a run, sweep or comparison, which needs nothing else: what happened, what is inside.",
    ),
    "list": Command("runs", "list_runs", "List sweeps and runs, the newest first, and the size of the store."),
    "show": Command("runs", "show", "Say what a run or a sweep is, and what happened in it."),
    "rm": Command(
        "runs", "remove", "Delete runs and sweeps; of a sweep also its runs, unless another sweep has them, too."
    ),
    "export": Command(
        "runs", "export", "Write a sweep, or all runs, as a table with a row per run, or with a row per evaluation."
    ),
    "bench": Command(
        "bench", "bench", "Time the fused operations on this machine, against eager and compiled PyTorch."
    ),
    "doctor": Command(
        "doctor", "doctor",
        "Say what this machine has, which implementation each operation will use here and why, and what probes cost."
    ),
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """The console script; returns the exit status: 0, 1 (failed), 2 (bad usage), 130 (interrupted).

    Whatever goes wrong is said in a line; with GROKFAST_DEBUG=1 in the environment its traceback comes before.
    """
    args = list(sys.argv[1:] if arguments is None else arguments)
    screen = Screen(stderr=True)
    try:
        return _parsed(args)()
    except KeyboardInterrupt as stopped:  # `Interrupted` has run_ids, `SweepInterrupted` a sweep_id
        out = option(args, "--out")
        left = [("run", run_id) for run_id in getattr(stopped, "run_ids", [])]
        left += [("sweep", stopped.sweep_id)] if hasattr(stopped, "sweep_id") else []
        for what, which in left:
            words = ["grokfast", what, "--resume", which, *(["--out", out] if out else [])]
            screen.say(f"Stopped and saved. Go on with: {command(*words)}")
        return 130
    except BrokenPipeError:  # streams.py ends quietly
        raise
    except Exception as error:
        if os.environ.get("GROKFAST_DEBUG") == "1":
            traceback.print_exc()
        hint = "" if isinstance(error, KNOWN) else " (GROKFAST_DEBUG=1 shows where)"
        screen.say(f"grokfast: {why(error)}{hint}", style="red")
        is_usage = isinstance(error, (UsageError, ValueError, TypeError, ImportError))
        return 2 if is_usage and not isinstance(error, StoreError) else 1


def _parsed(args: list[str]) -> Callable[[], int]:
    """What the arguments ask for. Without a command tyro says what there is, and exits."""
    if args == ["--version"]:
        return _version
    if option(args, "--out") == "":
        raise UsageError("--out must name a directory, got ''")
    options: dict[str, Any] = {"config": (tyro.conf.AvoidSubcommands,)}
    if not args or args[0] not in COMMANDS:
        commands = {name: _stand_in(command) for name, command in COMMANDS.items()}
        description = "Fast grokking experiments."
        return tyro.extras.subcommand_cli_from_dict(
            commands, prog="grokfast", description=description, args=args, **options
        )
    if args[0] in ("sweep", "branch", "ablate", "compare"):
        from grokfast.cli.sweep import merged

        args = merged(args)
    if args[0] == "branch":
        args = merged(merged(args, "--set"), "--at")
    if args[0] in ("ablate", "compare"):
        args = merged(merged(args, "--set"), "--arms")
    _add_here()
    chosen = COMMANDS[args[0]]
    function = getattr(importlib.import_module(f"grokfast.cli.{chosen.module}"), chosen.function)
    if chosen.takes_arguments:
        function = function(args)
        options["registry"] = registry()
    execute: Callable[[], int] = tyro.cli(function, prog=f"grokfast {args[0]}", args=args[1:], **options)
    return execute


def _add_here() -> None:
    """Let "module:Name" find what lies in the current directory; at the end, so that nothing there hides a package."""
    here = os.getcwd()
    if "" not in sys.path and here not in sys.path:
        sys.path.append(here)


def _version() -> int:
    print(f"grokfast {grokfast.__version__}")
    return 0


def _stand_in(command: Command) -> Callable[[], Any]:
    """For the list of commands: no options, and nothing imported."""

    def stand_in() -> None:
        pass

    stand_in.__doc__ = command.help
    return stand_in
