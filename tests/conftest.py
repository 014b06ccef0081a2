"""Data that several test files train on; `pytest --no-launch` for the tests that launch no MPI."""

import os
import sys
import threading

import pytest
from mpi import NO_LAUNCH
from samples import write
from smooth import smoothed
from threadpoolctl import threadpool_limits


def pytest_addoption(parser):
    parser.addoption("--no-launch", action="store_true", help="skip the tests that launch MPI")


def pytest_configure(config):
    if config.getoption("--no-launch"):
        os.environ[NO_LAUNCH] = "1"


def pytest_collection_finish():
    """Use one thread in this process: several wait for each other in loops, which takes minutes
    on cores that have other work.
    """
    threadpool_limits(1)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """Rows whose distribution drifts with the row number, so that contiguous shards disagree;
    labels with noise.
    """
    return write(tmp_path_factory.mktemp("data") / "shards.h5", noise=1.0)


@pytest.fixture(scope="session")
def separable(tmp_path_factory):
    """The same rows with labels that a linear classifier gets right."""
    return write(tmp_path_factory.mktemp("data") / "separable.h5", noise=0.0)


@pytest.fixture(scope="session")
def fives(tmp_path_factory):
    """Such rows, a multiple of 5 of them."""
    return write(tmp_path_factory.mktemp("data") / "fives.h5", noise=1.0, n=165)


@pytest.fixture(scope="module")
def once():
    """once(key, make, …) is make(…), called once for every key; how it failed or was skipped is
    kept too.
    """
    outcomes = {}

    def get(key, make, *args, **more):
        if key not in outcomes:
            try:
                outcomes[key] = make(*args, **more)
            except (pytest.fail.Exception, pytest.skip.Exception) as outcome:
                outcomes[key] = outcome
        if isinstance(outcomes[key], BaseException):
            raise outcomes[key]
        return outcomes[key]

    return get


@pytest.fixture
def hooks(monkeypatch):
    """For commands in this process: after the test an exception that nobody catches ends no job."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)


@pytest.fixture
def smooth(monkeypatch):
    """Networks without kinks: another rounding of a unit near 0, or of two equal ones, would switch
    a ReLU or a maximum.
    """
    smoothed(monkeypatch.setattr)
