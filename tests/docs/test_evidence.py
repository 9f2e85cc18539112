"""The figures of README and docs are those of benchmarks/results."""

import copy

import pytest

from benchmarks import evidence

RESULTS = evidence.load()
PAGES = {figure.page: (evidence.ROOT / figure.page).read_text() for figure in evidence.figures(RESULTS)}


def test_every_figure_is_that_of_its_results():
    assert [said for _, _, said in evidence.differences(RESULTS, PAGES)] == []


@pytest.mark.parametrize("page", evidence.made(RESULTS))
def test_a_page_of_results_is_made_of_what_is_there(page):
    assert (evidence.ROOT / page).read_text() == evidence.made(RESULTS)[page], "python -m benchmarks.evidence --write"


def test_another_figure_in_the_results_is_noticed_wherever_it_stands():
    changed = copy.deepcopy(RESULTS)
    quick = next(rows for title, rows in changed["cpu-training"]["sections"].items() if title.startswith("quick:"))
    next(row for row in quick if row["name"] == "grokfast").update(median_ms=9.87, ratio=0.82)
    wrong = [(figure.page, figure.text) for figure, place, _ in evidence.differences(changed, PAGES) if place]
    assert wrong == [(page, text) for page in ("README.md", "docs/speed.md") for text in ("9.87", "0.82 ×")]


def test_another_figure_on_a_page_is_noticed():
    pages = {**PAGES, "docs/sweeps.md": PAGES["docs/sweeps.md"].replace("| 353.2 |", "| 353.3 |")}
    assert pages != PAGES
    ((figure, place, said),) = evidence.differences(RESULTS, pages)
    assert pages[figure.page][place.start : place.end] == "353.3"
    assert said == "docs/sweeps.md / 12 processes of an eager / seconds: '353.3' is '353.2' in cpu-sweep.json"


def test_a_missing_figure_and_another_date_are_noticed():
    pages = {**PAGES, "docs/sweeps.md": PAGES["docs/sweeps.md"].replace("| 12 processes", "| Twelve processes")}
    assert [
        said for _, place, said in evidence.differences(RESULTS, pages) if place is None and "is not there" in said
    ] == [
        "docs/sweeps.md / 12 processes of an eager / seconds: 353.2 of cpu-sweep.json is not there",
        "docs/sweeps.md / 12 processes of an eager / as fast: 1.00 × of cpu-sweep.json is not there",
    ]
    later = copy.deepcopy(RESULTS)
    later["swaroop2026"]["machine"]["date"] = "2031-01-01"
    said = {words.split(": ")[-1] for _, _, words in evidence.differences(later, PAGES)}
    assert said == {"swaroop2026.json is of 2031-01-01, which is not said there"}


TABLE = """# Page
| | a | b |
|---|---|---|
| one | **1** | 2 |
| one more | 3 | 4 |
## other
| one | 5 | 6 |
|---|---|---|
| x | 7 | 8 |
"""


@pytest.mark.parametrize(
    ("row", "column", "under", "found"),
    [
        ("one", "a", "", "1"),
        ("one", "b", "", "2"),
        ("one more", "b", "", "4"),
        ("x", "6", "", "8"),
        ("x", "6", "other", "8"),
    ],
)
def test_a_cell_is_found_by_its_row_and_column(row, column, under, found):
    place = evidence.place(evidence.Figure("", "", "", "", row, column, under=under), TABLE)
    assert TABLE[place.start : place.end] == found


@pytest.mark.parametrize(("row", "column", "under"), [("two", "a", ""), ("one", "c", ""), ("one", "a", "other")])
def test_what_is_in_no_table_is_not_found(row, column, under):
    assert evidence.place(evidence.Figure("", "", "", "", row, column, under=under), TABLE) == "is not there"
