"""Every optimizer of torch with every configuration of torch's own optimizer tests, wrapped.

λ = 0 is the optimizer itself, and with a filter the step is that of filtered gradients, bit for bit: in fp64, where the
filter takes the plain path. What remains refused are sparse gradients that would have to be filtered.
"""

import copy
import pickle

import pytest
import torch

pytest.importorskip("expecttest", reason="torch.testing's database of optimizers needs it")
from torch.testing._internal import common_optimizers
from torch.testing._internal.common_optimizers import OptimizerErrorEnum, optim_db

from grokfast import EMA, MA, GrokFast, GrokFastAdamW
from grokfast.optim.reference import filter_gradient
from tests.optim.by_hand import histories

torch.backends.__allow_nonbracketed_mutation_flag = True  # torch's tests forbid to set flags, for the whole process

IDLE, FILTERS = EMA(lamb=0.0), [EMA(0.5, 1.0), MA(2, 1.0)]
DENSE = [info for info in optim_db if not info.only_supports_sparse_grads]


def by_name(infos):
    return pytest.mark.parametrize("info", infos, ids=lambda info: info.optim_cls.__name__)


def configurations(info):
    inputs = common_optimizers._get_optim_inputs_including_global_cliquey_kwargs("cpu", torch.float64, info)
    return [given.kwargs for given in inputs]


def problem(info, dtype=torch.float64, differentiable=False):
    g = torch.Generator().manual_seed(0)
    shapes = [(4, 3), (3, 5)] if info.optim_cls.__name__ in ("Muon", "SparseAdam") else [(4, 3), (7,), ()]
    params = [torch.randn(shape, generator=g, dtype=dtype).requires_grad_() for shape in shapes]
    return [p.clone() for p in params] if differentiable else params  # a leaf cannot be changed in a graph


def gradient(p, number, sparse):
    grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(number), dtype=p.dtype)
    return grad.relu().to_sparse(1) if sparse else grad


class Training:
    """Steps with given gradients, which a closure brings; `filter` is applied by hand."""

    def __init__(self, opt, params, info, filter=None, sparse=False):
        self.opt, self.params, self.info, self.filter, self.sparse = opt, params, info, filter, sparse
        self.past = [{} for _ in params]
        self.evaluations = 0

    def closure(self):
        for i, p in enumerate(self.params):
            p.grad = gradient(p, 100 * self.evaluations + i, self.sparse)
            if self.filter is not None:
                p.grad = filter_gradient(self.filter, p.grad, self.past[i])
        self.evaluations += 1
        return torch.tensor(1.0 / self.evaluations)

    def run(self, steps=4):
        for _ in range(min(steps, 2) if self.info.step_requires_closure else steps):  # each is many evaluations
            if self.info.step_requires_closure:
                self.opt.step(self.closure)
            else:
                self.closure()
                self.opt.step()
        return [p.detach().clone() for p in self.params]


def same(some, others):
    return all(map(torch.equal, some, others))


@by_name(DENSE)
@pytest.mark.parametrize("filter", [IDLE, *FILTERS], ids=["idle", "ema", "ma"])
def test_every_configuration(info, filter):
    for kwargs in configurations(info):
        trained = []
        for wrap in (False, True):
            params = problem(info, differentiable=kwargs.get("differentiable", False))
            opt = info.optim_cls(params, **copy.deepcopy(kwargs))
            by_hand = None if wrap or filter is IDLE else filter
            trained.append(Training(GrokFast(opt, filter) if wrap else opt, params, info, by_hand).run())
        assert same(*trained), kwargs


@by_name(DENSE)
def test_without_amplification_in_single_precision(info):
    for kwargs in configurations(info):
        if kwargs.get("differentiable"):
            continue
        trained = []
        for wrap in (lambda opt: opt, lambda opt: GrokFast(opt, IDLE)):
            params = problem(info, torch.float32)
            opt = wrap(info.optim_cls(params, **copy.deepcopy(kwargs)))
            trained.append(Training(opt, params, info).run())
        assert same(*trained), kwargs


@by_name([info for info in optim_db if info.supports_complex])
@pytest.mark.parametrize("filter", [IDLE, *FILTERS], ids=["idle", "ema", "ma"])
def test_complex_parameters(info, filter):
    trained = []
    for wrap in (False, True):
        params = problem(info, torch.complex128)
        opt = info.optim_cls(params)
        by_hand = None if wrap or filter is IDLE else filter
        trained.append(Training(GrokFast(opt, filter) if wrap else opt, params, info, by_hand).run())
    assert same(*trained)


