"""Published recipes. Each pins everything: task, split, model, initialisation, loss, optimizer, batch, steps."""

from __future__ import annotations

from grokfast.losses import MSE
from grokfast.models import PairMLPConfig, TransformerConfig
from grokfast.tasks import ModularTask
from grokfast.training.experiment import Criteria, Experiment, Schedule
from grokfast.transforms.filters import EMA
from grokfast.transforms.optimizers import Adam, AdamW

PRESETS: dict[str, Experiment] = {
    # Seconds on a CPU. Trained at lr 1e-2, ten times Liu et al.'s, so their gap of 10³ steps becomes 10².
    "quick": Experiment(
        name="quick",
        task=ModularTask(operation="add", p=97, train_fraction=0.4),
        model=PairMLPConfig(width=256),
        optimizer=AdamW(lr=1e-2, weight_decay=1.0, betas=(0.9, 0.98)),
        schedule=Schedule(steps=3000, eval_every=10, stop_after=300),
        criteria=Criteria(grok_gap=100),
    ),
    # Gromov 2023, arXiv 2301.02679: a quadratic network with an analytic solution.
    "gromov": Experiment(
        name="gromov",
        task=ModularTask(operation="add", p=97, train_fraction=0.5),
        model=PairMLPConfig(width=500, activation="square", bias=False, init="gromov"),
        loss=MSE(),
        optimizer=AdamW(lr=1e-2, weight_decay=5.0, betas=(0.9, 0.98)),
        schedule=Schedule(steps=10_000, eval_every=10, stop_after=1000),
    ),
    # Swaroop 2026, arXiv 2603.23784: a two-hot ReLU network, split evenly over the answers.
    "swaroop": Experiment(
        name="swaroop",
        task=ModularTask(operation="add", p=97, train_fraction=0.3, stratified=True),
        model=PairMLPConfig(width=256),
        optimizer=AdamW(lr=1e-3, weight_decay=1.0),
        schedule=Schedule(steps=30_000, eval_every=50, stop_after=2000),
    ),
    # Nanda et al. 2023, arXiv 2301.05217: one layer, no LayerNorm, weights drawn at 1/√d_model.
    "nanda": Experiment(
        name="nanda",
        task=ModularTask(operation="add", p=113, train_fraction=0.3, layout="equals"),
        model=TransformerConfig(),
        optimizer=AdamW(lr=1e-3, weight_decay=1.0, betas=(0.9, 0.98), warmup=10),
        schedule=Schedule(steps=40_000, eval_every=100),
    ),
    # Power et al. 2022, arXiv 2201.02177: division, two post-LN layers without biases.
    "power": Experiment(
        name="power",
        task=ModularTask(operation="div", p=97, train_fraction=0.5, layout="operator"),
        model=TransformerConfig(
            n_layers=2, norm="post", positions="sinusoidal", mlp_bias=False, outputs="tokens", init="torch"
        ),
        optimizer=AdamW(lr=1e-3, weight_decay=1.0, betas=(0.9, 0.98), warmup=10),
        schedule=Schedule(steps=100_000, batch_size=512, eval_every=100, stop_after=2000),
    ),
    # Lee et al. 2024, arXiv 2405.20233: Adam with L2, the first LayerNorm replaces the residual stream, EMA filter.
    "grokfast": Experiment(
        name="grokfast",
        task=ModularTask(operation="mul", p=97, train_fraction=0.5, layout="operator", b_nonzero=True),
        model=TransformerConfig(
            n_layers=2,
            activation="gelu",
            norm="replace",
            n_positions=5,
            attention_bias=True,
            outputs="tokens",
            init="torch",
        ),
        optimizer=Adam(lr=1e-3, weight_decay=0.005, betas=(0.9, 0.98), warmup=10),
        filter=EMA(alpha=0.98, lamb=2.0),
        schedule=Schedule(steps=10_000, batch_size=512, eval_every=20, stop_after=500),
        criteria=Criteria(threshold=0.95),
    ),
    # Prieto et al. 2025, arXiv 2501.04697: without weight decay the logits run away (softmax collapse) and test
    # accuracy stalls.
    "prieto": Experiment(
        name="prieto",
        task=ModularTask(operation="add", p=113, train_fraction=0.4),
        model=PairMLPConfig(width=200, depth=2, bias=False),
        optimizer=AdamW(lr=1e-2, betas=(0.9, 0.999)),
        schedule=Schedule(steps=20_000, eval_every=50, stop_after=1000),
    ),
}
