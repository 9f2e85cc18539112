import pytest

from grokfast import EMA, MA, Experiment
from grokfast.losses import MSE
from grokfast.sweeps.grid import axes_of, expand
from grokfast.sweeps.text import parse_axes
from grokfast.sweeps.toml import read_sweep
from grokfast.training.presets import PRESETS

QUICK = Experiment.preset("quick")


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("optimizer.weight_decay=0.1,1", [0.1, 1.0]),
        ("optimizer.weight-decay = 1e-3 , 3", [1e-3, 3.0]),
        ("seed=0,5", [0, 5]),
        ("seed=0:7:8", list(range(8))),
        ("task.train_fraction=0.3:0.5:3", [0.3, 0.4, 0.5]),
        ("optimizer.lr=0.001:0.1:3log,1", [0.001, 0.01, 0.1, 1.0]),
        ("optimizer.betas=(0.9,0.98),(0.8,0.9)", [(0.9, 0.98), (0.8, 0.9)]),
        ("schedule.batch_size=none,512", [None, 512]),
        ("task.stratified=true,False", [True, False]),
        ("task.operation=add,a2+b2", ["add", "a2+b2"]),
        ("loss=mse", [MSE()]),
        ("seed=1000000000001:2000000000003:2", [1000000000001, 2000000000003]),
        ("seed=9223372036854775799:9223372036854775807:3", [2**63 - 9, 2**63 - 5, 2**63 - 1]),
        ("seed=7:0:8", list(range(8))[::-1]),
        ("seed=1:1000000000000000000:19log", [10**i for i in range(19)]),
        ("seed=64:1:4log", [64, 16, 4, 1]),
        ("seed=16:81:5log", [16, 24, 36, 54, 81]),
        ("seed=0:1e3:3", [0, 500, 1000]),
        ("seed=5:9:1,3:3:1log", [5, 3]),
    ],
)
def test_an_axis_as_text_has_values_of_the_fields_type(text, values):
    ((key, parsed),) = parse_axes(QUICK, [text]).items()
    assert (key, parsed) == (text.partition("=")[0].strip().replace("-", "_"), values)
    assert [type(value) for value in parsed] == [type(value) for value in values]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed", "written KEY=V1,V2"),
        ("seed=", "written KEY=V1,V2"),
        ("sed=1", "did you mean 'seed'"),
        ("seed=1,two", r"grid\['seed'\] must have values of type an integer, got 'two'"),
        ("seed=0:3:3", "the range '0:3:3': a range of integers must meet integers"),
        ("seed=1:10:3log", "a range of integers must meet integers"),
        ("seed=0:10:3log", "must begin and end above 0"),
        ("seed=0:1e300:3", "'1e300' is no integer, or not exactly known"),
        ("seed=0:inf:3", "'inf' is no integer"),
        ("seed=0:400000000:400000001", r"at most 1,000,000 runs, grid\['seed'\] has more values"),
        ("seed=1:900000:900000,1:900000:900000", r"at most 1,000,000 runs, grid\['seed'\] has more values"),
        ("seed=0:1:" + "9" * 5000, r"at most 1,000,000 runs, grid\['seed'\] has more values"),
        ("seed=" + "9" * 5000, r"values of type an integer, got '9+\.\.\. \(5,002 characters\)"),
        ("seed=0:3:0", None),
        ("optimizer.betas=" + "(" * 500, r"grid\['optimizer.betas'\] must have values of type"),
        ("optimizer.betas=-'a'", r"grid\['optimizer.betas'\] must have values of type"),
        ("optimizer.lr=0:1:3log", "the range '0:1:3log': Geometric sequence cannot include zero"),
        ("optimizer.lr=fast", "type a number, got 'fast'"),
        ("task.stratified=maybe", "true or false, got 'maybe'"),
        ("schedule.batch_size=some", "an integer or none, got 'some'"),
        ("filter=ema,mma", r"grid\['filter'\] must be one of 'none', .*'ema', 'ma'.*, got 'mma' \(did you mean 'ma'"),
        ("filter.lamb=1", r"unknown key 'filter.lamb' \(the experiment has no filter"),
    ],
)
def test_bad_text_is_named(text, message):
    with pytest.raises(ValueError, match=message or "at least one value"):
        expand(QUICK, parse_axes(QUICK, [text]))


def test_a_key_is_given_once():
    with pytest.raises(ValueError, match="the grid has the key 'seed' twice"):
        parse_axes(QUICK, ["seed=1", "task.p=13", "seed=2"])


def test_filters_are_an_axis_and_so_are_their_fields():
    texts = ["filter.lamb=1,2.5", "filter=EMA,ma"]
    axes = parse_axes(QUICK, texts)
    assert list(axes.items()) == [("filter.lamb", [1.0, 2.5]), ("filter", [EMA(), MA()])]
    assert [type(value) for value in axes["filter.lamb"]] == [float, float]
    cells = [cell.experiment.filter for cell in expand(QUICK, axes)]
    assert cells == [EMA(lamb=1.0), MA(lamb=1.0), EMA(lamb=2.5), MA(lamb=2.5)]
    assert parse_axes(QUICK, ["filter.alpha=0.9"], {"filter": ["none", "ema"]}) == {"filter.alpha": [0.9]}
    own = QUICK.override({"filter": EMA(alpha=0.5)})
    assert parse_axes(own, ["filter=none,ema,ma"]) == {"filter": [None, EMA(alpha=0.5), MA()]}


