"""GrokFast's state: saved, loaded, copied, pickled, and made by torch.distributed.checkpoint."""

import copy
import functools
import io
import pickle

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.optim import SGD, AdamW, RMSprop

from grokfast import EMA, MA, GrokFast, GrokFastAdamW
from tests.optim.by_hand import histories

FILTERS = [EMA(), MA(3), MA(10), MA(2, 0.5, "sum", warmup=False)]  # MA(10) is saved while it warms up
INNER = {
    "AdamW": functools.partial(AdamW, lr=0.1),
    "SGD": functools.partial(SGD, lr=0.1),
    "SGD, momentum": functools.partial(SGD, lr=0.1, momentum=0.9),
    "RMSprop": functools.partial(RMSprop, lr=0.1),
}


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 2)).to(dtype)


def steps(model, opt, first, n, frozen=False):
    for step in range(first, first + n):
        for i, p in enumerate(model.parameters()):
            g = torch.Generator().manual_seed(1000 * i + step)
            p.grad = None if frozen and i == 2 else torch.randn(p.shape, generator=g).to(p.dtype)
        opt.step()


def bits(model, opt):
    state = opt.state_dict()["state"]
    return [*model.state_dict().values()] + [
        value for index in sorted(state) for _, value in sorted(state[index].items()) if value is not None
    ]


def same(first, second):
    return len(first) == len(second) and all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(first, second))


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("filter", FILTERS, ids=repr)
@pytest.mark.parametrize("inner", INNER)
def test_a_resumed_run_has_the_same_bits(inner, filter, dtype, each_backend):
    model = network(dtype)
    opt = GrokFast(INNER[inner](model.parameters()), filter)
    steps(model, opt, 0, 4, frozen=True)  # one parameter without history
    saved = through_a_file({"model": model.state_dict(), "opt": opt.state_dict()})
    steps(model, opt, 4, 5)

    resumed = network(dtype)
    other = GrokFast(INNER[inner](resumed.parameters()), filter)
    steps(resumed, other, 50, 2)  # a state to be replaced
    resumed.load_state_dict(saved["model"])
    other.load_state_dict(saved["opt"])
    steps(resumed, other, 4, 5)
    assert same(bits(model, opt), bits(resumed, other))


def test_the_filters_state_stays_fp32_and_its_count_an_integer():
    model = network(torch.bfloat16)
    for filter, dtypes in ((EMA(), {torch.float32}), (MA(2), {torch.float32, torch.int64})):
        opt = GrokFast(AdamW(model.parameters()), filter)
        steps(model, opt, 0, 2)
        opt.load_state_dict(through_a_file(opt.state_dict()))
        assert {t.dtype for history in histories(opt).values() for t in history.values()} == dtypes


def test_a_loaded_history_fits_the_parameters_precision(compiled):
    model, wide = network(), network(torch.float64)
    opt, other = GrokFast(AdamW(model.parameters())), GrokFast(AdamW(wide.parameters()))
    steps(wide, other, 0, 1)
    opt.load_state_dict(other.state_dict())
    assert {t.dtype for history in histories(opt).values() for t in history.values()} == {torch.float32}


def test_the_filters_state_is_a_copy_of_what_is_loaded(each_backend):
    model = network()
    opt = GrokFast(SGD(model.parameters(), lr=0.1), MA(2))
    steps(model, opt, 0, 3)
    saved = opt.state_dict()
    before = copy.deepcopy(saved)
    other = GrokFast(SGD(model.parameters(), lr=0.1), MA(2))
    other.load_state_dict(saved)
    steps(model, other, 3, 3)
    assert all(
        torch.equal(saved["state"][i][key], t) for i, entry in before["state"].items() for key, t in entry.items()
    )


def test_only_parameters_with_state_are_saved(each_backend):
    model = network()
    opt = GrokFast(AdamW(model.parameters()), EMA())
    steps(model, opt, 0, 2, frozen=True)
    state = opt.state_dict()["state"]
    assert {index: sorted(entry) for index, entry in state.items()} == {
        index: ["exp_avg", "exp_avg_sq", "grokfast_ema", "step"] for index in (0, 1, 3)
    }
    assert SGD(network().parameters(), lr=1.0).state_dict()["state"] == {}
    plain = SGD(model.parameters(), lr=0.1)
    steps(model, GrokFast(plain), 0, 2)
    entries = plain.state_dict()["state"].values()
    assert [list(entry) for entry in entries] == [["grokfast_ema"]] * 4  # nothing of torch's own


