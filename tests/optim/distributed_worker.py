"""One process of test_distributed.py: `python distributed_worker.py CHECK FILTER RANK WORLD DIRECTORY`."""

import contextlib
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy

from grokfast import EMA, MA, GrokFast, GrokFastAdamW

FILTERS = {"ema": EMA(0.9, 2.0), "ma": MA(3, 1.0)}
STEPS = 8


def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(11, 21), torch.nn.ReLU(), torch.nn.Linear(21, 3))


def data():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(16, 11, generator=generator), torch.randint(0, 3, (16,), generator=generator)


def single(filter, steps=STEPS, primed=False):
    """One process, all rows: what the others have to arrive at.

    Asked for a state before there is any, torch.distributed.checkpoint takes a step with zero gradients at lr 0, which
    AdamW counts. `primed` has the inner optimizer do so, and only it.
    """
    model = net()
    inner = torch.optim.AdamW(model.parameters(), lr=1e-2)
    if primed:
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        inner.param_groups[0]["lr"] = 0.0
        inner.step()
        inner.param_groups[0]["lr"] = 1e-2
    optimizer = GrokFast(inner, filter)
    for _ in range(steps):
        backward(model, optimizer)
        optimizer.step()
    return [p.detach() for p in model.parameters()]


def backward(model, optimizer, rows=slice(None)):
    x, y = data()
    optimizer.zero_grad()
    cross_entropy(model(x[rows]), y[rows]).backward()


def own_rows():
    return slice(dist.get_rank(), None, dist.get_world_size())


def close(params, others):
    for p, q in zip(params, others):
        p = p.full_tensor() if hasattr(p, "full_tensor") else p
        torch.testing.assert_close(p.detach(), q, rtol=1e-4, atol=1e-5)


def ddp(filter, _):
    model = torch.nn.parallel.DistributedDataParallel(net())
    optimizer = GrokFast(torch.optim.AdamW(model.parameters(), lr=1e-2), filter)
    for _ in range(STEPS):
        backward(model, optimizer, own_rows())
        optimizer.step()
    close(model.parameters(), single(filter))


def accumulation(filter, _):
    """Two micro-batches a step, synchronised at the second: one gradient for the filter."""
    model = torch.nn.parallel.DistributedDataParallel(net())
    optimizer = GrokFast(torch.optim.AdamW(model.parameters(), lr=1e-2), filter)
    x, y = (t[own_rows()] for t in data())
    for _ in range(STEPS):
        optimizer.zero_grad()
        with model.no_sync():
            (cross_entropy(model(x[:4]), y[:4]) / 2).backward()
        (cross_entropy(model(x[4:]), y[4:]) / 2).backward()
        optimizer.step()
    close(model.parameters(), single(filter))


def sharded(filter):
    """FSDP2 on the first layer, so that DTensor and plain parameters stand side by side."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = net()
    fully_shard(model[0], mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    return model, GrokFast(torch.optim.AdamW(model.parameters(), lr=1e-2), filter)


def train_sharded(model, optimizer, steps):
    for _ in range(steps):
        backward(model, optimizer, own_rows())
        for p in model[2].parameters():  # not sharded: averaged by hand
            dist.all_reduce(p.grad)
            p.grad /= dist.get_world_size()
        optimizer.step()


def fsdp2(filter, _):
    model, optimizer = sharded(filter)
    train_sharded(model, optimizer, STEPS)
    assert hasattr(model[0].weight, "full_tensor")
    assert not hasattr(model[2].weight, "full_tensor")
    close(model.parameters(), single(filter))


def zero(filter, _):
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model = torch.nn.parallel.DistributedDataParallel(net())
    optimizer = ZeroRedundancyOptimizer(model.parameters(), GrokFastAdamW, lr=1e-2, filter=filter)
    for _ in range(STEPS):
        backward(model, optimizer, own_rows())
        optimizer.step()
    close(model.parameters(), single(filter))


def checkpoint(filter, directory):
    """torch.distributed.checkpoint in the middle, also asked for the state before there is any."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    saved = sorted(Path(directory).glob("step-*"))
    model, optimizer = sharded(filter)
    get_state_dict(model, optimizer)
    done = 0
    if saved:
        done = int(saved[-1].name.removeprefix("step-"))
        weights, state = get_state_dict(model, optimizer)
        dcp.load({"model": weights, "optim": state}, checkpoint_id=saved[-1])
        set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)
    train_sharded(model, optimizer, 3)
    done += 3
    close(model.parameters(), single(filter, done, primed=True))
    weights, state = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optim": state}, checkpoint_id=Path(directory, f"step-{done}"))


def main():
    check, filter, rank, world, directory = sys.argv[1:]
    dist.init_process_group("gloo", init_method=f"file://{directory}/{world}", rank=int(rank), world_size=int(world))
    globals()[check](FILTERS[filter], directory)
    with contextlib.suppress(RuntimeError):  # the other may have left it, and gone, already
        dist.barrier()
    # The check has passed. Tearing gloo down now and then aborts in one of its threads ("terminate called without an
    # active exception"), which is no finding about the optimizer.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
