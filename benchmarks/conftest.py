"""Benchmarks run in one process: tests may share the machine, what is timed must not."""

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    if getattr(config.option, "benchmark_only", False):
        config.option.numprocesses, config.option.dist = 0, "no"
