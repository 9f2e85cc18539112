import pytest
import torch
from torch.nn.functional import cross_entropy

from grokfast import EMA, MA, GrokFast


def train(filter, inner, compiled):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(10, 20), torch.nn.ReLU(), torch.nn.Linear(20, 3))
    x, y = torch.randn(32, 10), torch.randint(0, 3, (32,))
    optimizer = GrokFast(inner(model.parameters(), lr=1e-2), filter)

    def step():
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    run = torch.compile(step, backend="aot_eager") if compiled else step
    return [run() for _ in range(6)], [p.detach() for p in model.parameters()]


@pytest.mark.parametrize("filter", [EMA(), MA(3, 1.0)])
@pytest.mark.parametrize("inner", [torch.optim.AdamW, torch.optim.RMSprop])
def test_a_compiled_training_step_gives_the_same_numbers(filter, inner):
    torch.testing.assert_close(train(filter, inner, True), train(filter, inner, False), rtol=0, atol=0)
