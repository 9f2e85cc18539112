"""A task whose runs are over within some steps: they count as generalised when they know half of the training set."""

from grokfast import Experiment
from grokfast.comparison import Accelerator, Among, Log

TINY = Experiment.preset("quick").override(
    {
        "task.p": 11,
        "task.train_fraction": 0.7,
        "model.width": 16,
        "schedule.steps": 60,
        "schedule.eval_every": 5,
        "criteria.threshold": 0.5,
        "criteria.generalize": "train",
        "criteria.sustain": 1,
        "device": "cpu",
    }
)
FAST = Accelerator(
    name="fast", about="Squared error.", changes={"loss": "mse"},
    space={"optimizer.lr": Log(0.5, 10, relative=True), "model.init_scale": Among(0.5, 2.0)},
)  # fmt: skip
FORM = {"budget": 4, "tuning": 2, "seeds": 3}
