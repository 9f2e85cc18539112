"""PairStep against PairMLP and ops.classify in fp64: its kernels, interpreted without a GPU, and its plain path."""

import importlib
import math

import pytest
import torch

from benchmarks.prediction.pair_step import cost as counted_cost
from grokfast import EMA, backend, ops
from grokfast.models import PairMLP, PairMLPConfig, TransformerConfig
from grokfast.ops.pair_step import Layout, PairStep, plan
from grokfast.parts import find
from grokfast.transforms.flat import FlatOptimizer
from tests.tf32 import torch_at

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LOSSES = ["cross_entropy", "mse"]
ACTIVATIONS = ["relu", "square", "gelu", "abs"]
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")  # NumPy, of the NaN that are meant


@pytest.fixture(params=["triton", "reference"])
def engine(request):
    if request.param == "triton":
        pytest.importorskip("triton")
    return request.param


@pytest.fixture
def triton():
    return pytest.importorskip("triton")


class Case:
    """E models with their rows, and what PairStep is told of them."""

    def __init__(self, p=13, answers=None, width=33, n=77, models=2, loss="cross_entropy", scale=1.0, **config):
        answers = answers or p
        config = PairMLPConfig(width=width, **config)
        self.model = PairMLP(config, n_tokens=p, n_answers=answers, seeds=range(models)).to(DEVICE)
        g = torch.Generator().manual_seed(0)
        for parameter in self.model.parameters():
            parameter.data.mul_(scale)
        self.tokens = torch.randint(p, (models, n, 2), generator=g).to(DEVICE)
        self.targets = torch.randint(answers, (models, n), generator=g).to(DEVICE)
        self.layout = Layout.of({name: p.shape[1:] for name, p in self.model.named_parameters()})
        self.loss, self.n_models = loss, models
        self.sizes = {"n_tokens": p, "n_answers": answers, "width": width}
        self.options = {"activation": config.activation, "loss": loss, **self.sizes}

    def flat(self):
        flat = torch.zeros(self.n_models, self.layout.n_flat, device=DEVICE)
        flat[:, : self.layout.n_parameters] = torch.cat([p.detach().flatten(1) for p in self.model.parameters()], 1)
        return flat

    def step(self, engine="triton", tokens=None, targets=None, **options):
        with backend.using(engine):
            step = PairStep(
                self.layout,
                self.tokens if tokens is None else tokens,
                self.targets if targets is None else targets,
                n_models=self.n_models,
                **{**self.options, **options},
            )
        assert step.backend == engine
        return step

    def exact(self, rows=None, dtype=torch.float64):
        """Loss [E], right answers [E] and gradient [E, n_parameters] by autograd; rows[e]: those of model e."""
        model = PairMLP(self.model.config, **{k: v for k, v in self.sizes.items() if k != "width"},
                        seeds=range(self.n_models)).to(DEVICE, dtype)  # fmt: skip
        for own, other in zip(model.parameters(), self.model.parameters()):
            own.data.copy_(other)
        losses, right = [], []
        with backend.using("reference"):
            for e in range(self.n_models):
                chosen = slice(None) if rows is None else rows[e]
                tokens = self.tokens[e, chosen].expand(self.n_models, -1, -1)
                targets = self.targets[e, chosen]
                loss, accuracy = ops.classify(model(tokens)[e : e + 1], targets[None], loss=self.loss)
                losses.append(loss)
                right.append((accuracy * len(targets)).round().int())
            loss = torch.cat(losses)
            grads = torch.autograd.grad(loss.sum(), list(model.parameters()))
        return loss.detach(), torch.cat(right), torch.cat([grad.flatten(1) for grad in grads], 1)


def outputs(case, splits=None):
    lead = () if splits is None else (splits,)
    grad = torch.full((*lead, case.n_models, case.layout.n_flat), float("nan"), device=DEVICE)
    loss = torch.full((case.n_models,), float("nan"), device=DEVICE)
    return grad, loss, torch.full((case.n_models,), -1, dtype=torch.int32, device=DEVICE)


