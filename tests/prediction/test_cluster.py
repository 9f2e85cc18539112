"""docs/cluster-kernel.md says what is counted, and nothing above a limit."""

import re
from pathlib import Path

import pytest

from benchmarks.prediction.cluster import BETWEEN, SHARED, Cluster
from benchmarks.prediction.devices import H200
from grokfast import Experiment

DOCUMENT = Path(__file__).parents[2] / "docs" / "cluster-kernel.md"


@pytest.fixture(scope="module")
def text():
    return " ".join(DOCUMENT.read_text().split())


def test_the_sizes_are_the_models():
    quick = Experiment.preset("quick").override({"task.train_fraction": 0.5, "model.width": 512})
    data = quick.task.build(seed=0)
    one = Cluster()
    assert (one.rows, one.n_tokens, one.n_answers) == (len(data.train.inputs), data.n_tokens, data.n_answers)
    made = quick.model.build(data, seeds=[0])
    assert one.n_parameters == sum(p.numel() for p in made.parameters())
    assert one.flops() >= 3 * 2 * one.rows * one.width * one.n_answers


@pytest.mark.parametrize("products", ["tf32", "bf16"])
def test_eight_ctas_hold_a_model_and_four_do_not(text, products):
    eight, four = (Cluster(ctas, products) for ctas in (8, 4))
    assert sum(eight.shared().values()) <= SHARED < sum(four.shared().values())
    for size in (*eight.shared().values(), sum(eight.shared().values()), sum(four.shared().values())):
        assert f"{size:,}" in text
    # the moments of 16 models beside everything else
    assert 16 * 2 * 4 * eight.n_parameters < H200.cache


@pytest.mark.parametrize("products", ["tf32", "bf16"])
def test_the_document_claims_no_more_than_the_limits(text, products):
    limits = Cluster(8, products).limits()
    column = {"tf32": 0, "bf16": 1}[products]
    rows = {
        "between shared memories": r"between shared memories: [^|]*", "shared memory": r"shared memory: [^|]*",
        "products": r"products: [^|]*", "instructions": r"instructions: [^|]*", "L2": r"L2: [^|]*",
    }  # fmt: skip
    assert rows.keys() == limits.keys()
    for name, pattern in rows.items():
        cells = re.search(rf"\| {pattern}\| ([^|]*) \| ([^|]*) \|", text)
        said = int(cells[1 + column].replace("*", "").replace(",", ""))
        assert said == round(limits[name], -3), name
    least = f"{round(min(limits.values()), -3):,.0f}"
    assert "at most 96,000 at tf32 and 128,000 at bf16" in text
    assert least in ("96,000", "128,000")


def test_what_goes_between_grows_with_the_cluster(text):
    assert Cluster(16).between() == pytest.approx(15 / 7 * Cluster(8).between())
    assert f"{Cluster(8).between() / 1e6:.1f} and {Cluster(8, 'bf16').between() / 1e6:.1f} MB a step" in text
    assert f"at most at {round(Cluster(16).limits()['between shared memories'], -3):,.0f}" in text
    assert f"(C − 1) · {74 * 64:,} rows" in text
    assert f"({round(1.5e12 / Cluster(8).between(), -3):,.0f} model-steps/s)" in text
    assert f"{BETWEEN / 1e12} TB/s" in text


def test_the_sums_in_the_text(text):
    tf32, bf16 = Cluster(8), Cluster(8, "bf16")
    of = [sum(one.instructions().values()) for one in (tf32, bf16)]
    assert f"{of[0] / 1e6:.2f} and {of[1] / 1e6:.2f} million of warps" in text
    assert f"{tf32.through_shared() / 1e6:.1f} and {bf16.through_shared() / 1e6:.1f} MB a CTA and step" in text
    assert f"{tf32.flops() / 1e9:.2f} GFLOP" in text
    issue = tf32.limits()["instructions"]
    assert f"{round(issue / 4, -3):,.0f} to {round(issue / 2, -3):,.0f}" in text
    assert f"{8 * tf32.memory_traffic() / 1e6:.1f} MB of moments" in text
    assert f"have {16 / min(tf32.limits().values()) * 1e6:.0f} µs for one" in text
