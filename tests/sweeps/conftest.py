import pytest

from grokfast import sweep
from grokfast.sweeps import InProcess
from tests.sweeps.common import LONG, bits
from tests.training.conftest import replayed  # noqa: F401


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """What the two long runs compute when nothing happens to them."""
    return bits(sweep(LONG, {"seed": [0, 1]}, store=tmp_path_factory.mktemp("undisturbed"), runner=InProcess()))