def test_plain_state_goes_in_and_comes_out(each_backend):
    plain_model, model = network(), network()
    plain, opt = AdamW(plain_model.parameters()), GrokFast(AdamW(model.parameters()), EMA())
    steps(plain_model, plain, 0, 3)
    steps(model, opt, 90, 1)
    opt.load_state_dict(through_a_file(plain.state_dict()))
    assert not histories(opt)  # the filter starts anew
    model.load_state_dict(plain_model.state_dict())
    assert same(bits(model, opt), bits(plain_model, plain))
    steps(model, opt, 3, 3)

    plain.load_state_dict(through_a_file(opt.state_dict()))
    for p, q in zip(plain_model.parameters(), model.parameters()):
        assert torch.equal(plain.state[p]["exp_avg"], opt.state[q]["exp_avg"])
        assert torch.equal(plain.state[p]["step"], opt.state[q]["step"])
    steps(plain_model, plain, 6, 1)
    assert all(torch.equal(plain.state[p]["step"], torch.tensor(7.0)) for p in plain_model.parameters())


def test_groups_state_and_defaults_stay_the_inner_ones_after_loading():
    model = network()
    inner = AdamW(model.parameters(), lr=0.5)
    opt = GrokFast(inner)
    scheduler = torch.optim.lr_scheduler.StepLR(opt, 1, 0.1)
    steps(model, opt, 0, 1)
    opt.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert opt.param_groups is inner.param_groups
    assert opt.state is inner.state
    assert opt.defaults is inner.defaults
    scheduler.step()
    assert inner.param_groups[0]["lr"] == pytest.approx(0.05)


def changed(state_dict, **entries):
    entries = {f"grokfast_{key}": value for key, value in entries.items()}
    entry = {key: value for key, value in {**state_dict["state"][1], **entries}.items() if value is not None}
    return {**state_dict, "state": {**state_dict["state"], 1: entry}}


@pytest.mark.parametrize(
    ("of", "change", "filter", "error", "message"),
    [
        (EMA(), {}, MA(2), ValueError, r"holds \['grokfast_ema'\], but the filter is MA\(window_size=2"),
        (MA(2), {}, EMA(), ValueError, r"holds \['grokfast_ring', .*\], but the filter is EMA"),
        (MA(3), {}, MA(2), ValueError, r"\['grokfast_ring'\] has shape \(3, 7, 5\), accepted is \(2, 7, 5\) for MA"),
        (
            EMA(),
            {"ema": torch.zeros(3)},
            EMA(),
            ValueError,
            r"\[1\]\['grokfast_ema'\] has shape \(3,\), accepted is \(7,\)",
        ),
        (EMA(), {"ema": [0.0]}, EMA(), TypeError, r"\[1\]\['grokfast_ema'\] must be a tensor, got list"),
        (EMA(), {"sum": torch.zeros(7)}, EMA(), ValueError, r"\[1\] holds \['grokfast_ema', 'grokfast_sum'\]"),
        (MA(2), {"sum": None}, MA(2), ValueError, r"\[1\] holds \['grokfast_ring', 'grokfast_count'\]"),
        (MA(2), {"count": torch.tensor(1.0)}, MA(2), ValueError, r"\['grokfast_count'\] must be a torch.int64 count"),
        (MA(2), {"count": torch.tensor(-1)}, MA(2), ValueError, r"\['grokfast_count'\] must be a torch.int64 count"),
    ],
)
def test_state_of_another_filter_is_refused_with_nothing_changed(of, change, filter, error, message):
    model, source = network(), network()
    other = GrokFast(AdamW(source.parameters(), lr=7.0), of)
    steps(source, other, 0, 1)
    opt = GrokFast(AdamW(model.parameters()), filter)
    steps(model, opt, 0, 3)
    before = copy.deepcopy((bits(model, opt), opt.param_groups[0]["lr"]))
    with pytest.raises(error, match=message):
        opt.load_state_dict(changed(other.state_dict(), **change))
    assert same(bits(model, opt), before[0])
    assert opt.param_groups[0]["lr"] == before[1]


def test_another_number_of_parameters_is_refused_with_nothing_changed():
    model, larger = network(), nn.Sequential(network(), nn.Linear(2, 2))
    opt, other = GrokFast(AdamW(model.parameters())), GrokFast(AdamW(larger.parameters()))
    steps(model, opt, 0, 1)
    steps(larger, other, 0, 2)
    before = copy.deepcopy(bits(model, opt))
    with pytest.raises(ValueError, match="doesn't match the size"):
        opt.load_state_dict(other.state_dict())
    assert same(bits(model, opt), before)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
