"""What happened in a run: its curves, with the phases named; and the columns of probes that no other chapter has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grokfast.plots import plot_columns
from grokfast.report.figures import csv, curves
from grokfast.report.material import Chapter, Material
from grokfast.report.page import Figure
from grokfast.training.result import RunResult

ELSEWHERE = ("norms", "spectra", "progress", "local_complexity")  # probes whose columns other chapters draw
NARROWEST = 0.09  # of the axis, for a phase's name
PANELS = 6  # below each other in one figure


def curves_of_run(material: Material) -> list[Figure]:
    """Accuracy and loss of every split, over the phases."""
    run = material.run
    names = [name for name in run.curves if _is_of_split(name, run)]
    figure = run.plot("curves")
    figure.set_size_inches(9, 6.3)
    figure.suptitle(" ")  # whose room the legend has
    _name_phases(figure, run)
    columns = material.thinned(names)
    at_end = ", ".join(f"{name.replace('_', ' ')} {run.final[name]:.4g}" for name in names)
    moments = ", ".join(
        f"{said} at step {step:,}"
        for said, step in (("memorised", run.t_memorize), ("generalised", run.t_generalize))
        if step is not None
    )
    criteria = run.experiment.criteria
    return [
        Figure(
            "Accuracy and loss",
            curves(figure, columns["step"]),
            f"Curves of accuracy and loss against the step, to step {run.steps:,}: {moments or 'never memorised'}. "
            f"At the end: {at_end}.",
            csv(columns),
            f"Memorised: {criteria.threshold:.0%} of {criteria.memorize}, generalised: {criteria.threshold:.0%} of "
            f"{criteria.generalize}, {criteria.sustain} evaluations in a row. The steps are on a logarithmic axis."
            + material.is_thinned,
        )
    ]


def figure_of_columns(
    material: Material, panels: Sequence[Sequence[str]], title: str, caption: str = "", also: Sequence[str] = ()
) -> Figure:
    """Recorded columns as curves, the names of each panel together."""
    columns = material.thinned(list(dict.fromkeys(name for panel in panels for name in panel)))
    ends = ", ".join(
        f"{name.replace('_', ' ')} from {values[0]:.4g} to {values[-1]:.4g}"
        for name, values in columns.items()
        if name != "step"
    )
    return Figure(
        title,
        curves(plot_columns(material.run.curves, panels, moments=material.moments), columns["step"]),
        f"Curves against the step, to step {material.run.steps:,}: {ends}.",
        csv(columns),
        caption + material.is_thinned,
    )


def other_columns(material: Material) -> list[Figure]:
    """Every column that is drawn nowhere else: those of a probe in one panel, unless they differ in kind."""
    run = material.run
    drawn = {"step", "weight_norm", *(name for kind in ELSEWHERE for name in material.columns(kind))}
    left = [name for name in run.curves if name not in drawn and not _is_of_split(name, run)]
    panels: dict[str, list[str]] = {}
    for name in left:
        panels.setdefault("accuracy" if "_accuracy" in name else name, []).append(name)
    rows = [*panels.values()]
    return [
        figure_of_columns(material, rows[i : i + PANELS], ", ".join(_words(rows[i : i + PANELS])))
        for i in range(0, len(rows), PANELS)
    ]


def _words(panels: Sequence[Sequence[str]]) -> list[str]:
    return [panel[0].replace("_", " ") if len(panel) == 1 else "accuracies" for panel in panels]


def _is_of_split(name: str, run: RunResult) -> bool:
    """Whether `plot_curves` draws it."""
    split, _, quantity = name.rpartition("_")
    return quantity in ("loss", "accuracy") and {f"{split}_loss", f"{split}_accuracy"} <= run.curves.keys()


def _name_phases(figure: Any, run: RunResult) -> None:
    """Shade the plateau, and write the phases' names above the losses where there is room."""
    top, bottom = figure.axes
    first, last = top.get_xlim()
    memorized, generalized = run.t_memorize, run.t_generalize
    begin, end = memorized, generalized
    if begin is None or (end is not None and end <= begin):
        begin = end
    bounds = [first, *(moment for moment in (begin, end) if moment is not None), last]
    names = ["memorising" if memorized is not None else "learning", "plateau", "generalised"]
    if begin == end:
        names = [names[0], "generalised"] if end is not None else [names[0]]
    elif end is None:
        names = names[:2]
    bounds = list(dict.fromkeys(bounds))
    places = (top.transData + top.transAxes.inverted()).transform([(x, 0) for x in bounds])[:, 0]
    for name, begins, ends, left, right in zip(names, bounds, bounds[1:], places, places[1:]):
        if name == "plateau":
            for axes in (top, bottom):
                axes.axvspan(begins, ends, color="0.95", lw=0, zorder=0)
        if right - left >= NARROWEST:
            how: dict[str, Any] = {"ha": "center", "va": "bottom", "color": "0.4", "fontsize": 11}
            bottom.text((left + right) / 2, 1.02, name, transform=bottom.transAxes, **how)


CHAPTER = Chapter("curves", "What happened", "", {"curves": curves_of_run}, needs_weights=False)
MORE = Chapter(
    "more", "Further measurements", "What its other probes recorded.", {"columns of probes": other_columns},
    needs_weights=False,
)  # fmt: skip
