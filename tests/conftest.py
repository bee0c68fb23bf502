"""Settings of every test: `--slow`, and JAX raising where arrays of different rank would be broadcast."""

import os

import pytest

# in the environment rather than jax.config, so that tests without JAX do not import it and subprocesses inherit it
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the slow tests as well")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow: runs with --slow"))
