"""The tests on a GPU are skipped where there is none, with the reason, and their launches all run
side by side.

A launch takes 10 s and more to load CUDA, so each test file has few, and those that the chosen
tests need begin together, but for a limit; several processes share the GPU.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from gpus import why_not

HERE = Path(__file__).resolve().parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("gpu")


def pytest_runtest_setup(item):
    if why := why_not():
        pytest.skip(why)


@pytest.fixture(scope="session")
def begun(request, tmp_path_factory):
    """{launch: a future of its answers}, for the launches that the chosen tests need.

    `begin_NAME` of a test file, called with a folder, does what the fixture NAME has the answers
    of.
    """
    pool, futures = ThreadPoolExecutor(16), {}
    for item in request.session.items:
        for name in getattr(item, "fixturenames", ()):
            begin = getattr(item.module, f"begin_{name}", None)
            if begin and name not in futures:
                futures[name] = pool.submit(begin, tmp_path_factory.mktemp(name))
    yield futures
    pool.shutdown(cancel_futures=True)
