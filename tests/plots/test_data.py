"""Pictures of data: every task's and odd ones, each cell, row and point against the data themselves."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from grokfast import parts
from grokfast.plots import plot_data
from grokfast.plots.data.features import in_images
from grokfast.plots.data.rows import chosen
from grokfast.tasks import (
    Data,
    DigitsTask,
    DyckTask,
    GroupTask,
    ImagesTask,
    Labels,
    MixtureTask,
    ModularTask,
    MultihopTask,
    ParityTask,
    RandomFeaturesTask,
    SequenceTask,
    Split,
    Tensors,
    TwoScaleTask,
)  # fmt: skip
from tests.plots.drawn import figures, size, texts

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """Draw a task's data, or data; look at the size of the file; return the figure."""
    kept = figures(monkeypatch)

    def drawn(what, labels=None, title=""):
        if not isinstance(what, Data):
            what, labels, title = what.build(seed=3), what.labels(seed=3), parts.shown(what)
        path = plot_data(what, tmp_path / "data.png", title=title, labels=labels)
        width, height = size(path)
        assert width == 1200
        assert 200 <= height <= 1200
        return kept[-1]

    return drawn


def said(figure):
    return figure._suptitle.get_text()


def image(axes):
    return axes.images[0].get_array().filled(np.nan)


def data(train, test, n_tokens=0, n_answers=1, **others):
    splits = {"train": Split(*train), "test": Split(*test)}
    return Data(splits=splits, n_tokens=n_tokens, n_answers=n_answers, **others)


def images_task(path):
    x, y = np.arange(30 * 36, dtype=np.uint8).reshape(30, 6, 6), np.arange(30) % 3
    np.savez(path / "images.npz", x=x, y=y)
    return ImagesTask(path=str(path / "images.npz"), n_train=20)


GIVEN = {
    "images": images_task,
    "tensors": lambda _: Tensors(np.eye(6), np.arange(6) % 2, np.eye(6)[:2], np.arange(2)),
    "mixture": lambda _: MixtureTask(
        first=ModularTask(p=7, augment="swap"), second=ModularTask(p=5, operation="mul"), ratio=0.3
    ),
}  # of the others the defaults are drawn


@pytest.mark.parametrize("name", [n for n, k in parts.kinds("task").items() if k.__module__.startswith("grokfast.")])
def test_every_tasks_data_are_drawn_with_its_name_and_its_rows(name, draw, tmp_path):
    task = GIVEN[name](tmp_path) if name in GIVEN else parts.find("task", name)()
    if missing := task.missing():
        pytest.skip(f"needs {missing}")
    figure, state = draw(task), torch.get_rng_state()
    built = task.build(seed=3)
    lines = said(figure).splitlines()
    assert lines[0] == parts.shown(task) or lines[0].startswith(parts.shown(task)[:100])
    for split, own in built.splits.items():
        assert f"{split} {len(own):,}" in lines[1]
    assert torch.equal(torch.get_rng_state(), state)


def test_a_table_shows_each_cells_answer_and_what_it_is_for(draw):
    task = ModularTask(p=11, operation="sub", layout="operator", label_noise=0.3)
    built = task.build(seed=3)
    built = dataclasses.replace(built, made=torch.arange(len(built.train)) % 3 == 0)
    figure = draw(built, task.labels())
    left, right = figure.axes[:2]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["train", "test", "made by augmentation", "wrong label"]
    answers, shades = image(left), image(right)
    seen = 0
    for split, own in built.splits.items():
        for row, ((a, _, b, _), answer) in enumerate(zip(own.inputs.tolist(), own.targets.tolist())):
            is_wrong = split == "train" and answer != (a - b) % 11
            is_made = split == "train" and row % 3 == 0
            name = "wrong label" if is_wrong else "made by augmentation" if is_made else split
            assert (answers[a, b], names[int(shades[a, b])]) == (answer, name)
            seen += 1
    assert seen == answers.size == 121
    assert (left.get_ylabel(), left.get_xlabel()) == ("token 1", "token 3")
    wrong, made = int(built.corrupted.sum()), int(built.made.sum())
    assert f"train 60 ({wrong} wrong labels, {made} made by augmentation), test 61" in said(figure)
    assert "section" not in said(figure)


