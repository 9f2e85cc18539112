"""The command line: `grokfast run`, `sweep`, `list`, `show`, `rm`, `export`, `bench` and `doctor`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import tyro
from rich.console import Console

from grokfast.cli.bench import bench
from grokfast.cli.common import UsageError, option
from grokfast.cli.doctor import doctor
from grokfast.cli.run import run_command
from grokfast.cli.runs import export, list_runs, remove, show
from grokfast.cli.sweep import merged, sweep_command
from grokfast.store import StoreError
from grokfast.training import Interrupted
from grokfast.training.sweep import SweepInterrupted


def main(arguments: Sequence[str] | None = None) -> int:
    """The console script; returns the exit status: 0, 1 (failed), 2 (bad usage), 130 (interrupted)."""
    args = list(sys.argv[1:] if arguments is None else arguments)
    if args[:1] == ["sweep"]:
        args = merged(args)
    console = Console(stderr=True)
    try:
        commands: dict[str, Callable[..., Any]] = {
            "run": run_command(args if args[:1] == ["run"] else []),
            "sweep": sweep_command(args if args[:1] == ["sweep"] else []),
            "list": list_runs,
            "show": show,
            "rm": remove,
            "export": export,
            "bench": bench,
            "doctor": doctor,
        }
        execute: Callable[[], int] = tyro.extras.subcommand_cli_from_dict(
            commands,
            prog="grokfast",
            description="Fast grokking experiments.",
            args=args,
            use_underscores=True,
            config=(tyro.conf.AvoidSubcommands,),
        )
        return execute()
    except Interrupted as stopped:
        out = option(args, "--out")
        for run_id in stopped.run_ids:
            command = f"grokfast run --resume {run_id}" + (f" --out {out}" if out else "")
            console.print(f"Stopped and saved. Go on with: {command}", highlight=False, soft_wrap=True)
        return 130
    except SweepInterrupted as stopped:
        out = option(args, "--out")
        command = f"grokfast sweep --resume {stopped.sweep_id}" + (f" --out {out}" if out else "")
        console.print(f"Stopped and saved. Go on with: {command}", highlight=False, soft_wrap=True)
        return 130
    except KeyboardInterrupt:
        return 130
    except (StoreError, OSError) as error:
        console.print(f"grokfast: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        return 1
    except (UsageError, ValueError, TypeError, ImportError) as error:
        console.print(f"grokfast: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        return 2
