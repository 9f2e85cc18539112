"""Pages in a real browser: nothing is asked of the network, everything can be seen, moved, read and taken away."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from grokfast import Experiment, ablate, sweep, train
from grokfast.comparison import contest
from grokfast.comparison.kept import Kept, read
from grokfast.comparison.run import held
from grokfast.report import comparison as comparison_page
from grokfast.report import run as run_page
from grokfast.report import sweep as sweep_page
from grokfast.store import RunStore
from grokfast.sweeps import InProcess
from tests.report.chromium import REQUIRED, chromium

TINY = Experiment.preset("quick").override(
    {
        "task.p": 7,
        "model.width": 8,
        "schedule.steps": 40,
        "schedule.eval_every": 4,
        "criteria.sustain": 1,
        "criteria.threshold": 0.6,
        "criteria.generalize": "train",  # so that in a few steps some do, some do not
        "device": "cpu",
    }
)
PAGES = ("run", "sweep", "ablation", "comparison")
CONTROLS = "a[href], button, input, summary"


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A store with a run that has snapshots, a sweep over two options, and an ablation; their ids by page."""
    root = tmp_path_factory.mktemp("runs")
    chromium()  # else nothing need be trained
    with RunStore(root) as store:
        ids = {"run": train(TINY.override({"schedule.snapshots": (0, 20)}), store=store).run_id}
    grid = {"optimizer.weight_decay": [0.1, 1.0], "optimizer.lr": [0.01, 0.05]}
    ids["sweep"] = sweep(TINY, grid, seeds=2, store=root, runner=InProcess()).sweep_id
    ids["ablation"] = ablate(TINY, 2, ["decay"], store=root, runner=InProcess()).sweep_id
    own = contest(TINY, ["mse"], budget=2, tuning=1, seeds=2)
    task = held(own, lambda planned: planned.train(), store=root, runner=InProcess())
    ids["comparison"] = "compare-1234abcd"
    kept = Kept(ids["comparison"], root)
    kept.begin([])
    kept.keep([task], {task.name: {}}, "grokfast compare quick --arms mse")
    return root, ids


@pytest.fixture(scope="module")
def files(stored, tmp_path_factory):
    """The pages as files."""
    (root, ids), folder = stored, tmp_path_factory.mktemp("pages")
    record = read(Kept(ids["comparison"], root).record())
    with RunStore(root, create=False, read_only=True) as store:
        makes = {"run": run_page.page, "sweep": sweep_page.page, "ablation": sweep_page.page}
        pages = {name: make(store, ids[name]) for name, make in makes.items()}
    for name, page in {**pages, "comparison": comparison_page.page(record)}.items():
        (folder / f"{name}.html").write_text(page, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def browser(files):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, files):
    """Opens a page. Whatever it asks for beside itself, and whatever goes wrong in it, fails the test at its end."""
    contexts, asked, wrong = [], [], []

    def open_(name, **options):
        context = browser.new_context(**{"viewport": {"width": 1000, "height": 800}} | options)
        contexts.append(context)
        address = (files / f"{name}.html").as_uri()

        def route(route):
            asked.append(route.request.url)
            if route.request.url == address:
                route.continue_()
            else:
                wrong.append(f"asked for {route.request.url}")
                route.abort()

        context.route("**/*", route)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda said: wrong.append(f"{said.type}: {said.text}"))
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.goto(address)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert len(asked) >= len(contexts), "what is asked for is noticed"
    assert wrong == []


def seen(page, **options) -> np.ndarray:
    """A screenshot as luminance in [0, 1], [Y, X]."""
    pixels = Image.open(io.BytesIO(page.screenshot(**options))).convert("L")
    return np.asarray(pixels, dtype=np.float64) / 255


def background(pixels: np.ndarray) -> float:
    """The most frequent luminance."""
    shades, counts = np.unique(pixels, return_counts=True)
    return float(shades[counts.argmax()])


def download(page, button) -> tuple[str, str]:
    """The name and the text of the file that a click gives."""
    with page.expect_download() as given:
        button.click()
    return given.value.suggested_filename, Path(given.value.path()).read_text(encoding="utf-8")


def rows_of(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text)))