def run(case, step=None, batch=None):
    """Loss, right answers, gradient."""
    grad, loss, correct = outputs(case)
    (step or case.step()).gradient(case.flat(), grad, loss, correct, batch)
    assert not grad[:, case.layout.n_parameters :].any()  # the padding
    return loss, correct, grad[:, : case.layout.n_parameters]


def compare(case, judge, got, rows=None):
    exact, by_torch = case.exact(rows), case.exact(rows, torch.float32)
    judge(got[0], by_torch[0], exact[0])
    assert torch.equal(got[1], exact[1])
    judge(got[2], by_torch[2], exact[2])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_gradient_is_as_good_as_autograds(activation, loss, engine, judge, poisoned):
    case = Case(activation=activation, loss=loss, bias=activation != "abs")
    compare(case, judge, run(case, case.step(engine)))


@pytest.mark.parametrize(
    ("p", "answers", "width", "n"), [(7, 7, 20, 31), (5, 3, 16, 1), (2, 1, 1, 3), (9, 131, 17, 33), (130, 4, 17, 33)]
)
@pytest.mark.parametrize("bias", [True, False])
def test_odd_sizes(p, answers, width, n, bias, triton, judge, poisoned):
    case = Case(p, answers, width, n, models=1, bias=bias)
    compare(case, judge, run(case))


@pytest.mark.parametrize("precision", ["tf32x3", "tf32", "bf16"])
def test_precisions(precision, triton, judge):
    case = Case(models=1)
    exact = case.exact()
    got = run(case, case.step(precision=precision))
    with torch_at(precision):
        by_torch = run(case, case.step("reference", precision=precision))
    judge(got[0], by_torch[0], exact[0])
    judge(got[2], by_torch[2], exact[2], factor=3)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_batch_is_its_rows(loss, engine, judge, poisoned):
    case = Case(loss=loss)
    g = torch.Generator().manual_seed(1)
    batch = torch.randint(77, (2, 41), generator=g).to(DEVICE)
    compare(case, judge, run(case, case.step(engine, max_batch=41), batch), batch)
    batch[0, 5], batch[1, 30:] = -1, -1  # the last batch of an epoch is smaller
    compare(case, judge, run(case, case.step(engine, max_batch=50), batch), [b[b >= 0] for b in batch])


def test_rows_beyond_a_models_own_do_not_count(engine, judge, poisoned):
    case = Case(loss="mse")
    step = case.step(engine, n_rows=[77, 20])
    compare(case, judge, run(case, step), [slice(77), slice(20)])
    batch = torch.tensor([[3, 50, 76], [19, 20, 76]], device=DEVICE)
    compare(case, judge, run(case, step, batch), [[3, 50, 76], [19]])
    _, loss, correct = outputs(case)
    step.measure(case.flat(), loss, correct)
    exact, by_torch = (case.exact([slice(77), slice(20)], dtype) for dtype in (torch.float64, torch.float32))
    judge(loss, by_torch[0], exact[0])
    assert torch.equal(correct, exact[1])


@pytest.mark.parametrize("loss", LOSSES)
def test_measuring_needs_no_gradient(loss, engine, judge, poisoned):
    case = Case(loss=loss)
    _, values, correct = outputs(case)
    case.step(engine, max_batch=0).measure(case.flat(), values, correct)
    exact, by_torch = case.exact(), case.exact(dtype=torch.float32)
    judge(values, by_torch[0], exact[0])
    assert torch.equal(correct, exact[1])


def test_rows_may_be_common_to_all_models(engine):
    case = Case()
    case.tokens, case.targets = (t[:1].expand_as(t).contiguous() for t in (case.tokens, case.targets))
    common = case.step(engine, tokens=case.tokens[0], targets=case.targets[0])
    assert all(map(torch.equal, run(case, common), run(case, case.step(engine))))


