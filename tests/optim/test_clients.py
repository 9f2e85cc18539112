"""Real training frameworks: a few steps, a checkpoint, a resume to the same bits."""

import logging

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from grokfast import EMA, MA, GrokFast, GrokFastAdamW

FILTERS = [EMA(), MA(5, 1.0)]


def data():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(64, 10, generator=generator), torch.randint(0, 3, (64,), generator=generator)
    return TensorDataset(x, y)


def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(10, 20), torch.nn.ReLU(), torch.nn.Linear(20, 3))


def by_hand(filter, steps):
    """What every framework has to arrive at: batches of 16 in order, StepLR by epoch."""
    model, optimizer = net(), None
    optimizer = GrokFast(torch.optim.AdamW(model.parameters(), lr=1e-2), filter)
    batches = list(DataLoader(data(), batch_size=16))
    for step in range(steps):
        x, y = batches[step % 4]
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    return list(model.parameters())


def same(params, others):
    return all(torch.equal(p, q) for p, q in zip(params, others))


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("automatic", [True, False])
def test_lightning(tmp_path, filter, automatic):
    lightning = pytest.importorskip("lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = net()
            self.automatic_optimization = automatic

        def training_step(self, batch, _):
            loss = cross_entropy(self.net(batch[0]), batch[1])
            if not automatic:
                optimizer = self.optimizers()
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
            return loss

        def configure_optimizers(self):
            return GrokFast(torch.optim.AdamW(self.parameters(), lr=1e-2), filter)

    def fit(epochs, resume=None):
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = lightning.Trainer(
            max_epochs=epochs, accelerator="cpu", enable_checkpointing=False, default_root_dir=tmp_path, **quiet
        )
        module = Module()
        trainer.fit(module, DataLoader(data(), batch_size=16), ckpt_path=resume)
        return trainer, list(module.parameters())

    _, whole = fit(4)
    assert same(whole, by_hand(filter, 16))
    half, _ = fit(2)
    half.save_checkpoint(tmp_path / "half.ckpt")
    assert same(fit(4, tmp_path / "half.ckpt")[1], whole)


@pytest.mark.parametrize("made_from", ["wrapper", "inner", "no scheduler"])
def test_lightnings_monitor_sees_one_optimizer(tmp_path, made_from):
    lightning = pytest.importorskip("lightning")
    from lightning.pytorch.callbacks import LearningRateMonitor
    from lightning.pytorch.loggers import CSVLogger

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = net()

        def training_step(self, batch, _):
            return cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            optimizer = GrokFastAdamW(self.parameters(), lr=1e-2)
            if made_from == "no scheduler":
                return optimizer
            of = optimizer if made_from == "wrapper" else optimizer.optimizer
            return [optimizer], [torch.optim.lr_scheduler.StepLR(of, 1)]

    monitor = LearningRateMonitor("epoch")
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", enable_checkpointing=False, callbacks=[monitor], logger=CSVLogger(tmp_path),
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(Module(), DataLoader(data(), batch_size=16))
    assert len(monitor.lrs) == 1
    ((_, rates),) = monitor.lrs.items()
    assert rates == ([1e-2, 1e-2] if made_from == "no scheduler" else [1e-2, 1e-3])


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("how", ["optimizers", "optimizer_cls_and_kwargs"])
def test_hugging_face_trainer(tmp_path, filter, how):
    transformers = pytest.importorskip("transformers")

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x=None, labels=None):
            logits = self.net(x)
            return {"loss": cross_entropy(logits, labels), "logits": logits}

    class InOrder(transformers.Trainer):
        def _get_train_sampler(self, *_):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    rows = [{"x": x, "labels": y} for x, y in data()]

    def fit(directory, steps, resume=None):
        model = Model()
        arguments = transformers.TrainingArguments(
            output_dir=str(directory), max_steps=steps, per_device_train_batch_size=16, save_steps=6, report_to=[],
            use_cpu=True, disable_tqdm=True, learning_rate=1e-2, weight_decay=0.01, lr_scheduler_type="constant",
            max_grad_norm=0.0, logging_strategy="no", dataloader_pin_memory=False,
        )  # fmt: skip
        options = {}
        if how == "optimizers":
            optimizer = GrokFast(torch.optim.AdamW(model.parameters(), lr=1e-2), filter)
            options["optimizers"] = (optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0))
        else:
            options["optimizer_cls_and_kwargs"] = (GrokFastAdamW, {"lr": 1e-2, "filter": filter})
        trainer = InOrder(model=model, args=arguments, train_dataset=rows, **options)
        trainer.train(resume_from_checkpoint=resume)
        return list(model.parameters())

    whole = fit(tmp_path / "whole", 12)
    if how == "optimizers":  # the Trainer makes a group of its own for biases, without decay
        assert same(whole, by_hand(filter, 12))
    resumed = fit(tmp_path / "resumed", 12, str(tmp_path / "whole" / "checkpoint-6"))
    assert same(resumed, whole)


@pytest.mark.parametrize("filter", FILTERS)
def test_accelerate(tmp_path, filter):
    accelerate = pytest.importorskip("accelerate")

    def fit(steps, save=None, load=None, begin=0):
        accelerator = accelerate.Accelerator(cpu=True)
        model = net()
        optimizer = GrokFast(torch.optim.AdamW(model.parameters(), lr=1e-2), filter)
        model, optimizer = accelerator.prepare(model, optimizer)
        if load is not None:
            accelerator.load_state(load)
        batches = list(DataLoader(data(), batch_size=16))
        for step in range(begin, steps):
            x, y = batches[step % 4]
            accelerator.backward(cross_entropy(model(x), y))
            optimizer.step()
            optimizer.zero_grad()
        if save is not None:
            accelerator.save_state(save)
        return list(model.parameters())

    whole = fit(12)
    assert same(whole, by_hand(filter, 12))
    fit(7, save=str(tmp_path / "state"))
    assert same(fit(12, load=str(tmp_path / "state"), begin=7), whole)