def test_a_cell_of_several_splits_is_of_the_first_and_training_comes_before_all(draw):
    whole = table(6, 6)
    again = Split(torch.cat([whole.train.inputs, whole.test.inputs]), torch.zeros(36, dtype=torch.int64))
    splits = {"again": again, "test": whole.test, "train": whole.train}
    figure = draw(Data(splits=splits, n_tokens=6, n_answers=7))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["train", "test"]
    assert np.array_equal(image(figure.axes[0]), np.add.outer(np.arange(6), np.arange(6)) % 7)
    assert np.array_equal(image(figure.axes[1]), np.arange(36).reshape(6, 6) % 2)


def test_colours_of_answers_go_round_and_those_of_splits_differ(draw):
    figure = draw(ModularTask(p=50, label_noise=0.1))
    scale = figure.axes[0].images[0]
    first, second, last = (np.array(scale.to_rgba(i)) for i in (0, 1, 49))
    middle = np.array(scale.to_rgba(25))
    assert np.abs(first - last).max() < 2 * np.abs(first - second).max() + 0.05 < np.abs(first - middle).max()
    shades = [patch.get_facecolor() for patch in figure.legends[0].get_patches()]
    assert len({*shades}) == 3


def table(*sizes, train=2):
    """All rows of operands below `sizes`, answers their sum mod 7; every `train`-th one is for training."""
    x = torch.cartesian_prod(*map(torch.arange, sizes))
    y, is_train = x.sum(1) % 7, torch.arange(len(x)) % train == 0
    return data((x[is_train], y[is_train]), (x[~is_train], y[~is_train]), max(sizes), 7)


def test_of_more_operands_a_section_is_drawn_and_said(draw):
    built = table(6, 2, 5, 3)
    figure = draw(built, Labels(tokens={0: "zero", 1: "one", 2: "two"}))
    note = said(figure).splitlines()[-1]
    words = {"zero": 0, "one": 1, "two": 2}
    b, d = (words[part.split(" is ")[1]] for part in note.removeprefix("section: ").split(", "))
    assert note.startswith("section: token 2 is ")
    answers = image(figure.axes[0])
    assert answers.shape == (6, 5)
    assert all(answers[a, c] == (a + b + c + d) % 7 for a in range(6) for c in range(5))


def test_operations_are_a_section_too_the_commonest_in_training(draw):
    pairs = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    rows = [torch.stack([pairs[:, 0], torch.full((25,), o), pairs[:, 1]], 1) for o in (5, 6)]
    y = [pairs.sum(1) % 5, pairs.prod(1) % 5]
    train = torch.cat([rows[0][:10], rows[1][:15]]), torch.cat([y[0][:10], y[1][:15]])
    test = torch.cat([rows[0][10:], rows[1][15:]]), torch.cat([y[0][10:], y[1][15:]])
    figure = draw(data(train, test, 7, 5), Labels(tokens={5: "add", 6: "mul"}))
    assert said(figure).splitlines()[-1] == "section: token 2 is mul"
    assert np.array_equal(image(figure.axes[0]), np.outer(np.arange(5), np.arange(5)) % 5)


def test_of_many_symbols_the_first_are_drawn(draw):
    figure = draw(table(4096, 40))
    assert said(figure).splitlines()[-1] == "section: the first 256 of 4,096 symbols"
    answers = image(figure.axes[0])
    assert np.array_equal(answers, np.add.outer(np.arange(256), np.arange(40)) % 7)


def test_rows_that_fill_no_table_are_drawn_as_rows(draw):
    x = torch.randint(0, 1000, (60, 2), generator=torch.Generator().manual_seed(0))
    figure = draw(data((x[:30], x[:30, 0] % 7), (x[30:], x[30:, 0] % 7), 1000, 7))
    assert len(figure.axes) == 1
    assert not figure.axes[0].images


