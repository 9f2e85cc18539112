"""What single papers look for: on what is quickly made."""

import math

import pytest
import torch

from grokfast import Experiment, train
from grokfast.reproductions import chughtai2023, gromov2023, nanda2023, swaroop2026

SMALL = {"schedule.steps": 20, "schedule.eval_every": 10, "device": "cpu"}


def test_networks_that_are_written_down_score_as_published():
    found = swaroop2026.written_down(4)
    assert [len(own.values) for own in found] == [4] * 4
    for own in found:
        assert own.estimate == pytest.approx(own.published.value, abs=0.01)
    assert found[1].estimate > found[0].estimate > found[2].estimate


def test_what_an_untrained_network_knows_only_the_phase_sum_pretends():
    noisy = Experiment.preset("swaroop").override({**SMALL, "task.label_noise": 0.3, "schedule.stop_after": None})
    by_name = {own.what: own for own in swaroop2026.extracted(train([noisy.override({"seed": s}) for s in (0, 1)]))}
    controls = {name: own for name, own in by_name.items() if name.startswith("control")}
    measured, pretended, _ = controls.values()
    assert measured.estimate < 0.05 < 0.9 < pretended.estimate
    assert {own.verdict for own in controls.values()} == {"control"}
    assert by_name["its waves, square → cos"].verdict != "reproduced"  # after 20 steps


def test_the_authors_runs_come_with_the_package():
    a5, d59 = chughtai2023.published("A5"), chughtai2023.published("D59")
    assert (a5.n, a5.value, min(a5.values), max(a5.values)) == (4, 29_667, 17_443, 40_146)
    assert (d59.n, d59.value, min(d59.values), max(d59.values)) == (4, 20_369.5, 15_595, 25_973)


def test_a_run_that_never_generalises_is_no_evidence_for_nanda():
    changes = {"task.p": 13, "model.d_model": 16, "model.n_heads": 2, "model.d_mlp": 16, "probes": "progress"}
    runs = train([Experiment.preset("nanda").override({**SMALL, **changes, "seed": s}) for s in (0, 1)])
    by_name = {own.what: own for own in nanda2023.compare({"p53": runs})}
    ratio = by_name["restricted loss / test loss, while test accuracy is below .6"]
    assert all(map(math.isnan, ratio.values))
    assert ratio.verdict == "undecided"


def test_neurons_that_are_zero_have_no_participation():
    waves = torch.cos(2 * math.pi * 3 * torch.arange(97) / 97)
    assert gromov2023._participation(torch.stack([waves, 0 * waves], 1)) == pytest.approx(1)
    assert min(gromov2023.written_down(128)) > 0.99