def test_every_model_has_the_bits_that_it_has_alone_however_the_chunks_are_shared(triton, monkeypatch):
    case = Case(p=7, width=20, n=140)
    step = case.step()
    assert step.splits == 2
    together = run(case, step)
    assert all(map(torch.equal, run(case, step), together))
    monkeypatch.setattr(plan, "n_splits", lambda *sizes: 1)  # as for a large ensemble
    assert case.step().splits == 1
    assert all(map(torch.equal, run(case), together))
    for e in range(2):
        alone = Case(p=7, width=20, n=140, models=1)
        alone.tokens, alone.targets = case.tokens[e : e + 1], case.targets[e : e + 1]
        for own, other in zip(alone.model.parameters(), case.model.parameters()):
            own.data.copy_(other[e : e + 1])
        assert all(torch.equal(one[0], both[e]) for one, both in zip(run(alone), together))


def test_models_with_rows_for_other_numbers_of_chunks_have_the_bits_that_they_have_alone(triton, monkeypatch):
    n_rows = [150, 270, 7]
    case = Case(p=7, width=20, n=270, models=3)
    batch = torch.arange(260, device=DEVICE).expand(3, -1).flip(1)
    batch = torch.where(batch < torch.tensor(n_rows, device=DEVICE)[:, None], batch, -1).sort(1, descending=True).values
    step = case.step(n_rows=n_rows)
    together, batched = run(case, step), run(case, case.step(n_rows=n_rows, max_batch=260), batch)
    monkeypatch.setattr(plan, "n_splits", lambda *sizes: 1)
    assert all(map(torch.equal, run(case, case.step(n_rows=n_rows)), together))
    monkeypatch.undo()
    for e, n in enumerate(n_rows):
        alone = Case(p=7, width=20, n=n, models=1)
        alone.tokens, alone.targets = case.tokens[e : e + 1, :n], case.targets[e : e + 1, :n]
        for own, other in zip(alone.model.parameters(), case.model.parameters()):
            own.data.copy_(other[e : e + 1])
        assert all(torch.equal(one[0], of_all[e]) for one, of_all in zip(run(alone), together))
        own_batch = batch[e : e + 1, : min(n, 260)].contiguous()
        one_batched = run(alone, alone.step(max_batch=min(n, 260)), own_batch)
        assert all(torch.equal(one[0], of_all[e]) for one, of_all in zip(one_batched, batched))


def test_rows_that_only_others_have_change_no_bit(triton):
    case = Case(p=7, width=20, n=270, models=1)
    alone = run(case, case.step(tokens=case.tokens[:, :150], targets=case.targets[:, :150]))
    padded = run(case, case.step(n_rows=[150]))
    assert all(map(torch.equal, alone, padded))


def test_partial_gradients_are_added_in_their_order(triton, judge):
    case = Case(p=7, width=20, n=270)
    step = case.step()
    grad, loss, correct = outputs(case, step.splits)
    step.gradient(case.flat(), grad, loss, correct)
    whole = run(case, step)
    assert torch.equal((grad[0] + grad[1] + grad[2])[:, : case.layout.n_parameters], whole[2])
    compare(case, judge, whole)


def test_of_equal_logits_the_first_counts(engine):
    case = Case(scale=0.0)
    case.targets[0], case.targets[1] = 0, 1
    _, loss, correct = outputs(case)
    case.step(engine).measure(case.flat(), loss, correct)
    assert correct.tolist() == [77, 0]
    torch.testing.assert_close(loss, torch.full_like(loss, 13).log())


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("scale", [30.0, 1e-20])
def test_extreme_parameters(scale, loss, triton, judge):
    case = Case(scale=scale, loss=loss, models=1)
    for parameter in case.model.parameters():  # whole numbers, so that the logits are exact and what follows is judged
        parameter.data.copy_(parameter.data.round() if scale > 1 else parameter.data)
    compare(case, judge, run(case))


def test_a_model_that_is_not_finite_spoils_no_other(triton):
    case = Case()
    expected = run(case)
    case.model.w_a.data[0, 0, 0] = float("nan")
    case.tokens[0, 5, 0] = 0
    loss, _, grad = run(case)
    assert loss[0].isnan()
    assert not grad[0].isfinite().all()
    assert loss[1] == expected[0][1]
    assert torch.equal(grad[1], expected[2][1])


