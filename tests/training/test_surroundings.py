"""What is around a call of train changes nothing: blocks, transforms, defaults, and the states that threads share."""

import contextlib

import pytest
import torch

from grokfast import EMA, Experiment, RunStore, train
from grokfast.training import Interrupted, resume
from tests.training.common import StopAt, same_result

TINY = Experiment.preset("quick").override(
    {"task.p": 13, "model.width": 32, "schedule.steps": 30, "schedule.eval_every": 5, "schedule.stop_after": None}
)
SMALL = {"task.p": 7, "schedule.steps": 6, "schedule.eval_every": 3, "schedule.batch_size": 10}
SMALL |= {"model.d_model": 16, "model.n_heads": 2}
EXPERIMENTS = [
    TINY.override({"filter": EMA()}),
    TINY.override({"engine": "reference"}),
    Experiment.preset("power").override(SMALL),
    Experiment.preset("power").override({**SMALL, "model.dropout": 0.1}),
]


@contextlib.contextmanager
def setting(set_to, value, before):
    set_to(value)
    try:
        yield
    finally:
        set_to(before)


SURROUNDINGS = {
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "a device": lambda: torch.device("meta"),
    "a default device": lambda: setting(torch.set_default_device, "meta", None),
    "fp64 by default": lambda: setting(torch.set_default_dtype, torch.float64, torch.float32),
    "fp16 by default": lambda: setting(torch.set_default_dtype, torch.float16, torch.float32),
    "deterministic": lambda: setting(torch.use_deterministic_algorithms, True, False),
    "fast products": lambda: setting(torch.set_float32_matmul_precision, "medium", "highest"),
    "saved on the CPU": torch.autograd.graph.save_on_cpu,
    "forward mode": torch.autograd.forward_ad.dual_level,
}
TRANSFORMS = {
    "grad": torch.func.grad,
    "vmap": torch.func.vmap,
    "jvp": lambda function: lambda x: torch.func.jvp(function, (x,), (x,)),
    "hessian": torch.func.hessian,
    "compile": lambda function: torch.compile(function, backend="eager"),
}


@pytest.fixture(scope="module")
def alone():
    return [train(experiment) for experiment in EXPERIMENTS]


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_what_is_around_changes_nothing(name, alone):
    before = torch.get_rng_state()
    with SURROUNDINGS[name]():
        results = [train(experiment) for experiment in EXPERIMENTS]
    for result, expected in zip(results, alone):
        same_result(result, expected)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_training_inside_a_function_that_is_transformed(name, alone):
    found = []

    def function(x):
        found.append(train(EXPERIMENTS[0]))
        return (x * x).sum()

    transformed = TRANSFORMS[name](function)
    transformed(torch.ones(3))
    same_result(found[0], alone[0])


def test_the_callers_state_is_as_it_was():
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
        train(TINY)
        assert torch.is_inference_mode_enabled()
        assert torch.is_autocast_enabled("cpu")
        assert torch.empty(1).is_meta


def test_resuming_in_inference_mode(tmp_path):
    with RunStore(tmp_path) as store, torch.inference_mode():
        with pytest.raises(Interrupted) as stopped:
            train(TINY, store=store, observers=[StopAt(13)])
        (run_id,) = stopped.value.run_ids
        resumed = resume(run_id, store)
    same_result(resumed, train(TINY))
