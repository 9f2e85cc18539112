"""The command line: `grokfast run`, `sweep`, `list`, `show`, `rm`, `export`, `bench` and `doctor`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tyro
from rich.console import Console

import grokfast
from grokfast.cli.common import UsageError, option
from grokfast.store import StoreError


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
        "doctor", "doctor", "Say what this machine has, and which implementation each operation will use here and why."
    ),
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """The console script; returns the exit status: 0, 1 (failed), 2 (bad usage), 130 (interrupted)."""
    args = list(sys.argv[1:] if arguments is None else arguments)
    console = Console(stderr=True)
    try:
        return _parsed(args)()
    except KeyboardInterrupt as stopped:  # `Interrupted` has run_ids, `SweepInterrupted` a sweep_id
        out = option(args, "--out")
        left = [f"run --resume {run_id}" for run_id in getattr(stopped, "run_ids", [])]
        left += [f"sweep --resume {stopped.sweep_id}"] if hasattr(stopped, "sweep_id") else []
        for command in left:
            command = f"grokfast {command}" + (f" --out {out}" if out else "")
            console.print(f"Stopped and saved. Go on with: {command}", highlight=False, soft_wrap=True)
        return 130
    except BrokenPipeError:  # streams.py ends quietly
        raise
    except (StoreError, OSError, MemoryError) as error:
        console.print(f"grokfast: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        return 1
    except (UsageError, ValueError, TypeError, ImportError) as error:
        console.print(f"grokfast: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        return 2


def _parsed(args: list[str]) -> Callable[[], int]:
    """What the arguments ask for. Without a command tyro says what there is, and exits."""
    if args == ["--version"]:
        return _version
    if option(args, "--out") == "":
        raise UsageError("--out must name a directory, got ''")
    options: dict[str, Any] = {"use_underscores": True, "config": (tyro.conf.AvoidSubcommands,)}
    if not args or args[0] not in COMMANDS:
        commands = {name: _stand_in(command) for name, command in COMMANDS.items()}
        description = "Fast grokking experiments."
        return tyro.extras.subcommand_cli_from_dict(
            commands, prog="grokfast", description=description, args=args, **options
        )
    if args[0] == "sweep":
        from grokfast.cli.sweep import merged

        args = merged(args)
    command = COMMANDS[args[0]]
    function = getattr(importlib.import_module(f"grokfast.cli.{command.module}"), command.function)
    if command.takes_arguments:
        function = function(args)
    execute: Callable[[], int] = tyro.cli(function, prog=f"grokfast {args[0]}", args=args[1:], **options)
    return execute


def _version() -> int:
    print(f"grokfast {grokfast.__version__}")
    return 0


def _stand_in(command: Command) -> Callable[[], Any]:
    """For the list of commands: no options, and nothing imported."""

    def stand_in() -> None:
        pass

    stand_in.__doc__ = command.help
    return stand_in