@pytest.mark.parametrize("filter", FILTERS, ids=repr)
@pytest.mark.parametrize("make", [lambda ps, f: GrokFast(RMSprop(ps), f), lambda ps, f: GrokFastAdamW(ps, filter=f)])
def test_a_copy_goes_on_with_the_same_bits(make, filter, duplicate, each_backend):
    model = network()
    opt = make(model.parameters(), filter)
    steps(model, opt, 0, 4)
    twin_model, twin = duplicate((model, opt))
    assert type(twin) is type(opt)
    assert twin.param_groups is twin.optimizer.param_groups
    assert [id(p) for p in twin.param_groups[0]["params"]] == [id(p) for p in twin_model.parameters()]
    steps(twin_model, twin, 4, 5)
    steps(model, opt, 4, 5)
    assert same(bits(model, opt), bits(twin_model, twin))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_of_a_scheduled_wrapper_steps_itself(duplicate):
    model = network()
    opt = GrokFast(AdamW(model.parameters()))
    torch.optim.lr_scheduler.StepLR(opt, 1)  # patches opt.step
    twin_model, twin = duplicate((model, opt))
    steps(twin_model, twin, 0, 1)
    assert len(twin.state) == 4
    assert not opt.state


def test_hooks_fire_once_and_may_replace_the_state_dict():
    model = network()
    opt, fired = GrokFast(AdamW(model.parameters()), EMA()), []
    steps(model, opt, 0, 2)

    def record(name, result=None):
        def hook(optimizer, *state_dict):
            assert optimizer is opt
            fired.append(name)
            if state_dict and name.startswith("saved"):
                assert "grokfast_ema" in state_dict[0]["state"][0]
            return result(*state_dict) if result else None

        return hook

    opt.register_state_dict_pre_hook(record("saving"))
    opt.register_state_dict_post_hook(record("saved", lambda s: {**s, "note": 1}))
    opt.register_load_state_dict_pre_hook(record("loading", lambda s: {**s, "state": {}}))
    opt.register_load_state_dict_post_hook(record("loaded"))
    saved = opt.state_dict()
    assert saved["note"] == 1
    assert fired == ["saving", "saved"]
    opt.load_state_dict(saved)
    assert fired == ["saving", "saved", "loading", "loaded"]
    assert not histories(opt)
    assert "grokfast_ema" in saved["state"][0]  # the hook's change stays its own


@pytest.mark.parametrize("filter", FILTERS, ids=repr)
@pytest.mark.parametrize("inner", ["AdamW", "SGD"])
def test_a_distributed_checkpoint_made_before_training_leaves_the_filter_unstarted(inner, filter, each_backend):
    results = []
    for checkpointed in (False, True):
        model = network()
        opt = GrokFast(INNER[inner](model.parameters()), filter)
        if checkpointed:
            template = get_optimizer_state_dict(model, opt)  # calls step() with zero gradients at lr 0
            assert all(any(key.startswith("grokfast") for key in entry) for entry in template["state"].values())
            assert len(template["state"]) == 4
            for p in model.parameters():
                if "step" in opt.state[p]:
                    opt.state[p]["step"].zero_()  # torch's own count is one too far
            model, opt = copy.deepcopy((model, opt))
        steps(model, opt, 0, 5)
        results.append([t for history in histories(opt).values() for t in history.values()] + [*model.parameters()])
    assert same(*results)


@pytest.mark.parametrize("filter", FILTERS, ids=repr)
def test_a_distributed_checkpoint_during_training_pushes_no_zeros_into_the_window(filter, each_backend):
    model = network()
    opt = GrokFast(SGD(model.parameters(), lr=0.1), filter)
    steps(model, opt, 0, 5)
    opt.zero_grad()
    before = copy.deepcopy(bits(model, opt))
    get_optimizer_state_dict(model, opt)
    assert same(bits(model, opt), before)


@pytest.mark.parametrize("filter", FILTERS, ids=repr)
@pytest.mark.parametrize("n", [0, 4])  # steps before the checkpoint
def test_a_run_resumed_from_a_distributed_checkpoint_has_the_same_bits(n, filter, each_backend):
    model = network()
    opt = GrokFast(AdamW(model.parameters()), filter)
    steps(model, opt, 0, n)
    saved = through_a_file({"model": model.state_dict(), "opt": get_optimizer_state_dict(model, opt)})
    steps(model, opt, n, 5)
    resumed = network()
    other = GrokFast(AdamW(resumed.parameters()), filter)
    resumed.load_state_dict(saved["model"])
    set_optimizer_state_dict(resumed, other, saved["opt"])
    steps(resumed, other, n, 5)
    assert same(bits(model, opt), bits(resumed, other))


def test_a_step_at_lr_zero_with_gradients_counts(each_backend):
    """The recipe of Grokfast's authors starts at lr 0."""
    model = network()
    opt = GrokFast(AdamW(model.parameters(), lr=0.0), EMA())
    steps(model, opt, 0, 1)
    first = model[0].weight.grad
    assert torch.equal(opt.state[model[0].weight]["grokfast_ema"], first)
    opt.param_groups[0]["lr"] = 0.1
    steps(model, opt, 1, 1)
    expected = torch.lerp(first, model[0].weight.grad, 0.02)
    torch.testing.assert_close(opt.state[model[0].weight]["grokfast_ema"], expected)
