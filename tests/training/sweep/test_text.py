import pytest

from grokfast import Experiment
from grokfast.training.sweep.text import parse_axis
from grokfast.training.sweep.toml import read_sweep

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
        ("loss=mse", ["mse"]),
    ],
)
def test_an_axis_as_text_has_values_of_the_fields_type(text, values):
    key, parsed = parse_axis(QUICK, text)
    assert (key, parsed) == (text.partition("=")[0].strip().replace("-", "_"), values)
    assert [type(value) for value in parsed] == [type(value) for value in values]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed", "written KEY=V1,V2"),
        ("seed=", "written KEY=V1,V2"),
        ("sed=1", "did you mean 'seed'"),
        ("seed=1,two", r"grid\['seed'\] must have values of type an integer, got 'two'"),
        ("seed=0:3:3", "got '0:3:3'"),
        ("optimizer.lr=0:1:3log", "got '0:1:3log'"),
        ("optimizer.lr=fast", "type a number, got 'fast'"),
        ("task.stratified=maybe", "true or false, got 'maybe'"),
        ("schedule.batch_size=some", "an integer or none, got 'some'"),
    ],
)
def test_bad_text_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        parse_axis(QUICK, text)


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
        ("[grids]", "did you mean 'grid'"),
        ("grid = 3", r"\[grid\] must be a table"),
        ("preset = 'quik'", "did you mean 'quick'"),
        ("[experiment]\ntask.q = 3", "unknown option 'task.q'"),
        ("[sweep]\nseed = 3", "did you mean 'seeds'"),
    ],
)
def test_a_bad_file_is_named(tmp_path, text, message):
    path = tmp_path / "sweep.toml"
    path.write_text(text)
    with pytest.raises((ValueError, TypeError), match=message) as raised:
        read_sweep(path)
    assert str(path) in str(raised.value)
