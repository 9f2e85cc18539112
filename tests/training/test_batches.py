import pytest
import torch

from grokfast import Experiment
from grokfast.training.batches import Batches, Orders
from grokfast.training.ensemble import Ensemble

TINY = Experiment.preset("quick").override({"task.p": 7, "model.width": 8})
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("size", [1, 4, 5, 18])
@pytest.mark.parametrize("stretch", [1, 3, 40])
def test_a_ring_of_batches_holds_what_a_step_by_step_run_takes(size, stretch):
    """19 rows: with 5 the last batch of an epoch has 4, with 18 it has 1; a stretch lies in one epoch or in many."""
    changes = [{"seed": 1}, {"seed": 2, "schedule.batch_seed": 9}]
    experiments = [TINY.override({**change, "schedule.batch_size": size, "device": str(DEVICE)}) for change in changes]
    ensemble = Ensemble(experiments)
    rows = ensemble.rows["train"].targets.shape[1]
    assert rows == 19
    batches = Batches(Orders(experiments, [rows] * 2, size), 2, DEVICE, stretch)
    step = ensemble.optimizer.steps = 2  # taken up in the middle of an epoch
    while step < 90:
        batches.prepare(step, stretch)
        for _ in range(stretch):
            chosen = ensemble._chosen()
            batch = batches.select(torch.full((2,), step, device=DEVICE))
            assert batches.orders.length(step) == chosen.shape[1]
            assert torch.equal(batch[:, : chosen.shape[1]], chosen)
            assert (batch[:, chosen.shape[1] :] == -1).all()
            step = ensemble.optimizer.steps = step + 1


def test_each_epoch_is_another_order_of_all_rows():
    batches = Batches(Orders([TINY], [19], 4), 1, DEVICE, 10)
    batches.prepare(0, 10)
    epochs = [
        torch.cat([batches.select(torch.tensor([5 * epoch + k], device=DEVICE))[0].clone() for k in range(5)])
        for epoch in range(2)
    ]
    for rows in epochs:
        assert sorted(rows[rows >= 0].tolist()) == list(range(19))
    assert not torch.equal(*epochs)


def test_steps_in_any_order_have_the_batches_of_the_epochs():
    orders = Orders([TINY, TINY.override({"seed": 4})], [19, 7], 5)
    for step in (0, 1, 2, 3, 40, 41, 17, 5000, 2):
        (expected,) = Orders([TINY, TINY.override({"seed": 4})], [19, 7], 5).batches(step, step + 1)
        assert torch.equal(orders.batch(step), expected[:, : orders.length(step)])
