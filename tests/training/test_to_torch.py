"""A trained run as an ordinary module: the ensemble's outputs to the bit, and all that is done to torch's modules."""

import copy
import io
import pickle
from dataclasses import replace

import pytest
import torch
from torch import nn

from grokfast import Experiment, train
from grokfast.analysis.subject import subject
from grokfast.models import MLPConfig, PairMLPConfig, TokenMLPConfig, TransformerConfig
from grokfast.nn.ensemble import EnsembleModule
from grokfast.tasks import ParityTask
from grokfast.training.presets import PRESETS

SMALL = {  # where the preset has the field, and not None
    "task.p": 11, "task.train_fraction": 0.5, "task.stratified": False, "model.width": 8, "model.embed": 6,
    "model.d_model": 8, "model.n_heads": 2, "model.d_mlp": 12,
}  # fmt: skip
FEW = {"schedule.steps": 3, "schedule.eval_every": 1, "device": "cpu"}
PAIRS = Experiment.preset("quick").override({"task.p": 11} | FEW)
SIGNS = Experiment.preset("parity").override({"task": ParityTask(n=10, k=2)} | FEW)
EQUALS = Experiment.preset("nanda").override({"task.p": 11} | FEW)
WIDE = TransformerConfig(d_model=8, n_heads=2, d_mlp=12)


class Own(nn.Module):
    """A module with a buffer, dropout and two names for one parameter."""

    def __init__(self, data):
        super().__init__()
        self.embed = nn.Embedding(data.n_tokens, 8)
        self.mix, self.drop = nn.Linear(16, 8), nn.Dropout(0.5)
        self.out = nn.Linear(8, data.n_answers, bias=False)
        self.out.weight = self.embed.weight
        self.register_buffer("shift", torch.rand(8))

    def forward(self, x):
        return self.out(self.drop(self.mix(self.embed(x).flatten(1)).relu()) + self.shift)


KINDS = {
    "pair": (PAIRS, PairMLPConfig(width=8)),
    "pair, embedded": (PAIRS, PairMLPConfig(width=8, depth=3, embed=6, residual=True, dropout=0.2, bias=False)),
    "features": (SIGNS, MLPConfig(width=8, depth=3, residual=True)),
    "tokens": (PAIRS, TokenMLPConfig(width=8, depth=2)),
    "tokens, shared": (PAIRS, TokenMLPConfig(width=8, embed=6, shared=True, join="sum", dropout=0.2)),
    "transformer": (EQUALS, WIDE),
    "transformer, post": (EQUALS, TransformerConfig(**{**vars(WIDE), "norm": "post", "positions": "sinusoidal",
        "attention_bias": True, "tied": True, "outputs": "tokens", "dropout": 0.2})),
    "transformer, replace": (EQUALS, TransformerConfig(**{**vars(WIDE), "norm": "replace", "n_positions": 5,
        "residual": False, "causal": False, "attention_rate": 0.5})),
    "of one's own": (PAIRS, Own),
}  # fmt: skip


def trained(kind):
    experiment, model = KINDS[kind]
    if model is Own:
        return train(experiment, model=Own)
    return train(experiment.override({"model": model}))


@pytest.fixture(scope="module", params=KINDS)
def run(request):
    return trained(request.param)


def rows(run, split="test"):
    data = run.experiment.task.build(seed=run.experiment.seed).splits[split]
    inputs = data.inputs
    return (inputs.float() if inputs.is_floating_point() else inputs), data.targets


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "omnigrok"])  # which needs a file
def test_a_presets_model_has_the_ensembles_bits(name):
    if name == "digits":
        pytest.importorskip("sklearn")
    preset = Experiment.preset(name)
    has = {key for key, value in preset.flat().items() if value is not None}
    run = train(preset.override({key: value for key, value in SMALL.items() if key in has} | FEW))
    model, (inputs, targets) = run.to_torch(), rows(run)
    assert not isinstance(model, EnsembleModule) or model.is_unstacked
    with torch.no_grad():
        outputs = model(inputs)
        assert torch.equal(outputs, subject(run).module(inputs[None])[0])
        _, accuracy = run.experiment.loss(outputs[None], targets[None])
    assert accuracy.item() == pytest.approx(run.final["test_accuracy"], abs=1e-6)  # of counts, in fp32


