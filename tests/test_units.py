import pytest

from grokfast.units import duration, memory


@pytest.mark.parametrize(("seconds", "words"), [(42.4, "42 s"), (720, "12 min"), (12_000, "3 h 20 min")])
def test_duration(seconds, words):
    assert duration(seconds) == words


def test_memory():
    assert [memory(n) for n in (70_000, 260e6, 1.4e9)] == ["70 kB", "260 MB", "1.4 GB"]
