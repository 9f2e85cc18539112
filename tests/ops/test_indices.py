import pytest
import torch

from grokfast.ops.indices import check_indices


@pytest.mark.parametrize(("value", "worst"), [([0, 5], 5), ([-1, 9], -1)])
def test_indices_names_a_culprit(value, worst):
    with pytest.raises(IndexError, match=rf"^target must be in \[0, 5\), got {worst}$"):
        check_indices("target", torch.tensor(value), 5)


def test_indices_in_range_and_none_at_all_pass():
    check_indices("target", torch.tensor([0, 4]), 5)
    check_indices("target", torch.empty(0, dtype=torch.int64), 0)
