"""The page of a comparison: its arms, pictures, spaces and every point, from what is stored of it, or from a file."""

import json
import re
import shutil

import pytest

from grokfast.analysis import incidence
from grokfast.cli import main
from grokfast.comparison import contest
from grokfast.comparison.kept import Kept, read
from grokfast.comparison.run import held
from grokfast.report.comparison import page
from grokfast.sweeps import InProcess
from tests.comparison.common import FAST, FORM, TINY
from tests.report.pages import asked_for, figures, notes

COMMAND = "grokfast compare quick --arms fast,stablemax"
TITLES = ["Arms", "Forest plot", "Kaplan-Meier curves", "Speed-ups", "Search space", "Every point of the search"]


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A comparison in a store, and what was found."""
    root = tmp_path_factory.mktemp("runs")
    one = contest(TINY.override({"criteria.generalize": "test", "criteria.threshold": 0.05}), [FAST, "mse"], **FORM)
    task = held(one, lambda planned: planned.train(), store=root, runner=InProcess())
    kept = Kept("compare-1234abcd", root, root / "elsewhere")
    kept.begin(["compare", "quick"])
    kept.keep([task], {"quick": {}}, COMMAND)
    return kept, task


@pytest.fixture(scope="module")
def html(kept):
    return page(read(kept[0].record()))


def report(which, root, *words):
    return main(["report", str(which), *words, "--out", str(root)])


def test_the_page_has_what_a_comparison_has(html, kept):
    found = figures(html)
    assert [*found] == TITLES
    assert notes(html) == []
    assert all(len(own.alt) > 15 and own.data for own in found.values())
    assert f"<code>{COMMAND}</code>" in html
    assert "compare-1234abcd" in html
    assert "seeds 100 to 102" in html
    assert asked_for(html) == []
    assert "http" not in re.sub(r"http-equiv", "", html)


def test_the_tables_are_those_of_the_comparison(html, kept):
    task, found = kept[1], figures(html)
    for title in ("Arms", "Forest plot", "Speed-ups"):
        rows = [dict(zip(found[title].data, row)) for row in zip(*found[title].data.values())]
        assert rows == [{name: cell(word) for name, word in one.words().items()} for one in task.arms]
    points = found["Every point of the search"].data
    assert points["arm"] == [one.name for one in task.arms for _ in one.cells]
    assert points["median step"] == [cell(str(own.t_generalize)) for one in task.arms for own in one.cells]
    assert points["chosen"].count("yes") == sum(one.entry.is_searched for one in task.arms)
    assert "0.005 to 0.1, log" in found["Search space"].data["searched"][2]


def cell(word):
    """As a spreadsheet may have it."""
    return f"'{word}" if word[:1] in "=+-@" and word else word


def test_the_curves_are_kaplan_and_meiers(html, kept):
    data = figures(html)["Kaplan-Meier curves"].data
    for name, curve in incidence(kept[1].table).items():
        rows = [i for i, arm in enumerate(data["arm"]) if arm == name]
        assert [float(data["step"][i]) for i in rows] == curve.steps.tolist()
        assert [float(data["share"][i]) for i in rows] == pytest.approx(curve.share.tolist(), rel=1e-5)


def test_a_comparison_is_known_by_its_id_its_folder_and_its_file(kept, tmp_path, capsys):
    one, _ = kept
    assert report(one.name, one.root) == 0
    stored = one.folder / "report.html"
    assert str(stored) in capsys.readouterr().out.replace("\n", "")
    shutil.copy(one.results / "compare.json", tmp_path / "mine.json")
    for which in (one.results, one.results / "compare.json", tmp_path / "mine.json"):
        assert report(which, tmp_path / "no store") == 0
    assert stored.read_text() == (one.results / "report.html").read_text() == (tmp_path / "report.html").read_text()
    assert report(one.name, one.root, "--to", str(tmp_path / "other.html")) == 0
    assert (tmp_path / "other.html").read_text() == stored.read_text()


@pytest.mark.parametrize(
    ("which", "words", "message"),
    [
        ("compare-1234abce", [], "has no comparison 'compare-1234abce' (did you mean 'compare-1234abcd'?)"),
        ("compare-empty", [], "found nothing yet; go on with: grokfast compare --resume compare-empty"),
        ("compare-1234abcd", ["--at", "3"], "--at is of a run, compare-1234abcd is a comparison"),
        ("{root}/nowhere.json", [], "nowhere.json"),
        ("{root}/broken.json", [], "must be the JSON that grokfast compare writes"),
        ("{root}/other.json", [], "has no tasks of a comparison"),
        ("{root}/old.json", [], "the record of a task of a comparison cannot be read: 'arms' is missing"),
    ],
)
def test_what_is_no_comparison_is_said_and_nothing_is_left(kept, which, words, message, capsys):
    root = kept[0].root
    Kept("compare-empty", root).begin([])
    (root / "broken.json").write_text("{")
    (root / "other.json").write_text("[1]")
    whole = json.loads(kept[0].record().read_text())
    del whole["tasks"][0]["arms"]
    (root / "old.json").write_text(json.dumps(whole))
    before = sorted(root.rglob("*"))
    assert report(which.format(root=root), root, *words) in (1, 2)
    assert message in " ".join(capsys.readouterr().err.split())
    assert sorted(root.rglob("*")) == before