def test_a_machine_that_must_have_a_browser_fails_without_one(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv(REQUIRED, raising=False)
    with pytest.raises(pytest.skip.Exception, match="needs a browser"):
        chromium()
    monkeypatch.setenv(REQUIRED, "required")
    with pytest.raises(pytest.fail.Exception, match="needs a browser"):
        chromium()


def test_a_page_that_asks_or_errs_is_seen(browser, files):
    """The check of the others: what they watch for is noticed."""
    page = browser.new_page()
    asked, wrong = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    own = files / "wrong.html"
    own.write_text('<img src="http://localhost:9/picture.png"><script>throw new Error("no")</script>')
    page.goto(own.as_uri())
    page.close()
    assert asked == [own.as_uri(), "http://localhost:9/picture.png"]
    assert wrong == ["no"]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_light_or_dark_as_the_reader_has_it_and_never_empty(name, visit):
    light, dark = (seen(visit(name, color_scheme=scheme)) for scheme in ("light", "dark"))
    assert background(light) > 0.85
    assert background(dark) < 0.15
    for pixels in (light, dark):
        assert pixels.std() > 0.05
        assert np.ptp(pixels) > 0.6, "text stands out"


@pytest.mark.parametrize("name", PAGES)
def test_drawings_have_the_theme(name, visit):
    for scheme, is_fitting in (("light", lambda own: own > 0.85), ("dark", lambda own: own < 0.15)):
        page = visit(name, color_scheme=scheme)
        for drawing in page.locator("figure .plot svg:visible").all():
            assert is_fitting(background(_of(drawing))), drawing.locator("xpath=ancestor::figure").get_attribute("id")


def _of(locator) -> np.ndarray:
    """A screenshot of an element's left end, where its axis is, as luminance."""
    pixels = Image.open(io.BytesIO(locator.screenshot())).convert("L")
    width, height = pixels.size
    return np.asarray(pixels.crop((0, 0, max(width // 8, 1), height)), dtype=np.float64) / 255


@pytest.mark.parametrize("name", PAGES)
def test_on_a_phone_nothing_but_what_is_wide_scrolls_sideways(name, visit):
    page = visit(name, viewport={"width": 390, "height": 800}, is_mobile=True, has_touch=True)
    page.evaluate("document.querySelectorAll('details').forEach((own) => { own.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("document.body.scrollWidth") <= 390
    assert seen(page).std() > 0.05


@pytest.mark.parametrize("name", PAGES)
def test_every_control_is_reached_with_the_keyboard(name, visit):
    page = visit(name)
    there = page.evaluate(
        f"""() => {{
          const all = [...document.querySelectorAll({CONTROLS!r})].filter((own) => own.checkVisibility());
          all.forEach((own, i) => {{ own.dataset.at = i; }});
          return all.length;
        }}"""
    )
    reached = set()
    for _ in range(2 * there + 40):
        page.keyboard.press("Tab")
        at = page.evaluate("document.activeElement.dataset.at ?? null")
        if at == "0" and len(reached) > 1:
            break
        reached.add(at)
    assert there > 5
    assert reached - {None} == {str(i) for i in range(there)}


@pytest.mark.parametrize("name", PAGES)
def test_every_figure_says_what_is_to_be_seen(name, visit):
    page = visit(name)
    figures = page.evaluate(
        """() => [...document.querySelectorAll("figure")].map((own) => [
          ...["aria-labelledby", "aria-describedby"].map(
            (name) => document.getElementById(own.getAttribute(name)).textContent.trim()),
          [...own.querySelectorAll("img")].every((image) => image.hasAttribute("alt")),
          [...own.querySelectorAll("svg")].every((drawing) => drawing.getAttribute("aria-hidden") === "true"),
        ])"""
    )
    assert len(figures) > 2
    for title, told, has_alt, is_hidden in figures:
        assert title
        assert len(told) > 15, title
        assert has_alt, title
        assert is_hidden, title
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((own) => own.id)")
    assert len(ids) == len(set(ids))
    unnamed = "(all) => all.filter((own) => !own.textContent.trim() && !own.ariaLabel).length"
    assert page.locator(CONTROLS).evaluate_all(unnamed) == 0


@pytest.mark.parametrize("name", PAGES)
def test_every_figure_gives_its_data(name, visit):
    page, names = visit(name), []
    for i, button in enumerate(page.locator("[data-download]").all()):
        if i and i % 8 == 0:
            page.reload()  # of one visit Chromium takes ten downloads without a question
        file, text = download(page, button)
        head, *rows = rows_of(text)
        assert file == button.get_attribute("data-download")
        assert rows, file
        assert {len(row) for row in rows} == {len(head)}, file
        names.append(file)
    assert len(set(names)) == len(names) == page.locator("figure").count()


def test_the_curves_of_a_run_are_given_as_they_were_measured(stored, visit):
    root, ids = stored
    with RunStore(root, create=False, read_only=True) as store:
        curves = store.curves(ids["run"])
    page = visit("run")
    _, text = download(page, page.locator("figure:has(.curves) [data-download]").first)
    head, *rows = rows_of(text)
    for name, column in zip(head, zip(*rows)):
        assert np.allclose([float(own) for own in column], curves[name], rtol=1e-5), name


@pytest.mark.parametrize("name", ["run", "sweep"])
def test_the_values_below_the_pointer_are_said(name, visit):
    page = visit(name)
    if name == "sweep":
        page.locator("#runs-1 summary").click()
    figure = page.locator("figure:has(.curves svg:visible)").last
    head, *rows = rows_of(figure.locator("template.csv").evaluate("(own) => own.content.textContent"))
    known = {row[0]: dict(zip(head[1:], row[1:])) for row in rows}
    drawing, said = figure.locator(".plot svg"), []
    drawing.scroll_into_view_if_needed()
    box = drawing.bounding_box()
    for share in (0.15, 0.6, 0.95):
        page.mouse.move(box["x"] + share * box["width"], box["y"] + 0.4 * box["height"])
        step = figure.locator("output").inner_text().removeprefix("step ")
        pairs = figure.locator(".readout div").evaluate_all(
            "(all) => all.map((own) => [...own.children].map((child) => child.textContent))"
        )
        assert {name: "" if value == "–" else value for name, value in pairs} == known[step]
        said.append(float(step))
    assert said == sorted(set(said)), "to the right is later"


def test_arrow_keys_move_the_cursor(visit):
    page = visit("run")
    figure = page.locator("figure:has(.curves)").first
    output, line = figure.locator("output"), figure.locator(".cursor").first
    before = output.inner_text(), line.get_attribute("x1")
    figure.locator("input[type=range]").focus()
    page.keyboard.press("ArrowLeft")
    assert float(output.inner_text().removeprefix("step ")) < float(before[0].removeprefix("step "))
    assert float(line.get_attribute("x1")) < float(before[1])
    page.keyboard.press("Home")
    assert output.inner_text() == "step 0"


def test_the_slider_moves_the_picture_by_keyboard_and_by_pointer(visit):
    page = visit("run")
    slider = page.locator(".slider:has(input)").first
    slider.scroll_into_view_if_needed()
    control, frame = slider.locator("input"), slider.locator(".frame:visible")
    assert frame.count() == 1
    last, label = _of(frame), frame.get_attribute("data-label")
    control.focus()
    page.keyboard.press("Home")
    assert frame.count() == 1
    assert frame.get_attribute("data-label") == slider.locator("output").inner_text() == "step 0"
    first = frame.screenshot()
    box = control.bounding_box()
    page.mouse.click(box["x"] + box["width"] - 4, box["y"] + box["height"] / 2)
    assert frame.get_attribute("data-label") == label
    assert frame.screenshot() != first
    assert _of(frame).shape == last.shape


@pytest.mark.parametrize("name", PAGES)
def test_a_page_can_be_printed(name, visit):
    page = visit(name, color_scheme="dark")
    assert page.pdf().startswith(b"%PDF")
    page.emulate_media(media="print")
    assert page.locator("[data-download]:visible, [data-copy]:visible, nav:visible").count() == 0
    assert page.locator("thead th:visible").count() > 3, "names of columns stay"
    pixels = seen(page)
    assert background(pixels) > 0.95, "on white, also from a dark screen"
    assert pixels.std() > 0.05


def test_a_run_of_a_sweep_is_a_click_away(stored, visit):
    root, ids = stored
    with RunStore(root, create=False, read_only=True) as store:
        table = store.table(ids["sweep"])
    page = visit("sweep")
    for run_id in table["run_id"][[0, -1]]:
        page.get_by_role("link", name=str(run_id)).click()
        opened = page.locator(f"#run-{run_id}")
        opened.wait_for(state="visible")
        assert opened.locator("svg").is_visible()
        page.wait_for_function(
            "(id) => { const box = document.getElementById(id).getBoundingClientRect();"
            " return box.top >= 0 && box.top < innerHeight; }",
            arg=f"run-{run_id}",
        )


def test_a_click_on_a_column_sorts_the_runs_by_its_numbers(stored, visit):
    root, ids = stored
    with RunStore(root, create=False, read_only=True) as store:
        table = store.table(ids["sweep"])
    page = visit("sweep")
    figure = page.locator("#table-1")
    head = figure.locator("thead button", has_text=re.compile("^generalised$"))
    known = dict(zip(table["run_id"].tolist(), table["t_generalize"].tolist()))
    for way in (1, -1):
        head.click()
        order = [known[own] for own in figure.locator("tbody th a").all_inner_texts()]
        numbers = [way * (np.inf if np.isnan(own) else own) for own in order]
        assert numbers == sorted(numbers)
    assert len(order) == len(known)
    assert len(set(order)) > 1