def test_every_kind_has_the_ensembles_bits_and_the_weights_names_and_shapes(run):
    model, (inputs, _) = run.to_torch(), rows(run)
    assert not model.training
    with torch.no_grad():
        assert torch.equal(model(inputs), subject(run).module(inputs[None])[0])
    named = dict(model.named_parameters())
    assert named.keys() == run.weights.keys()
    for name, p in named.items():
        assert torch.equal(p, run.weights[name])
        assert p.requires_grad
        assert p.data_ptr() != run.weights[name].data_ptr()


def test_it_is_copied_pickled_and_loaded_as_a_module(run):
    model, (inputs, _) = run.to_torch(), rows(run)
    with torch.no_grad():
        expected = model(inputs)
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        other = copy.deepcopy(model)
        for p in other.parameters():
            p.zero_()
        assert not torch.equal(other(inputs), expected)
        file.seek(0)
        other.load_state_dict(torch.load(file, weights_only=True))
        for same in (other, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(same(inputs), expected)
        assert torch.equal(model(inputs), expected)


def test_in_double_precision_it_is_the_ensemble_in_double_precision(run):
    model, (inputs, _) = run.to_torch().to(torch.float64), rows(run)
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    with torch.no_grad():
        outputs = model(inputs)
        assert outputs.dtype == torch.float64
        ensemble = subject(run).module.to(torch.float64)
        getattr(ensemble, "plain", ensemble).to(torch.float64)  # of one's own, with its buffers
        assert torch.equal(outputs, ensemble(inputs[None])[0])


def test_it_is_trained_by_torchs_optimizers(run):
    model, (inputs, targets) = run.to_torch().train(), rows(run)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss, _ = run.experiment.loss(model(inputs)[None], targets[None])
        loss.sum().backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("kind", ["pair", "pair, embedded", "features", "tokens", "transformer, post", "of one's own"])
def test_it_is_compiled(kind):
    run = trained(kind)
    model, (inputs, _) = run.to_torch(), rows(run)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        assert torch.equal(compiled(inputs), model(inputs))


def test_its_parts_are_modules_with_hooks():
    run = trained("transformer")
    model, (inputs, _) = run.to_torch(), rows(run)
    seen = []
    model.blocks[0].register_forward_hook(lambda module, args, output: seen.append(output))
    model(inputs)
    (output,) = seen
    assert output.shape == (*inputs.shape, 8)
    assert torch.equal(model.blocks[0](model.embedding[inputs] + model.positions, None), output)


def test_a_module_of_ones_own_is_that_very_module():
    model = trained("of one's own").to_torch()
    assert type(model) is Own
    assert model.out.weight is model.embed.weight


def test_it_takes_no_leading_axis():
    run = trained("transformer")
    inputs, _ = rows(run)
    with pytest.raises(ValueError, match=r"tokens must be \[N, T\]"):
        run.to_torch()(inputs[None])


def test_models_of_an_ensemble_are_unstacked_with_copies():
    data = EQUALS.task.build(seed=0)
    module = WIDE.build(data, seeds=[3, 1])
    inputs = data.test.inputs
    first, second = module.unstack()
    assert (first.seeds, second.seeds) == ((3,), (1,))
    expected = module(inputs)
    assert torch.equal(torch.stack([first(inputs), second(inputs)]), expected)
    with torch.no_grad():
        first.embedding.zero_()
    assert torch.equal(module(inputs), expected)


def test_a_result_without_weights_and_an_ensemble_of_ones_own_say_what_they_lack():
    with pytest.raises(ValueError, match="run abc must have weights, it was stored without"):
        replace(trained("pair"), weights={}, run_id="abc").to_torch()

    class Mine(EnsembleModule):
        pass

    with pytest.raises(TypeError, match="Mine must define `unstack`"):
        Mine([0]).unstack()
