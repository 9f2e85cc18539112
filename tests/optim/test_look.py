"""What tells one place and form of memory from another."""

import pytest
import torch
from torch import nn

from grokfast.optim.look import look, look_in_python


def fast(tensors, with_addresses):
    return look(tensors, with_addresses=with_addresses)


@pytest.fixture(params=[fast, look_in_python], ids=["compiled", "python"])
def either(request, compiled):
    return request.param


BASE = torch.arange(24.0).view(4, 6)
OTHERS = {
    "place": BASE.clone(),
    "offset": torch.arange(30.0)[6:].view(4, 6),
    "shape": BASE.view(6, 4),
    "shorter": BASE[:2],
    "strides": BASE.view(6, 4).t(),
    "dtype": BASE.view(torch.int32),
    "no dimension": BASE[0, 0],
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_place_or_form_looks_otherwise(either, name):
    assert either([BASE], True) == either([BASE.view(4, 6)], True)
    assert either([BASE], True) != either([OTHERS[name]], True)
    form = name not in ("place", "offset")
    assert (either([BASE], False) != either([OTHERS[name]], False)) == form


def test_parameters_look_like_tensors_and_the_stride_of_one_element_says_nothing(either):
    assert either([nn.Parameter(BASE)], True) == either([BASE], True)
    row = torch.ones(5, 1).t()
    assert row.stride() != torch.ones(1, 5).stride()
    assert either([row], False) == either([torch.ones(1, 5)], False)


@pytest.mark.parametrize("value", [None, 3, "t", torch.ones(3).to_sparse()], ids=["None", "int", "str", "sparse"])
def test_what_has_no_memory_of_its_own_is_an_error(either, value):
    with pytest.raises((TypeError, RuntimeError)):
        either([BASE, value], True)
