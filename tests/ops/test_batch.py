import pytest
import torch

from grokfast import backend
from grokfast.ops.batch import Unpacker, batch_rows, read_tokens, sum_up

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def both(function):
    """What the kernels give, and plain PyTorch."""
    results = []
    for name in ("triton", "reference"):
        with backend.using(name):
            results.append(function())
    return results


def drawn(*shape, low=0, high=5):
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE)


@pytest.mark.parametrize("size", [1, 7, 1100])
def test_a_batch_is_chosen_and_what_is_none_has_no_share(size, poisoned):
    batch, targets = drawn(2, size, low=-1, high=9), drawn(2, 9)
    batch[0, : size // 2] = -1
    batch[0, -1] = 3
    rows, plain = both(lambda: batch_rows(batch, targets, torch.float32))
    for name in ("chosen", "targets", "counts", "share"):
        torch.testing.assert_close(getattr(rows, name), getattr(plain, name), rtol=1e-6, atol=0)
    torch.testing.assert_close(rows.share.sum(1), torch.ones(2, device=DEVICE))
    assert torch.equal(rows.counts.bool(), batch >= 0)
    assert torch.equal(rows.targets, targets.gather(1, batch.clamp(min=0)))


def test_a_batch_of_none_has_loss_0():
    batch, targets = torch.full((1, 3), -1, device=DEVICE), drawn(1, 4)
    for rows in both(lambda: batch_rows(batch, targets, torch.float32)):
        assert rows.share.tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("size", [1, 7, 1100])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float32])
def test_losses_are_summed_up(size, dtype, judge, poisoned):
    batch, targets = drawn(2, size, low=-1, high=9), drawn(2, 9)
    batch[:, 0] = 1
    values, right = torch.rand(2, size).to(DEVICE), (torch.rand(2, size) < 0.5).float().to(DEVICE)

    def summed():
        rows = batch_rows(batch, targets, torch.float32)
        loss, correct = torch.empty(2, device=DEVICE), torch.empty(2, device=DEVICE).to(dtype)
        sum_up(values, right, rows, loss, correct)
        return loss, correct

    (loss, correct), (by_torch, count) = both(summed)
    valid = batch >= 0
    judge(loss, by_torch, (values.double() * valid).sum(1) / valid.sum(1))
    assert correct.tolist() == count.tolist() == (right * valid).sum(1).tolist()


@pytest.mark.parametrize("n_models", [1, 3])
def test_tensors_are_unpacked(n_models, poisoned):
    shapes = [torch.Size(s) for s in ((3, 5), (7,), (400, 3))]
    tensors = [torch.randn(n_models, *shape).to(DEVICE) for shape in shapes]
    flat = torch.cat([*(t.flatten(1) for t in tensors), torch.zeros(n_models, 2, device=DEVICE)], 1)
    for unpacked in both(lambda: [t.clone() for t in Unpacker(shapes, flat.device)(flat)]):
        assert all(map(torch.equal, unpacked, tensors))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("n_fixed", "first", "with_offsets"), [(5, 1, True), (0, 2, False), (40, 0, True)])
def test_rows_read_their_tokens(n_fixed, first, with_offsets, causal, poisoned):
    n_models, n_data, size, seq_len = 2, 11, 6, 3
    table, chosen = drawn(n_models, n_data, seq_len), drawn(n_models, size, high=n_data)
    fixed = drawn(n_fixed, seq_len), drawn(n_fixed)
    offsets = drawn(size, seq_len, high=90) if with_offsets else None
    got, plain = both(lambda: read_tokens(*fixed, table, offsets, chosen, first, causal))
    for ours, theirs in zip(got, plain):
        assert torch.equal(ours, theirs)
    keys, own = (t.tolist() for t in got)
    for e in range(n_models):
        assert keys[e][:n_fixed] == fixed[0].tolist()
        assert own[e][:n_fixed] == fixed[1].tolist()
        r = n_fixed
        for t in range(first, seq_len):
            for b in range(size):
                read = table[e, chosen[e, b]] + (0 if offsets is None else offsets[b])
                expected = [int(k) if i <= t or not causal else -1 for i, k in enumerate(read)]
                assert (keys[e][r], own[e][r]) == (expected, int(read[t]))
                r += 1
