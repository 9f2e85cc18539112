"""Grok times of runs and curves; precision and recall; the spread over seeds and splits."""

import math

import numpy as np
import pytest
import torch

from grokfast import Experiment, RunStore, sweep, train
from grokfast.analysis import grok_times, precision_recall, stability
from grokfast.models import PairMLPConfig, TransformerConfig
from grokfast.nn.ensemble import EnsembleModule
from grokfast.tasks import Data, ModularTask, MultihopTask, Split, TwoScaleTask
from grokfast.training.experiment import Criteria
from tests.analysis.runs import GROKKED, MEMORIZED, RUNNING, table

TINY = Experiment.preset("quick").override(
    {"task.p": 5, "model.width": 16, "schedule.steps": 60, "schedule.eval_every": 5, "schedule.stop_after": None,
     "task.train_fraction": 0.8, "criteria.threshold": 0.6, "device": "cpu"}
)  # fmt: skip


def curves(train_at, test_at, *, last=1000, every=100):
    """Accuracies that are 1 from these steps on, None: never."""
    step = np.arange(0, last + 1, every)
    of = [np.where(step >= (at if at is not None else math.inf), 1.0, 0.1) for at in (train_at, test_at)]
    return {"step": step, "train_accuracy": of[0], "test_accuracy": of[1]}


class TestGrokTimes:
    def test_of_curves(self):
        found = grok_times([curves(200, 600), curves(100, None), curves(0, 300)])
        np.testing.assert_array_equal(found.t_memorize, [200, 100, 0])
        np.testing.assert_array_equal(found.t_generalize, [600, np.nan, 300])
        np.testing.assert_array_equal(found.gap, [400, np.nan, 300])
        np.testing.assert_array_equal(found.ratio, [3, np.nan, math.inf])
        np.testing.assert_array_equal(found.followed, [1000] * 3)
        median = found.median()
        assert (median.median, median.observed, median.n) == (600, 2, 3)  # one is censored at 1,000, not left out
        assert found.median("t_memorize").median == 100

    def test_a_crossing_lasts(self):
        one = curves(200, 600)
        one["test_accuracy"][2] = 1.0  # for one evaluation
        assert grok_times(one).t_generalize.tolist() == [600]
        assert grok_times(one, Criteria(sustain=1)).t_generalize.tolist() == [200]
        assert grok_times(one, Criteria(memorize="test")).t_memorize.tolist() == [600]

    def test_of_runs_and_of_their_curves_it_is_the_same(self, tmp_path):
        runs = train([TINY.override({"seed": s}) for s in range(3)])
        found = grok_times(runs)
        for run, t_memorize, t_generalize, followed in zip(runs, found.t_memorize, found.t_generalize, found.followed):
            assert (run.t_memorize, run.steps) == (t_memorize, followed)
            assert run.t_generalize == t_generalize or math.isnan(t_generalize)
        again = grok_times([run.curves for run in runs], TINY.criteria)
        other = grok_times(runs, TINY.criteria)
        for name in ("t_memorize", "t_generalize", "followed"):
            np.testing.assert_array_equal(getattr(found, name), getattr(again, name))
            np.testing.assert_array_equal(getattr(found, name), getattr(other, name))
        swept = sweep(TINY, {"seed": [0, 1, 2]}, store=tmp_path)
        long_form = grok_times(swept.curves(), TINY.criteria)
        np.testing.assert_array_equal(long_form.t_memorize, found.t_memorize)

    @pytest.mark.parametrize(
        ("call", "error", "message"),
        [
            (lambda: grok_times([]), ValueError, "runs must have at least one run"),
            (lambda: grok_times("runs"), TypeError, "runs must be results, or curves"),
            (lambda: grok_times([1]), TypeError, "runs must be results, or curves"),
            (lambda: grok_times({"step": [1]}), ValueError, "curves must have 'train_accuracy'"),
            (lambda: grok_times(curves(1, 2), {"threshold": 1}), TypeError, "criteria must be Criteria"),
            (lambda: grok_times(curves(1, 2) | {"step": [1]}), ValueError, "columns of one length"),
        ],
    )
    def test_bad_input_is_named(self, call, error, message):
        with pytest.raises(error, match=message):
            call()


class Says(EnsembleModule):
    """Of features [N, 1] the class that they are."""

    def __init__(self, n_classes):
        super().__init__((0,))
        self.eye = torch.nn.Parameter(torch.eye(n_classes)[None])

    def forward(self, inputs, masks=None):
        return self.eye[:, inputs[0, :, 0].long()]