def words(task, labels):
    """Of each split the rows as texts, tokens and answers, empty where none is asked."""
    found = {}
    for name, split in task.build(seed=3).splits.items():
        x, y = split.inputs.tolist(), split.targets.reshape(len(split), -1).tolist()
        found[name] = [
            ([labels.tokens.get(t, str(t)) for t in a], ["" if t < 0 else labels.answers.get(t, str(t)) for t in b])
            for a, b in zip(x, y)
        ]
    return found


@pytest.mark.parametrize(
    "task",
    [
        MultihopTask(),
        MultihopTask(operation="comparison", n_entities=30, n_relations=4, n_values=5, phi=10.0),
        DyckTask(length=8, n_train=15, n_test=9),
        SequenceTask(length=4),
        SequenceTask(operation="count"),
    ],
    ids=parts.shown,
)
def test_sequences_and_facts_are_rows_of_every_split_as_they_are(task, draw):
    built, labels = task.build(seed=3), task.labels()
    rows, note = chosen(built, labels)
    assert note == ""
    there = words(task, labels)
    assert list(dict.fromkeys(row.split for row in rows)) == list(there)
    assert 12 <= len(rows) <= 18
    for name, own in there.items():
        of_split = [(row.tokens, row.answers) for row in rows if row.split == name]
        assert len(of_split) >= 3
        assert all(row in own for row in of_split)
    drawn = texts(draw(task).axes[0])
    cells = [cell for row in rows for cell in (*row.tokens, *row.answers) if cell]
    left = drawn.copy()
    for cell in cells:
        left.remove(cell)
    assert sorted(left) == sorted(["shown", "asked", *there, *["→"] * len(rows), *[""] * len(rows)])


def test_tasks_say_what_their_tokens_and_answers_are():
    rows, _ = chosen(MultihopTask().build(), MultihopTask().labels())
    assert {row.tokens[2] for row in rows if row.split == "atomic"} == {"·"}
    assert all(row.tokens[1].startswith("r") for row in rows)
    dyck = DyckTask(answers="string")
    for row in chosen(dyck.build(), dyck.labels())[0]:
        depths = np.cumsum([{"(": 1, ")": -1}[token] for token in row.tokens])
        assert row.answers == ["yes" if depths.min() >= 0 and depths[-1] == 0 else "no"]
    assert {row.tokens[4] for row in chosen(SequenceTask(length=4).build(), SequenceTask(length=4).labels())[0]} == {
        "="
    }
    assert GroupTask(layout="operator").labels().tokens == {120: "=", 121: "∘"}


def test_wrong_labels_and_rows_of_augmentation_are_remarked_in_rows():
    x, y = torch.arange(60).reshape(20, 3), torch.arange(20) % 4
    special = {"corrupted": torch.arange(20) == 0, "made": torch.arange(20) == 19}
    rows, _ = chosen(data((x, y), (x + 60, y), 120, 4, **special), Labels())
    assert [row.remark for row in rows if row.remark] == ["wrong label", "by augmentation"]
    assert rows[0].remark == "wrong label"


@pytest.mark.parametrize("n_symbols", [2, 1000, 10**9])
def test_long_rows_are_drawn_with_both_ends(n_symbols, draw):
    x = torch.full((5, 300), n_symbols - 1)
    x[:, 0], x[:, -1] = 0, 1
    y = torch.ones(5, 200, dtype=torch.int64)
    built = data((x, y), (x, y), n_symbols, 2)
    rows, _ = chosen(built, Labels())
    for row in rows:
        assert (row.tokens[0], row.tokens[-1], row.tokens.count("…")) == ("0", "1", 1)
        assert (row.answers[0], row.answers[-1], row.answers.count("…")) == ("1", "1", 1)
    draw(built)


def test_of_many_splits_the_first_are_drawn_and_this_is_said(draw):
    x, y = torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    features = torch.rand(2, 30)
    for inputs, targets, n_tokens, most in (
        (x, y, 1, 6),
        (features, y, 0, 4),
        (features, torch.rand(2, 1), 0, 4),
        (torch.zeros(2, 36), y, 0, 6),
    ):
        names = ["train", "test", *(f"other_{i}" for i in range(98))]
        splits = {name: Split(inputs, targets) for name in names}
        figure = draw(Data(splits=splits, n_tokens=n_tokens, n_answers=1))
        assert said(figure).splitlines()[-1].endswith(f"the first {most} of 100 splits")


