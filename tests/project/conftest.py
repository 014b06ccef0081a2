"""A reader's folder, in which the commands of the pages run."""

import numpy as np
import pytest
from mpi import ROOT


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A place that looks like the top of the checkout with a user's data in it."""
    from PIL import Image

    place = tmp_path_factory.mktemp("reader")
    for name in ("jobs", ".venv", "localavg", "tests", "analysis", "constraints.txt"):
        (place / name).symlink_to(ROOT / name)
    (place / "runs").mkdir()
    rows = "".join(f"{'+1' if i % 3 else '-1'} 1:{i / 10} 2:{-i / 7}\n" for i in range(40))
    for name in ("train.txt", "test.txt"):
        (place / name).write_text(rows)
    for part in ("train", "test"):
        for k, kind in enumerate(("cats", "dogs")):
            pictures = place / "photos" / part / kind
            pictures.mkdir(parents=True)
            for i in range(8):
                Image.fromarray(np.full((40, 40, 3), 100 * k + 10 * i, np.uint8)).save(
                    pictures / f"{i}.png"
                )
    return place
