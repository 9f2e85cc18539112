"""The engines of the one-pass update: on the CPU, on a GPU, and the GPU's blocks emulated on the CPU."""

import pytest

from tests.csrc.updates import ENGINES, engine_or_skip


@pytest.fixture(params=[name for name in ENGINES if name != "emulated-large"])
def engine(request, compiled):
    return engine_or_skip(request.param, compiled)


@pytest.fixture(params=["emulated", "emulated-large", "gpu"])
def like_cuda(request, compiled):
    return engine_or_skip(request.param, compiled)


@pytest.fixture
def on_gpu(compiled):
    return engine_or_skip("gpu", compiled)
