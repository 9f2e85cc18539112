import pytest

from grokfast import sweep
from grokfast.training.sweep import InProcess
from tests.training.sweep.common import LONG, bits


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """What the two long runs compute when nothing happens to them."""
    return bits(sweep(LONG, {"seed": [0, 1]}, store=tmp_path_factory.mktemp("undisturbed"), runner=InProcess()))
