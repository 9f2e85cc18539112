"""The command that repeats a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from grokfast import parts
from grokfast.text import command
from grokfast.training import PRESETS, Experiment
from grokfast.training.experiment import FAMILIES, TUPLES

_AGAIN = (
    "from grokfast import RunStore, train; from grokfast.training.result import stored_experiment; "
    "store = RunStore('runs'); train(stored_experiment(store.get({!r})), store=store)"
)


def repeated(experiment: Experiment, run_id: str) -> str:
    """A line for a shell that trains this experiment: `grokfast run`, the preset, and what is otherwise than in it.

    Of data that were read from a file, which the store has, it is a line of Python that asks the store `runs` for them.
    """
    if experiment.task.consumed:
        return command("python", "-c", _AGAIN.format(run_id))
    name = experiment.name if experiment.name in PRESETS else "quick"
    return command("grokfast", "run", name, *_options(PRESETS[name], experiment))


def _options(base: Experiment, experiment: Experiment) -> Iterator[str]:
    """The options that make the experiment of `base`: whole parts first, of which others are then fields."""
    chosen = {}
    for name in (own for own in FAMILIES if own not in TUPLES):
        there, wanted = getattr(base, name), getattr(experiment, name)
        if type(there) is not type(wanted) or (wanted is not None and wanted.inline and there != wanted):
            said = _quoted(parts.shown(wanted))
            chosen[name] = parts.chosen(FAMILIES[name], said, there, name)
            yield from (f"--{name}", said)
    current = base.override(chosen)
    several: dict[str, tuple[Sequence[parts.Part], Sequence[parts.Part]]] = {
        "probes": (current.probes, experiment.probes),
        "schedule.changes": (current.schedule.changes, experiment.schedule.changes),
    }
    for name, (there, wanted) in several.items():
        if there != wanted:
            yield from (f"--{name}", _quoted(",".join(map(parts.shown, wanted))) or "none")
    known = current.flat()
    for name, value in experiment.flat().items():
        is_said = name in FAMILIES or any(name == own or name.startswith(f"{own}.") for own in several)
        if not is_said and (known.get(name) != value or type(known.get(name)) is not type(value)):
            yield from _option(name, value)


def _quoted(said: str) -> str:
    """Texts in double quotes, where that makes no difference: a shell's are single."""
    return said if '"' in said or "\\" in said else said.replace("'", '"')


def _option(name: str, value: Any) -> list[str]:
    option = name.replace("_", "-")
    if isinstance(value, bool):
        path, _, last = option.rpartition(".")
        return [f"--{path}{'.' if path else ''}{'' if value else 'no-'}{last}"]
    words = value if isinstance(value, (tuple, list)) else [value]
    return [f"--{option}", *map(str, words)]
