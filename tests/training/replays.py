"""Small experiments of every option, and a Replay of some."""

from grokfast import EMA, MA, Experiment
from grokfast.training.ensemble import Ensemble
from grokfast.training.outcome import Outcome
from grokfast.training.replay import Replay

TINY = Experiment.preset("quick").override(
    {"task.p": 5, "model.width": 10, "schedule.steps": 20, "schedule.eval_every": 4, "schedule.stop_after": None}
)
GROKS = (
    Experiment.preset("quick")
    .override(
        {
            "task.p": 17,
            "model.width": 64,
            "task.train_fraction": 0.8,
            "schedule.eval_every": 5,
            "schedule.stop_after": 10,
        }
    )
    .override({"model.activation": "square"})
)
OPTIONS = {
    "adamw": {"optimizer.warmup": 7},
    "adam, L2, mse": {"optimizer": "adam", "optimizer.weight_decay": 0.01, "loss": "mse"},
    "sgd, square": {"optimizer": "sgd", "optimizer.lr": 0.3, "model.activation": "square", "model.bias": False},
    "nesterov": {"optimizer": "sgd", "optimizer.lr": 0.1, "optimizer.momentum": 0.9, "optimizer.nesterov": True},
    "lion, gelu": {"optimizer": "lion", "optimizer.lr": 1e-3, "model.activation": "gelu"},
    "EMA": {"filter": EMA(0.9, 2.0)},
    "MA": {"filter": MA(4, 3.0), "optimizer.warmup": 3},
    "MA, minibatch": {"filter": MA(3, 0.5, "sum", warmup=False, ring="bfloat16"), "schedule.batch_size": 4},
    "probes": {"probes": "spread", "criteria.generalize": "train"},
    "EMA, minibatch, noise": {"schedule.batch_size": 3, "filter": EMA(), "task.label_noise": 0.3},
}


def variants(experiment):
    changes = [{"seed": 3}, {"seed": 4, "optimizer.lr": 0.7 * experiment.optimizer.lr, "optimizer.weight_decay": 0.2}]
    return [experiment, *(experiment.override(c) for c in changes)]


def follow(experiments):
    """A Replay at the beginning."""
    return Replay(Ensemble(experiments), [Outcome(e.criteria) for e in experiments])