def test_digits_are_drawn_as_images_with_their_labels(draw):
    pytest.importorskip("sklearn.datasets", reason="needs scikit-learn: pip install 'grokfast[data]'")
    task = DigitsTask(label_noise=0.3)
    built, clean = task.build(seed=3), DigitsTask().build(seed=3)
    figure = draw(task)
    assert "8 × 8 pixels; ✗: wrong label" in said(figure)
    axes = figure.axes[0]
    assert len(axes.images) == len(axes.texts) == 24
    for drawn, own in zip(axes.images, texts(axes)):
        at = (built.train.inputs.reshape(-1, 8, 8).numpy() == drawn.get_array()).all((1, 2)).nonzero()[0]
        label, is_wrong = int(own.split()[0]), own.endswith(" ✗")
        assert any(
            built.train.targets[i] == label and (clean.train.targets[i] != label) == is_wrong for i in at.tolist()
        )
    assert any("✗" in own for own in texts(axes))
    assert not any("✗" in own for own in texts(figure.axes[1]))


def test_images_are_told_from_other_features():
    generator = torch.Generator().manual_seed(0)
    blobs = torch.nn.functional.avg_pool2d(torch.randn(50, 1, 30, 30, generator=generator), 3, 1).reshape(50, 784)
    y = torch.zeros(50, dtype=torch.int64)
    assert in_images(data((blobs, y), (blobs, y))) == 28
    assert in_images(data((blobs[:1], y[:1]), (blobs, y))) == 28
    shuffled = blobs[:, torch.randperm(784, generator=generator)]
    assert in_images(data((shuffled, y), (shuffled, y))) is None
    for task in (ParityTask(n=49), TwoScaleTask(n_large=180, n_small=16), ParityTask()):
        assert in_images(task.build()) is None


def test_digits_are_told_from_features_of_them():
    pytest.importorskip("sklearn.datasets", reason="needs scikit-learn: pip install 'grokfast[data]'")
    assert in_images(DigitsTask().build()) == 8
    assert in_images(RandomFeaturesTask(width=400).build()) is None


@pytest.mark.parametrize("n", [9, 300])
def test_the_framed_signs_of_parity_are_those_that_make_the_answer(n, draw):
    figure = draw(ParityTask(n=n, k=3, n_train=60))
    assert "framed: those that decide the answer" in said(figure)
    for axes in figure.axes:
        signs = image(axes)
        assert {*np.unique(signs)} == {-1, 1}
        framed = [int(patch.get_x() + 0.5) for patch in axes.patches]
        assert len(framed) == 3
        answers = [float(tick.get_text().removeprefix("→ ")) for tick in axes.get_yticklabels()]
        assert np.array_equal(signs[:, framed].prod(1), answers)
    assert ("128 of 300 features" in said(figure)) == (n == 300)


def test_real_targets_are_points_along_the_first_principal_components(draw):
    task = TwoScaleTask(n_train=80, n_test=30, n_large=3, n_small=2)
    figure, built = draw(task), task.build(seed=3)
    x = built.train.inputs.double().numpy()
    directions = np.linalg.svd(x - x.mean(0), full_matrices=False)[2][:2].T
    for axes, split in zip(figure.axes, ("train", "test")):
        own = built.splits[split]
        expected = (own.inputs.double().numpy() - x.mean(0)) @ directions
        points = axes.collections[0].get_offsets().data
        for i in range(2):  # up to sign
            assert min(np.abs(points[:, i] - s * expected[:, i]).max() for s in (1, -1)) < 1e-6
        assert np.allclose(axes.collections[0].get_array(), own.targets[:, 0])