def by_state_dict(opt, params, info, filter):
    """Another optimizer over copies of the parameters, that loads the state."""
    copies = [p.detach().clone().requires_grad_() for p in params]
    other = GrokFast(info.optim_cls(copies, **opt.optimizer.extra), filter)
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    return other, copies


def by_copy(opt, params, info, filter):
    other = copy.deepcopy(opt)
    return other, [p for group in other.param_groups for p in group["params"]]


def by_pickle(opt, params, info, filter):
    other = pickle.loads(pickle.dumps(opt))
    return other, [p for group in other.param_groups for p in group["params"]]


@by_name(DENSE)
@pytest.mark.parametrize("again", [by_state_dict, by_copy, by_pickle])
@pytest.mark.parametrize("filter", FILTERS, ids=["ema", "ma"])
def test_going_on_elsewhere_has_the_same_bits(info, filter, again):
    if info.optim_cls is torch.optim.LBFGS and again is not by_state_dict:
        pytest.skip("a copy of torch's LBFGS lacks its parameters")
    for kwargs in [given.kwargs for given in info.optim_inputs_func(device="cpu")]:
        params = problem(info, torch.float32)
        opt = GrokFast(info.optim_cls(params, **copy.deepcopy(kwargs)), filter)
        opt.optimizer.extra = kwargs
        first = Training(opt, params, info)
        first.run(3)
        other, copies = again(opt, params, info, filter)
        second = Training(other, copies, info)
        second.evaluations = first.evaluations
        assert len(histories(other)) == len(params)
        assert same(first.run(2), second.run(2)), kwargs


@by_name(optim_db)
def test_the_errors_are_the_optimizers_own(info):
    for bad in info.optim_error_inputs_func(device="cpu", dtype=torch.float32):
        given = bad.optimizer_error_input
        if bad.error_on is OptimizerErrorEnum.CONSTRUCTION_ERROR:
            if info.optim_cls is torch.optim.AdamW:
                said = pytest.warns if issubclass(bad.error_type, Warning) else pytest.raises
                with said(bad.error_type, match=bad.error_regex):
                    GrokFastAdamW(given.params, **given.kwargs)
            continue
        opt = GrokFast(info.optim_cls(given.params, **given.kwargs), IDLE)
        with pytest.raises(bad.error_type, match=bad.error_regex):
            opt.step()


@by_name([info for info in optim_db if not info.step_requires_closure])
def test_schedulers(info):
    for make in info.scheduler_inputs:
        rates, trained = [], []
        for wrap in (lambda opt: opt, lambda opt: GrokFast(opt, IDLE)):
            params = problem(info)
            opt = wrap(info.optim_cls(params, lr=0.01))
            schedulers = [one(opt) for one in make]
            training = Training(opt, params, info, sparse=info.only_supports_sparse_grads)
            for step in range(4):
                trained.append(training.run(1))
                for scheduler in schedulers:
                    plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
                    scheduler.step(*([1.0 + step] if plateau else []))
                rates.append(opt.param_groups[0]["lr"])
        assert rates[:4] == rates[4:]
        assert all(map(same, trained[:4], trained[4:]))


@by_name([info for info in optim_db if info.supports_sparse or info.only_supports_sparse_grads])
def test_sparse_gradients_pass_where_nothing_is_filtered(info):
    trained = []
    for wrap in (lambda opt: opt, lambda opt: GrokFast(opt, IDLE)):
        params = problem(info)[:1]
        trained.append(Training(wrap(info.optim_cls(params, lr=0.1)), params, info, sparse=True).run())
    assert same(*trained)
    params = problem(info)[:1]
    with pytest.raises(TypeError, match="dense"):
        Training(GrokFast(info.optim_cls(params, lr=0.1), EMA()), params, info, sparse=True).run(1)


@by_name(DENSE)
def test_a_step_without_gradients_and_with_empty_parameters(info):
    params = problem(info)
    if info.optim_cls.__name__ not in ("Muon", "LBFGS", "Adafactor"):  # these take none
        params.append(torch.empty(0, requires_grad=True))
    opt = GrokFast(info.optim_cls(params), EMA())
    before = [p.detach().clone() for p in params]
    opt.step(*([lambda: torch.tensor(1.0)] if info.step_requires_closure else []))
    assert same(before, [p.detach() for p in params])
    assert not histories(opt)
    assert repr(opt).startswith("GrokFast(EMA(")
    Training(opt, params, info).run(2)
