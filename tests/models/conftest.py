from tests.training.conftest import how, replayed  # noqa: F401