class TestPrecisionRecall:
    def test_by_hand(self):
        said, right = torch.tensor([0, 0, 1, 1, 1, 3]), torch.tensor([0, 1, 1, 1, 0, 2])
        split = Split(said[:, None].float(), right)
        data = Data(splits={"train": split, "test": split, "more": split}, n_tokens=0, n_answers=5)
        found = precision_recall(Says(5), data)
        assert [*found] == ["train", "test", "more"]
        one = found["more"]
        assert one.precision[0, :4].tolist() == pytest.approx([1 / 2, 2 / 3, 0, 0])
        assert one.recall[0, :4].tolist() == pytest.approx([1 / 2, 2 / 3, 0, 0])
        assert one.f1[0, :4].tolist() == pytest.approx([1 / 2, 2 / 3, 0, 0])
        assert all(scores[0, 4].isnan() for scores in (one.precision, one.recall, one.f1))
        assert one.support[0].tolist() == [2, 3, 1, 0, 0]
        assert one.macro["f1"].item() == pytest.approx((1 / 2 + 2 / 3) / 4)

    def test_it_is_scikit_learns(self):
        metrics = pytest.importorskip("sklearn.metrics", reason="needs scikit-learn: pip install 'grokfast[data]'")
        task = ModularTask(p=7)
        model = PairMLPConfig(width=8).build(task.build(), seeds=(0, 1))
        found = precision_recall(model, task, split="test")["test"]
        for e in range(2):
            test = task.build(seed=e).test
            said = model(test.inputs)[e].argmax(-1)
            expected = metrics.precision_recall_fscore_support(test.targets, said, labels=range(7), zero_division=0)
            for mine, theirs in zip((found.precision, found.recall, found.f1, found.support), expected):
                torch.testing.assert_close(mine[e].double().nan_to_num(0), torch.tensor(theirs).double())

    def test_answers_that_are_asked_count(self):
        task = MultihopTask(n_entities=12, n_relations=4, phi=1.0, n_test=50)
        model = TransformerConfig(d_model=8, n_heads=2, d_mlp=8).build(task.build(), seeds=(0,))
        found = precision_recall(model, task)
        data = task.build()
        assert [*found] == ["train", "test", "test_ood", "atomic", "inferred"]
        for name, split in data.splits.items():
            assert found[name].support.sum() == len(split)
        right = (model(data.train.inputs)[0].argmax(-1) == data.train.targets).sum()
        hits = (found["train"].recall * found["train"].support).nansum()
        assert hits.item() == pytest.approx(right.item())

    def test_real_targets_are_refused(self):
        run = train(
            Experiment.preset("quick").override(
                {"task": TwoScaleTask(n_train=5, n_test=5), "model": "mlp(depth=0)", "loss": "mse",
                 "schedule.steps": 1, "schedule.eval_every": 1, "device": "cpu"}
            )
        )  # fmt: skip
        with pytest.raises(ValueError, match="task must have classes"):
            precision_recall(run)
        with pytest.raises(ValueError, match="split must be one of"):
            precision_recall(PairMLPConfig(width=4).build(ModularTask(p=5).build()), ModularTask(p=5), split="x")


class TestStability:
    def test_each_factor_with_the_others_fixed(self):
        """t = 1000 · 2^seed · 10^split, accuracy .9 + seed/100 + split/1000 of seeds 0..2 and splits 0..1."""
        seeds, splits = [0, 1, 2] * 2, [0] * 3 + [1] * 3
        rows = [(50, 1000 * 2**s * 10**d, 60_000) for s, d in zip(seeds, splits)]
        runs = table(
            *rows, seed=seeds, task__split_seed=splits, test_accuracy=[0.9 + s / 100 + d / 1000 for s, d in
                                                                       zip(seeds, splits)],
        )  # fmt: skip
        seed, split, both = stability(runs)
        assert [one.factor for one in (seed, split, both)] == ["seed", "task.split_seed", "seed+task.split_seed"]
        assert (seed.groups, seed.runs, split.groups, split.runs, both.groups) == (2, 6, 3, 6, 1)
        assert seed.time_ratio == pytest.approx(4)  # of three the first and the last
        assert split.time_ratio == pytest.approx(10)
        assert seed.accuracy_std == pytest.approx(0.01)
        assert split.accuracy_std == pytest.approx(0.001 / math.sqrt(2))
        assert both.accuracy_range == pytest.approx((0.9, 0.921))
        assert str(seed) == "seed: 6 of 6 generalised, quartiles of t_generalize × 4; accuracy ± 0.01, 0.9 to 0.921"

    def test_runs_that_never_generalise_are_not_left_out(self):
        runs = table(*[GROKKED] * 3, *[MEMORIZED] * 2, RUNNING, seed=range(6), test_accuracy=[1, 1, 1, 0.1, 0.1, 0.5])
        (found,) = stability(runs)
        assert (found.runs, found.generalized, found.time_ratio) == (5, 3, math.inf)
        assert found.accuracy_range == (0.1, 1)
        steady = table(*[GROKKED] * 4, seed=range(4), test_accuracy=[1] * 4)
        assert stability(steady)[0].time_ratio == 1
        assert stability(steady)[0].accuracy_std == 0

    def test_cells_and_what_has_no_spread(self):
        runs = table(GROKKED, GROKKED, MEMORIZED, seed=[0, 1, 0], lr=[1, 1, 2], test_accuracy=[1, 0.9, None])
        one, other = stability(runs, by=["lr"])
        assert (one.cell, one.groups, other.cell, other.groups) == ({"lr": 1}, 1, {"lr": 2}, 0)
        assert math.isnan(other.time_ratio)
        assert math.isnan(other.accuracy_std)
        assert str(other) == "seed: no runs that differ in it alone"

    def test_of_a_sweep(self, tmp_path):
        swept = sweep(TINY, {"seed": [0, 1], "task.split_seed": [5, 6]}, store=tmp_path)
        found = stability(swept.table())
        assert [one.factor for one in found] == ["seed", "task.split_seed", "seed+task.split_seed"]
        assert [one.groups for one in found] == [2, 2, 1]
        with RunStore(tmp_path) as store:
            accuracies = store.table()["test_accuracy"]
        assert found[-1].accuracy_range == (accuracies.min(), accuracies.max())
        assert found[-1].accuracy_std == pytest.approx(accuracies.std(ddof=1))

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"over": "seed"}, TypeError, "over must be a sequence"), ({"over": []}, ValueError, "over must name"),
            ({"by": ["lr"]}, ValueError, "table must have 'lr'"), ({"over": ["sed"]}, ValueError, "table must have"),
        ],
    )  # fmt: skip
    def test_bad_input_is_named(self, options, error, message):
        with pytest.raises(error, match=message):
            stability(table(GROKKED, seed=[0], test_accuracy=[1]), **options)