def test_several_real_targets_are_points_themselves_and_one_feature_is_an_axis(draw):
    x, y = torch.rand(20, 5), torch.rand(20, 3)
    figure = draw(data((x, y), (x, y), n_answers=3))
    assert "targets 1 and 2 of 3" in said(figure)
    assert np.allclose(figure.axes[0].collections[0].get_offsets(), y[:, :2])
    figure = draw(data((x[:, :1], y[:, :1]), (x[:, :1], y[:, :1])))
    assert np.allclose(figure.axes[0].collections[0].get_offsets(), torch.cat([x[:, :1], y[:, :1]], 1))


TOKENS, ONES = torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)


@pytest.mark.parametrize(
    ("x", "y", "n_tokens", "n_answers"),
    [
        (TOKENS, ONES, 1, 1),
        (TOKENS[:, :1], ONES, 1, 1),
        (TOKENS, ONES[:, None], 5, 1),
        (TOKENS, torch.zeros(1, 1), 5, 1),
        (TOKENS, torch.rand(1, 3), 5, 3),
        (torch.cartesian_prod(*[torch.arange(2)] * 2), torch.zeros(4, dtype=torch.int64), 2, 1),
        (torch.cartesian_prod(*[torch.arange(9)] * 2), torch.rand(81, 1), 9, 1),
        (torch.arange(50)[:, None] * torch.tensor([1, 0]), torch.arange(50), 50, 50),
        (torch.tensor([[0, 0], [10**6, 1], [5, 0]]), torch.tensor([0, 10**6, 1]), 10**6 + 1, 10**6 + 1),
        (torch.zeros(1, 1), ONES, 0, 1),
        (torch.zeros(3, 64), torch.zeros(3, dtype=torch.int64), 0, 1),
        (torch.zeros(3, 7), torch.zeros(3, 1), 0, 1),
        (torch.ones(1, 1), torch.ones(1, 1), 0, 1),
        (torch.rand(1, 7, dtype=torch.float64) * 1e-300, torch.rand(1, 1), 0, 1),
        (torch.rand(2, 7) * 1e30, torch.rand(2, 1) * 1e30, 0, 1),
        (torch.rand(2, 20_000), torch.rand(2, 2), 0, 2),
        (torch.rand(2, 300**2).cumsum(1), torch.tensor([0, 10**6]), 0, 10**6 + 1),
        (torch.rand(2, 70_000), torch.tensor([[0, 1, 2, 3], [-1, -1, 4, -1]]), 0, 5),
    ],
)
def test_odd_data_are_drawn(x, y, n_tokens, n_answers, draw):
    draw(data((x, y), (x[:1], y[:1]), n_tokens, n_answers))


def test_names_and_labels_are_texts_and_no_formulas(draw):
    odd = ["$x$", r"$\frac{", "a\x1b[31m$", "_", "x" * 300]
    labels = Labels(tokens=dict(enumerate(odd)), answers=dict(enumerate(odd)))
    x = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    y, real = x.sum(1) % 5, torch.rand(25, 1)
    for inputs, targets, n_tokens, n_answers in (
        (x, y, 5, 5), (x, torch.stack([y, y], 1), 5, 5), (x.float(), y, 0, 5), (x.float(), real, 0, 1),
        (torch.zeros(25, 25), y, 0, 5),
    ):  # fmt: skip
        splits = {name: Split(inputs, targets) for name in ("train", "test", *odd)}
        figure = draw(Data(splits=splits, n_tokens=n_tokens, n_answers=n_answers), labels, "$\\frac{ \x07")
        assert said(figure).splitlines()[0] == "$\\frac{ \\x07"


def test_data_are_not_changed_and_a_full_disk_is_an_os_error(tmp_path):
    task = ModularTask(p=7, label_noise=0.5)
    built, again = task.build(), task.build()
    first = plot_data(built, tmp_path / "a.png").read_bytes()
    assert torch.equal(built.train.inputs, again.train.inputs)
    assert torch.equal(built.train.targets, again.train.targets)
    assert plot_data(again, str(tmp_path / "b.png")).read_bytes() == first
    with pytest.raises(OSError, match="nowhere"):
        plot_data(built, tmp_path / "nowhere" / "a.png")