@pytest.mark.parametrize(("name", "batch_size"), [("adamw", None), ("sgd", 24)])
def test_six_steps_with_the_optimizers_launch_follow_the_plain_ones(name, batch_size, triton, judge):
    """fp64 autograd and plain PyTorch; the yardstick is the same in fp32."""
    g = torch.Generator().manual_seed(2)
    batches = [None if batch_size is None else torch.randint(31, (2, batch_size), generator=g) for _ in range(6)]
    configs = [find("optimizer", name)(lr=lr, weight_decay=0.1) for lr in (1e-3, 3e-3)]

    def train(engine, dtype):
        case = Case(p=5, width=16, n=31)
        flat = case.flat().to(dtype)
        losses = []
        with backend.using(engine):
            optimizer = FlatOptimizer(flat, configs, [EMA(0.9, 2.0)] * 2)
            step = case.step() if engine == "triton" else None
            grad, loss, correct = outputs(case)
            for batch in batches:
                batch = None if batch is None else batch.to(DEVICE)
                if step is not None:
                    step.gradient(flat, grad, loss, correct, batch)
                    losses.append(loss.clone())
                    optimizer.step(flat, grad)
                else:
                    offset = 0
                    for p in case.model.parameters():
                        size = p[0].numel()
                        p.data = flat[:, offset : offset + size].reshape(p.shape).clone()
                        offset += size
                    loss, _, grads = case.exact(batch, dtype)
                    losses.append(loss)
                    optimizer.step(flat, torch.nn.functional.pad(grads, (0, flat.shape[1] - grads.shape[1])))
        return torch.stack(losses), flat

    got = train("triton", torch.float32)
    by_torch, exact = (train("reference", dtype) for dtype in (torch.float32, torch.float64))
    assert (got[0][0] - got[0][-1]).abs().min() > 1e-3  # it moved
    for one, two, truth in zip(got, by_torch, exact):
        judge(one, two, truth)


def test_what_fits():
    sizes = {"n_tokens": 97, "n_answers": 97}
    assert PairStep.fits(PairMLPConfig(), "cross_entropy", **sizes) == ""
    assert "depth 2" in PairStep.fits(PairMLPConfig(depth=2), "mse", **sizes)
    assert "float64" in PairStep.fits(PairMLPConfig(), "mse", **sizes, dtype=torch.float64)
    assert "600 answers" in PairStep.fits(PairMLPConfig(), "mse", n_tokens=97, n_answers=600)
    assert "'stablemax'" in PairStep.fits(PairMLPConfig(), "stablemax", **sizes)
    assert "TransformerConfig" in PairStep.fits(TransformerConfig(), "mse", **sizes)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"precision": "fp32"}, ValueError, "precision must be one of"),
        ({"loss": "hinge"}, ValueError, "loss must be one of"),
        ({"activation": "tanh"}, ValueError, "activation must be one of"),
        ({"n_answers": 1000}, ValueError, "n_answers must be between 1 and 512"),
        ({"width": 34}, ValueError, "layout must have"),
        ({"n_rows": [77]}, ValueError, "n_rows must be 2 integers"),
        ({"n_rows": [77, 78]}, ValueError, "n_rows must be between 1 and 77, got 78"),
        ({"n_rows": [0, 77]}, ValueError, "n_rows must be between 1 and 77, got 0"),
        ({"max_batch": 78}, ValueError, "max_batch must be between 0 and 77"),
        ({"tokens": torch.zeros(3, 77, 2, dtype=torch.int64)}, ValueError, r"tokens must be \[2, N, 2\] or \[N, 2\]"),
        ({"tokens": torch.zeros(2, 77, 2)}, TypeError, "tokens must be an int64 tensor"),
        ({"tokens": torch.full((77, 2), 13)}, IndexError, r"tokens must be in \[0, 13\), got 13"),
        ({"targets": torch.full((77,), -1)}, IndexError, r"targets must be in \[0, 13\), got -1"),
        ({"targets": torch.zeros(76, dtype=torch.int64)}, ValueError, "targets must have 77 rows"),
    ],
)
def test_bad_input_is_named(change, error, message):
    case = Case()
    change = {name: value.to(DEVICE) if isinstance(value, torch.Tensor) else value for name, value in change.items()}
    with pytest.raises(error, match=message):
        case.step("reference", **change)


