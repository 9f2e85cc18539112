"""Which step an experiment gets, and what is said of it."""

import pytest
import torch

from grokfast import MA, Experiment, backend, doctor
from grokfast.models.base import FUSED, OPERATIONS, PLAIN
from grokfast.training.ensemble import Ensemble, choice_of

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
QUICK, NANDA = Experiment.preset("quick"), Experiment.preset("nanda")


def choice(experiment, device):
    return choice_of(experiment, device, experiment.task.build())


@pytest.fixture
def gpu(monkeypatch):
    """Pretends that there is one of a compute capability."""

    def pretend(*capability, triton=True):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
        monkeypatch.setattr(backend, "_has_triton", lambda: triton)
        backend.kernels_for.cache_clear()

    yield pretend
    backend.kernels_for.cache_clear()


@pytest.mark.parametrize(
    ("base", "change", "name", "reason"),
    [
        (QUICK, {}, FUSED, "Triton"),
        (QUICK, {"model.activation": "abs", "loss": "mse", "schedule.batch_size": 64}, FUSED, "Triton"),
        (QUICK, {"model.depth": 2}, OPERATIONS, "depth 2, the fused step takes one hidden layer"),
        (QUICK, {"precision": "float64"}, PLAIN, "float64"),
        (QUICK, {"engine": "reference"}, PLAIN, "asked for"),
        (NANDA, {}, FUSED, "Triton, each distinct prefix once"),
        (NANDA, {"model.d_model": 1024}, PLAIN, "1024"),
        (NANDA, {"model.dropout": 0.1}, PLAIN, "dropout"),
    ],
)
def test_on_a_gpu_the_kernels_are_taken_where_they_fit(gpu, base, change, name, reason):
    gpu(9, 0)
    found = choice(base.override(change), GPU)
    assert found.name == name
    assert reason in found.reason
    assert found.step.has_products == ("Triton" in reason)
    assert found.products == "ieee"
    assert found.why_no_replay == ""
    assert str(found).startswith(f"{name} (")


HOST = {"filter": MA(ring="host")}


@pytest.mark.parametrize(
    ("change", "is_replayed"),
    [
        (HOST, True),  # the kernels read and write it from the device
        ({**HOST, "model.depth": 2}, True),
        ({**HOST, "engine": "reference"}, False),
        ({**HOST, "precision": "float64"}, False),
        ({"filter": MA(ring="bfloat16"), "engine": "reference"}, True),
        ({"engine": "reference"}, True),
        ({"precision": "float64"}, True),
    ],
)
def test_a_window_in_host_memory_that_plain_pytorch_moves_cannot_be_in_a_graph(gpu, change, is_replayed):
    gpu(9, 0)
    found = choice(QUICK.override(change), GPU)
    assert (found.why_no_replay == "") == is_replayed
    if not is_replayed:
        assert "one step at a time: plain PyTorch takes the filter's window in host memory" in str(found)
    with backend.using("reference"):
        assert (choice(QUICK.override(change), GPU).why_no_replay == "") == (change.get("filter") != HOST["filter"])


def test_devices_without_graphs_go_step_by_step(monkeypatch):
    assert choice(QUICK, torch.device("meta")).why_no_replay == "no graphs on meta"


def test_an_old_gpu_falls_back_and_says_so(gpu):
    gpu(7, 5)
    found = choice(QUICK.override({"products": "tf32"}), GPU)
    assert found.name == PLAIN
    assert found.reason == "compute capability 7.5, the kernels need 8.0; no tf32 products"
    assert found.products == "ieee"
    assert found.why_no_replay == ""
    assert "evaluation to evaluation" in str(found)


def test_a_gpu_without_triton_falls_back_and_says_so(gpu):
    gpu(9, 0, triton=False)
    found = choice(QUICK, GPU)
    assert found.name == PLAIN
    assert "Triton" in found.reason


@pytest.mark.parametrize("products", ["tf32x3", "tf32", "bf16"])
def test_products_are_those_of_the_kernels_or_refused_on_a_cpu(gpu, products):
    gpu(9, 0)
    for base in (QUICK, NANDA):
        experiment = base.override({"products": products, "device": "cpu"})
        assert choice(experiment, GPU).products == products
        assert f"{products} products" in str(choice(experiment, GPU))
        with pytest.raises(
            ValueError, match=f"products must be 'ieee' on a CPU, which has no others, got '{products}'"
        ):
            Ensemble([experiment])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"products": "tf16"}, r"products must be one of 'ieee', 'tf32x3', 'tf32', 'bf16', got 'tf16' \(did you mean"),
        ({"precision": "float16"}, "precision must be one of 'float32', 'float64', got 'float16'"),
        ({"products": "tf32", "precision": "float64"}, "products must be 'ieee' where precision is 'float64'"),
    ],
)
def test_unknown_precisions_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        QUICK.override(change)


def test_on_a_cpu_it_is_the_extension_or_plain_pytorch(isa, monkeypatch):
    assert choice(QUICK, CPU).name == FUSED
    assert "only where a unit is active" in choice(QUICK, CPU).reason
    in_tiles, in_layers = "C++ extension, a tile of rows at a time", "layer by layer, without autograd"
    gelu, deeper = (
        choice(QUICK.override(change), CPU) for change in ({"model.activation": "gelu"}, {"model.depth": 2})
    )
    if isa == "baseline":
        assert gelu.name == OPERATIONS
        assert (deeper.name, deeper.reason) == (PLAIN, f"products are faster with AVX2, not with baseline; {in_layers}")
    else:
        assert (gelu.name, gelu.reason) == (deeper.name, deeper.reason) == (FUSED, in_tiles)
    folded = "C++ extension, folded: tables straight to hidden units and logits"
    assert choice(NANDA, CPU).reason == folded
    assert choice(NANDA, CPU).why_no_replay == "a CPU has no graphs"
    assert choice(QUICK.override({"precision": "float64"}), CPU).name == PLAIN
    with backend.using("reference"):
        assert choice(QUICK, CPU).reason == "asked for"
    monkeypatch.setattr(backend, "built", lambda: (None, "no compiler"))
    how = "plain PyTorch (no compiler; layer by layer, without autograd), ieee products, one step at a time"
    assert str(choice(QUICK, CPU)).startswith(how)


def test_doctor_says_it_for_every_preset():
    rows = {what: how for what, _, how in doctor.operations() if what.startswith("grokfast run ")}
    assert set(rows) == {f"grokfast run {name}" for name in doctor.PRESETS}
    assert rows["grokfast run quick"] == str(Ensemble([QUICK]).choice)
