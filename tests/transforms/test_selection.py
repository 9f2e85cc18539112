"""Parameters by their names."""

import pytest
import torch

from grokfast import GrokFast, NormClip, OrthoGrad
from grokfast.transforms import Layout
from grokfast.transforms.selection import chosen

LAYOUT = Layout.of({"embedding": (5, 4), "blocks.0.w_in": (4, 4), "blocks.0.b_in": (4,), "unembedding": (5, 4)})


@pytest.mark.parametrize(
    ("said", "names"),
    [
        ("all", ("embedding", "blocks.0.w_in", "blocks.0.b_in", "unembedding")),
        ("matrices", ("embedding", "blocks.0.w_in", "unembedding")),
        ("hidden", ("blocks.0.w_in",)),
        ("unembedding, blocks.*.b_*", ("blocks.0.b_in", "unembedding")),
        ("hidden,embedding", ("embedding", "blocks.0.w_in")),
    ],
)
def test_names_in_the_layouts_order(said, names):
    assert chosen(said, LAYOUT) == names


@pytest.mark.parametrize("said", ["w_in", "hiden", "embedding,blocks.1.*", ""])
def test_a_pattern_of_no_parameter_is_refused(said):
    with pytest.raises(ValueError, match=r"^parameters must be of parameters' names, 'embedding', .*got '"):
        chosen(said, LAYOUT)


def test_of_a_part_of_a_model_a_pattern_may_be_the_others():
    part = Layout.of({"b": (4,)})._replace(others=("w", "b"))
    assert chosen("w", part) == chosen("hidden", part) == ()
    with pytest.raises(ValueError, match=r"names, 'b', 'w', got 'v'"):
        chosen("v", part)


def test_a_script_names_its_parameters_or_is_told():
    def step(named, said):
        model = torch.nn.Linear(3, 2)
        inner = torch.optim.SGD(model.named_parameters() if named else model.parameters(), lr=0.1)
        model(torch.ones(3)).sum().backward()
        GrokFast(inner, OrthoGrad(parameters=said)).step()

    step(True, "weight")
    step(True, "hidden")
    with pytest.raises(ValueError, match=r"names, 'weight', 'bias', got 'wait'"):
        step(True, "wait")
    with pytest.raises(ValueError, match=r"names, 'parameter', got 'weight'"):
        step(False, "weight")


def test_integer_parameters_are_refused():
    whole = torch.nn.Parameter(torch.ones(3, 3, dtype=torch.int64), requires_grad=False)
    whole.grad = torch.ones(3, 3, dtype=torch.int64)
    with pytest.raises(TypeError, match=r"parameters must be floating-point for NormClip.*, got torch.int64 \[3, 3\]"):
        GrokFast(torch.optim.SGD([whole], lr=1), NormClip()).step()
    assert torch.equal(whole, torch.ones(3, 3, dtype=torch.int64))
