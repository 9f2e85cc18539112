"""The page of a run: what it was, what happened, and what is inside."""

from __future__ import annotations

from grokfast.report import answers, attention, circuits, happened, norms, overview, regions, waves
from grokfast.report.material import Chapter, gather
from grokfast.report.page import Figure, Section, render
from grokfast.report.repeat import repeated
from grokfast.store import RunStore
from grokfast.text import one_line

CHAPTERS: tuple[Chapter, ...] = (
    happened.CHAPTER, answers.CHAPTER, norms.CHAPTER, waves.CHAPTER, circuits.CHAPTER, attention.CHAPTER,
    regions.CHAPTER, happened.MORE, overview.CHAPTER,
)  # fmt: skip


def page(store: RunStore, run_id: str, at: int | None = None) -> str:
    """The HTML page of a stored run that has ended, or after its step `at`, of which there is a snapshot.

    It has what the run's task and model have: what an analysis refuses is left out, with the reason at the end.
    Raises as `material.gather` does.
    """
    material = gather(store, run_id, at)
    run, refused, sections = material.run, dict[str, list[str]](), []
    for chapter in CHAPTERS:
        if chapter.needs_weights and not run.weights:
            refused.setdefault("the run was stored without its last weights (see --at)", []).append(
                chapter.title.lower()
            )
            continue
        figures: list[Figure] = []
        for name, part in chapter.parts.items():
            try:
                figures += part(material)
            except (ValueError, TypeError) as error:
                refused.setdefault(one_line(error), []).append(name)
        if figures:
            sections.append(Section(chapter.id, chapter.title, chapter.intro, figures))
    said = run.sentence[0].upper() + run.sentence[1:]
    lead = f"{said}. Phase: {run.phase}." if at is None else f"As it was after step {run.steps:,}. {said}."
    notes = [f"{', '.join(names)}: {why}" for why, names in refused.items()]
    return render(run_id, lead, repeated(run.experiment, run_id), sections, notes=notes)