def test_bad_tensors_are_named(engine):
    case = Case()
    step, (grad, loss, correct) = case.step(engine, max_batch=40), outputs(case)
    flat, batch = case.flat(), torch.zeros(2, 40, dtype=torch.int64, device=DEVICE)
    bad = [
        ((flat[:, :-1], grad, loss, correct, batch), "flat must be"),
        ((flat, grad.double(), loss, correct, batch), "grad must be"),
        ((flat, grad[None].expand(3, -1, -1), loss, correct, batch), "grad must be"),
        ((flat, grad, loss[:1], correct, batch), "loss must be"),
        ((flat, grad, loss, correct.long(), batch), "correct must be"),
        ((flat, grad, loss, correct, batch.int()), "batch must be"),
        ((flat, grad, loss, correct, batch[:1]), "batch must be"),
        ((flat, grad, loss, correct, None), "batch must have 1 to 40 rows, as max_batch says"),
        ((flat.T.contiguous().T, grad, loss, correct, batch), "contiguous"),
    ]
    for arguments, message in bad:
        with pytest.raises(ValueError, match=message):
            step.gradient(*arguments)
    assert grad.isnan().all()
    with pytest.raises(TypeError, match="flat must be a tensor"):
        step.measure(None, loss, correct)
    with pytest.raises(ValueError, match="shapes must name "):
        Layout.of({"w_a": (3, 4)})


def test_costs_are_those_of_the_launches(triton):
    sizes = {"n_tokens": 97, "n_answers": 97, "width": 512}

    def cost(models, precision="tf32", **options):
        return {launch.name: launch for launch in counted_cost(models, 4704, precision=precision, **sizes, **options)}

    one, many = cost(1), cost(512)
    assert (list(one), list(many)) == (["rows", "gradient", "reduce"], ["rows", "gradient"])
    useful = 2 * 3 * 4704 * 97 * 512
    assert useful < sum(c.flops for c in one.values()) < 4 * useful
    splits, parameters = plan.splits_of(1, 4704, "tf32", **sizes), 3 * 97 * 512 + 512 + 97
    assert cost(1, partial=True) == {k: one[k] for k in ("rows", "gradient")}
    assert one["reduce"].bytes == 4 * (splits + 1) * parameters
    assert plan.splits_of(512, 4704, "tf32", **sizes) == 1
    for name in many:
        assert many[name].flops == 512 * one[name].flops
        assert cost(1, "tf32x3")[name].flops > 1.4 * one[name].flops
        touched = sum(use.size for use in one[name].phases[0])
        assert touched < one[name].bytes
        assert touched >= 4 * (parameters + 4704 * (3 + 112))  # what there is, and the logits' gradient
    assert one["rows"].bytes < cost(1, minibatch=True)["rows"].bytes
    assert many["gradient"].largest == one["gradient"].largest > 1


def test_programs_are_counted_as_they_are(triton, monkeypatch):
    case, launched = Case(p=7, width=20, n=270), {}

    def launch(kernel, grid, *arguments, **constants):
        launched[kernel.fn.__name__] = math.prod(grid)

    module = importlib.import_module("grokfast.ops.pair_step.launches")
    monkeypatch.setattr(module, "launch", launch)
    grad, loss, correct = outputs(case)
    case.step("triton").gradient(case.flat(), grad, loss, correct)
    counted = {one.kernel: one.programs for one in counted_cost(2, 270, precision="ieee", **case.sizes)}
    assert counted.pop("reduce_kernel") > 0  # of whole rows of all models
    assert counted == {name: n for name, n in launched.items() if name in counted}


def test_scratch_is_counted_as_it_is(triton):
    case = Case(p=7, width=20, n=270)
    step = case.step()
    run(case, step)
    launches = step._launches
    assert step.splits == plan.splits_of(2, 270, "ieee", **case.sizes)
    scratch = launches.grad_logits.nbytes + launches.parts.nbytes + launches.losses.nbytes + launches.right.nbytes
    assert plan.memory(2, 270, **case.sizes) == scratch