def test_a_field_that_a_cells_filter_has_not_is_named_with_the_cell():
    axes = parse_axes(QUICK, ["filter=none,ema", "filter.lamb=1"])
    with pytest.raises(ValueError, match=r"cell filter=None, filter.lamb=1.0: unknown option .* has no filter"):
        expand(QUICK, axes)
    axes = parse_axes(QUICK, ["filter=ma,ema", "filter.alpha=0.5"])
    with pytest.raises(ValueError, match=r"cell filter=MA\(.*unknown option 'filter.alpha'"):
        expand(QUICK, axes)


@pytest.mark.parametrize(
    ("text", "filter", "axis"),
    [
        ("[experiment]\nfilter = 'ema'", EMA(), None),
        ("[experiment]\nfilter = 'none'", None, None),
        ("[experiment]\nfilter = { kind = 'ma', window_size = 7, warmup = false }", MA(7, warmup=False), None),
        ("[experiment.filter]\nkind = 'EMA'\nlamb = 1", EMA(lamb=1.0), None),
        ("[experiment]\nfilter = 'ema'\n'filter.lamb' = 1", EMA(lamb=1.0), None),
        ("[experiment]\nfilter.lamb = 1", EMA(0.9, 1.0), None),
        ("[experiment]\nfilter.kind = 'ema'\nfilter.lamb = 1", EMA(0.9, 1.0), None),
        ("[grid]\nfilter = ['none', 'ema', { kind = 'ma', window_size = 7 }]", EMA(0.9), [None, EMA(0.9), MA(7)]),
        ("[grid]\nfilter = 'none,ma'", EMA(0.9), [None, MA()]),
    ],
)
def test_a_files_filter(tmp_path, monkeypatch, text, filter, axis):
    """A preset with EMA(0.9), of which a file keeps what it does not say, where that is the point."""
    own = EMA(0.9) if filter in (EMA(0.9), EMA(0.9, 1.0)) else None
    monkeypatch.setitem(PRESETS, "quick", QUICK.override({"filter": own}))
    path = tmp_path / "sweep.toml"
    path.write_text(text)
    read = read_sweep(path)
    assert read.experiment.filter == filter
    if axis is not None:
        assert axes_of(read.experiment, read.grid) == {"filter": axis}


def test_a_file_holds_a_sweep(tmp_path):
    path = tmp_path / "sweep.toml"
    path.write_text(
        """
        preset = "swaroop"
        [experiment]
        schedule.steps = 50
        "task.p" = 13
        [grid]
        optimizer.weight_decay = [0.1, 1]
        task.train_fraction = "0.3:0.5:3"
        [sweep]
        seeds = 4
        """
    )
    read = read_sweep(path)
    assert read.experiment == Experiment.preset("swaroop").override({"schedule.steps": 50, "task.p": 13})
    assert read.grid == {"optimizer.weight_decay": [0.1, 1], "task.train_fraction": [0.3, 0.4, 0.5]}
    assert read.options == {"seeds": 4}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grid = ", r"sweep.toml is not TOML"),
        ("a." * 2000 + "b = 1", "nested too deeply|a key must be one of"),
        ("a = " + "[" * 2000 + "]" * 2000, r"sweep.toml is not TOML"),
        ("[experiment]\ntask = " + "{a=" * 2000 + "1" + "}" * 2000, "sweep.toml "),
        ("a = " + "9" * 5000, r"sweep.toml is not TOML"),
        ("a = '\udcff'", r"sweep.toml is not TOML: .*utf-8"),
        ("[sweep]\nseeds = 'x'", "seeds must be an integer, got 'x'"),
        ("[sweep]\nrandom = 0", "random must be at least 1"),
        ("[sweep]\nzip = 1", "zip must be True or False"),
        ("[experiment]\nseed = 1979-05-27", "seed must be an integer, got datetime.date"),
        ("[grids]", "did you mean 'grid'"),
        ("grid = 3", r"\[grid\] must be a table"),
        ("preset = 'quik'", "did you mean 'quick'"),
        ("[experiment]\ntask.q = 3", "unknown option 'task.q'"),
        ("[sweep]\nseed = 3", "did you mean 'seeds'"),
        ("[experiment]\nfilter = 'emma'", "filter must be one of 'none', .*'ema', 'ma'.*, got 'emma'"),
        ("[experiment]\nfilter = 3", "filter must be a transform, its name or a mapping"),
        ("[experiment]\nfilter = { alpha = 0.9 }", "unknown option 'filter.alpha' .the experiment has no filter"),
        ("[experiment]\nfilter = { kind = 'ema', alfa = 0.9 }", "filter 'ema' has no field 'alfa', .* 'alpha'"),
        ("[experiment]\nfilter = { kind = 'ema', alpha = 2 }", r"filter: alpha must be in \[0.0, 1.0\], got 2"),
        ("[experiment]\nfilter = { kind = 'none', alpha = 1 }", "filter 'none' has no field 'alpha'"),
        ("[experiment]\nfilter = { kind = 'ma', window_size = 2.5 }", "filter: window_size must be an integer"),
        ("[grid]\nfilter = 'none,emma'", r"grid\['filter'\] must be one of 'none', .*'ema', 'ma'"),
        ("[grid]\nfilter = [{ alpha = 0.9 }]", r"grid\['filter'\] must have a kind, one of .*'ema', 'ma'"),
        ("[grid]\nfilter = ['ema', 3]", r"grid\['filter'\] must be a transform, its name or a mapping"),
    ],
)
def test_a_bad_file_is_named(tmp_path, text, message):
    path = tmp_path / "sweep.toml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises((ValueError, TypeError), match=message) as raised:
        read_sweep(path)
    assert str(path) in str(raised.value)
