"""Published recipes. Each pins everything: task, split, model, initialisation, loss, optimizer, batch, steps."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from grokfast.losses import MSE, Hinge, StableMax
from grokfast.models import MLPConfig, PairMLPConfig, TransformerConfig
from grokfast.tasks import (
    DigitsTask,
    GroupTask,
    ImagesTask,
    ModularTask,
    MultihopTask,
    ParityTask,
    RecurrenceTask,
    SequenceTask,
)
from grokfast.training.experiment import Criteria, Experiment, Schedule
from grokfast.transforms.filters import EMA
from grokfast.transforms.optimizers import SGD, Adam, AdamW
from grokfast.transforms.orthograd import OrthoGrad

SMALL_DECODER = TransformerConfig(
    n_layers=2, d_model=64, d_mlp=256, activation="gelu", norm="pre", attention_bias=True, init="torch",
    init_scales="embedding=0.125,positions=0.02",
)  # fmt: skip

# Prieto et al. 2025, arXiv 2501.04697: without weight decay the logits run away (softmax collapse) and test accuracy
# stalls.
PRIETO = Experiment(
    name="prieto",
    task=ModularTask(operation="add", p=113, train_fraction=0.4),
    model=PairMLPConfig(width=200, depth=2, bias=False),
    optimizer=AdamW(lr=1e-2, betas=(0.9, 0.999)),
    schedule=Schedule(steps=20_000, eval_every=50, stop_after=1000),
)

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
    "prieto": PRIETO,
    # Their cures, with their AdamW, whose eps is 1e-25: figure 1 has 80,000 epochs of StableMax, 300 of OrthoGrad.
    "prieto-stablemax": replace(
        PRIETO,
        name="prieto-stablemax",
        loss=StableMax(),
        optimizer=AdamW(lr=1e-2, betas=(0.9, 0.999), eps=1e-25),
        schedule=Schedule(steps=80_000, eval_every=100, stop_after=1000),
    ),
    "prieto-orthograd": replace(
        PRIETO,
        name="prieto-orthograd",
        filter=OrthoGrad(),
        optimizer=AdamW(lr=1e-2, betas=(0.9, 0.99), eps=1e-25),
        schedule=Schedule(steps=1000, eval_every=10, stop_after=100),
        criteria=Criteria(grok_gap=100),
    ),
    # Their repository's issue 8: weight decay alone does it.
    "prieto-wd8": replace(
        PRIETO,
        name="prieto-wd8",
        optimizer=AdamW(lr=1e-2, weight_decay=8.0, betas=(0.9, 0.999)),
        schedule=Schedule(steps=1000, eval_every=10, stop_after=100),
        criteria=Criteria(grok_gap=100),
    ),
    # Chughtai et al. 2023, arXiv 2302.03025: a symmetric group, embeddings of both operands, one hidden layer; at five
    # times their rate and with 60% of the table, to end within a minute.
    "s5": Experiment(
        name="s5",
        task=GroupTask(group="S5", train_fraction=0.6),
        model=PairMLPConfig(width=128, embed=256, bias=False),
        optimizer=AdamW(lr=5e-3, weight_decay=1.0, betas=(0.9, 0.98)),
        schedule=Schedule(steps=8000, eval_every=50, stop_after=500),
    ),
    "a5": Experiment(
        name="a5",
        task=GroupTask(group="A5", train_fraction=0.6),
        model=PairMLPConfig(width=128, embed=128, bias=False),
        optimizer=AdamW(lr=5e-3, weight_decay=1.0, betas=(0.9, 0.98)),
        schedule=Schedule(steps=10_000, eval_every=50, stop_after=500),
    ),
    "d30": Experiment(
        name="d30",
        task=GroupTask(group="D30", train_fraction=0.5),
        model=PairMLPConfig(width=256),
        optimizer=AdamW(lr=1e-2, weight_decay=1.0, betas=(0.9, 0.98)),
        schedule=Schedule(steps=2000, eval_every=20, stop_after=200),
        criteria=Criteria(grok_gap=100),
    ),
    # The same model as they trained it: 93,556 epochs in the median of 50 runs until it generalises.
    "chughtai-s5": Experiment(
        name="chughtai-s5",
        task=GroupTask(group="S5", train_fraction=0.4),
        model=PairMLPConfig(width=128, embed=256, bias=False, init="normal"),
        optimizer=AdamW(lr=1e-3, weight_decay=1.0, betas=(0.9, 0.98)),
        schedule=Schedule(steps=250_000, eval_every=100, stop_after=5000),
    ),
    "d59": Experiment(
        name="d59",
        task=GroupTask(group="D59", train_fraction=0.3),
        model=PairMLPConfig(width=128, embed=256, bias=False, init="normal"),
        optimizer=AdamW(lr=1e-3, weight_decay=1.0, betas=(0.9, 0.98)),
        schedule=Schedule(steps=100_000, eval_every=100, stop_after=2000),
    ),
    # Zhong et al. 2023, arXiv 2306.17844: no mask, and heads that weigh both operands alike; their W_in is drawn at
    # 1/√d_mlp.
    "pizza": Experiment(
        name="pizza",
        task=ModularTask(operation="add", p=59, train_fraction=0.8),
        model=TransformerConfig(causal=False, attention_rate=0.0, init_scales="blocks.0.w_in=0.5"),
        optimizer=AdamW(lr=1e-3, weight_decay=2.0, betas=(0.9, 0.98), warmup=10),
        schedule=Schedule(steps=20_000, eval_every=100, stop_after=2000),
    ),
    # Doshi et al. 2024, arXiv 2310.13061: wrong labels among the training set's; with dropout the network ends up
    # giving the right answers to these, too.
    "doshi": Experiment(
        name="doshi",
        task=ModularTask(operation="add", p=97, train_fraction=0.5, label_noise=0.2),
        model=PairMLPConfig(width=500, activation="square", bias=False, init="gromov", dropout=0.3),
        loss=MSE(),
        optimizer=AdamW(lr=1e-2, betas=(0.9, 0.98)),
        schedule=Schedule(steps=2000, eval_every=20),
    ),
    # Barak et al. 2022, arXiv 2207.08799, and Merrill et al. 2023, arXiv 2303.11873: sparse parity.
    "parity": Experiment(
        name="parity",
        task=ParityTask(n=40, k=3),
        model=MLPConfig(width=1000),
        loss=Hinge(),
        optimizer=SGD(lr=0.1, weight_decay=0.01),
        schedule=Schedule(steps=9000, batch_size=32, eval_every=100, stop_after=500),
    ),
    "merrill": Experiment(  # 300 epochs, 100 rows to test
        name="merrill",
        task=ParityTask(n=40, k=3, n_test=100),
        model=MLPConfig(width=1000),
        loss=Hinge(),
        optimizer=SGD(lr=0.1, weight_decay=0.01),
        schedule=Schedule(steps=9600, batch_size=32, eval_every=32),
        criteria=Criteria(sustain=1),
    ),
    # Wang et al. 2024, arXiv 2405.15071: facts of two hops, in little.
    "multihop": Experiment(
        name="multihop",
        task=MultihopTask(),
        model=SMALL_DECODER,
        optimizer=AdamW(lr=1e-3, weight_decay=0.5, betas=(0.9, 0.98), warmup=50, decayed="matrices"),
        schedule=Schedule(steps=12_500, batch_size=1024, eval_every=250),
        criteria=Criteria(threshold=0.85, sustain=1, memorize="inferred"),
    ),
    "sort": Experiment(
        name="sort",
        task=SequenceTask(operation="sort", length=4, n_symbols=10, n_train=300),
        model=replace(SMALL_DECODER, n_layers=1),
        optimizer=AdamW(lr=1e-3, weight_decay=1.0, betas=(0.9, 0.98), warmup=50, decayed="matrices"),
        schedule=Schedule(steps=3000, eval_every=20, stop_after=300),
        criteria=Criteria(grok_gap=100),
    ),
    "recurrence": Experiment(  # every window of a Fibonacci sequence mod 31
        name="recurrence",
        task=RecurrenceTask(p=31),
        model=replace(SMALL_DECODER, n_layers=1),
        optimizer=AdamW(lr=1e-3, weight_decay=1.0, betas=(0.9, 0.98), warmup=50, decayed="matrices"),
        schedule=Schedule(steps=6000, eval_every=50, stop_after=500),
    ),
    # Liu et al. 2022, arXiv 2210.01117 (Omnigrok): large initial weights delay generalising; here on 8×8 images.
    "digits": Experiment(
        name="digits",
        task=DigitsTask(n_train=200),
        model=MLPConfig(width=200, depth=2, init_scale=8.0),
        loss=MSE(),
        optimizer=AdamW(lr=1e-3, weight_decay=0.3),
        schedule=Schedule(steps=6000, eval_every=100),
        criteria=Criteria(threshold=0.85),
    ),
    "omnigrok": Experiment(  # as they have it, on MNIST: --task.path FILE
        name="omnigrok",
        task=ImagesTask(n_train=1000),
        model=MLPConfig(width=200, depth=2, init_scale=8.0),
        loss=MSE(),
        optimizer=AdamW(lr=1e-3, weight_decay=0.01),
        schedule=Schedule(steps=100_000, batch_size=200, eval_every=500),
        criteria=Criteria(threshold=0.85),
    ),
}


class About(NamedTuple):
    """A preset in words: what it trains, whose it is, what should happen, and after how many steps, about."""

    what: str
    paper: str
    outcome: str
    steps: int


ABOUT = {
    "quick": About("a + b mod 97, ReLU MLP", "", "memorises near 60, generalises near 960", 1260),
    "gromov": About("a + b mod 97, x² MLP, MSE", "Gromov, arXiv 2301.02679", "100% test accuracy near 50", 1050),
    "swaroop": About("a + b mod 97, two-hot MLP", "Swaroop, arXiv 2603.23784", "generalises near 22,500", 24_500),
    "nanda": About(
        "a + b mod 113, 1-layer transformer", "Nanda et al., arXiv 2301.05217", "generalises near 6,700", 40_000
    ),
    "power": About("a / b mod 97, 2-layer decoder", "Power et al., arXiv 2201.02177", "generalises near 3,300", 5300),
    "grokfast": About("a · b mod 97, decoder, EMA", "Lee et al., arXiv 2405.20233", "95% test accuracy near 960", 1460),
    "prieto": About(
        "a + b mod 113, no decay", "Prieto et al., arXiv 2501.04697", "memorises, never generalises", 20_000
    ),
    "prieto-stablemax": About(
        "a + b mod 113, StableMax", "Prieto et al., arXiv 2501.04697", "late, by 80,000 (published)", 80_000
    ),
    "prieto-orthograd": About(
        "a + b mod 113, OrthoGrad", "Prieto et al., arXiv 2501.04697", "both within 150: no delay", 230
    ),
    "prieto-wd8": About("a + b mod 113, decay 8", "after Prieto et al., arXiv 2501.04697", "generalises near 200", 300),
    "s5": About("S5, embeddings and MLP, 60%", "after Chughtai et al., arXiv 2302.03025", "generalises by 6,000", 2750),
    "a5": About("A5, embeddings and MLP, 60%", "after Chughtai et al., arXiv 2302.03025", "generalises by 8,000", 3800),
    "d30": About("dihedral group of 60, ReLU MLP", "", "generalises by 1,200", 800),
    "chughtai-s5": About(
        "S5, 40%, as published", "Chughtai et al., arXiv 2302.03025", "generalises near 94,000", 99_000
    ),
    "d59": About("D59, 30%, as published", "Chughtai et al., arXiv 2302.03025", "generalises near 21,000", 23_000),
    "pizza": About("a + b mod 59, attention alike", "Zhong et al., arXiv 2306.17844", "generalises near 300", 2300),
    "doshi": About(
        "a + b mod 97, 20% wrong labels",
        "Doshi et al., arXiv 2310.13061",
        "test 100%, train 80%: all answers right",
        2000,
    ),
    "parity": About("3 of 40 signs, hinge loss", "Merrill et al., arXiv 2303.11873", "both within 9,000", 5000),
    "merrill": About("3 of 40 signs, 300 epochs", "Merrill et al., arXiv 2303.11873", "both, with a gap", 9600),
    "multihop": About(
        "facts of two hops", "after Wang et al., arXiv 2405.15071", "85% in, under 10% out of distribution", 12_500
    ),
    "sort": About("4 of 10 symbols, sorted", "", "memorises near 100, generalises by 1,500", 1560),
    "recurrence": About("x + y → next, mod 31", "", "generalises by 5,000", 2900),
    "digits": About("8×8 digits, weights × 8", "after Liu et al., arXiv 2210.01117", "85% test by 5,500", 6000),
    "omnigrok": About("MNIST of yours, weights × 8", "Liu et al., arXiv 2210.01117", "late (published)", 100_000),
}
