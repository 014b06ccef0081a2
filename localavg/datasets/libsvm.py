"""LIBSVM text (plain, .bz2, .xz or .gz) to a prepared dataset, parsed by all ranks at once.

The file is cut into chunks; chunk c is parsed by rank c mod ranks. In every round each rank parses
a chunk, and rank 0 takes them in the order of the file: the result has the same bits, and a mistake
the same message, for any number of ranks. A compressed file must be unpacked from its start, so
every rank unpacks all of it; unpack it beforehand if many ranks are to gain.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from localavg.datasets import progress, writer
from localavg.datasets.libsvm_text import Block, Indices, blocks, check_kind
from localavg.datasets.spool import Spool
from localavg.datasets.writer import Communicator
from localavg.errors import UserError

if TYPE_CHECKING:
    from tqdm import tqdm


def prepare_libsvm(
    train: str | Path,
    out: str | Path,
    test: str | Path | None = None,
    features: int | None = None,
    shuffle: int | None = None,
    name: str | None = None,
    zero_based: bool = False,
    any_size: bool = False,
    comm: Communicator | None = None,
) -> None:
    """Write the prepared file `out` from LIBSVM text; collective over `comm` (None: no MPI).

    features: number of features d; default the largest index in the files. A larger index is an
    error.
    zero_based: the first feature has index 0, not 1.
    any_size: write rows too that, dense, are larger than this machine's memory.
    shuffle: seed; output row i is then row numpy.random.default_rng(shuffle).permutation(n)[i] of
    `train`. The test rows keep their order.
    name: name of the dataset; default that of the training file up to its first dot.

    Every rank raises the same UserError on a mistake in the text (file, line and rule are named),
    labels that are not two, a damaged or empty file, a file of another kind, an existing `out`, or
    rows that have no room when they are dense, as soon as so many are read. Memory: tens of MB a
    rank, and on rank 0 about a MB for every rank and 5 bytes a row (30 while it writes). Disk: 8
    bytes an entry of the text beside `out`, until the end.
    """
    if features is not None and features < 1:
        raise UserError(f"`features = {features}` must be at least 1")
    if shuffle is not None and shuffle < 0:
        raise UserError(f"`shuffle = {shuffle}` is a seed and must not be negative")
    files = {"train": Path(train)} | ({"test": Path(test)} if test is not None else {})
    with _spools(files, out, comm) as (sizes, spools):
        indices = Indices(0 if zero_based else 1, features)
        check = partial(_check_room, Path(out), spools, features, any_size)
        for split, path in files.items():
            _read(path, sizes[split], indices, comm, spools.get(split), check)
        name = name or files["train"].name.split(".")[0]
        writer.on_root(comm, lambda: _write(out, spools, features, shuffle, name))


@contextmanager
def _spools(
    files: dict[str, Path], out: str | Path, comm: Communicator | None
) -> Iterator[tuple[dict[str, int], dict[str, Spool]]]:
    """Yield the sizes of the files, and on rank 0 an empty Spool of each, beside `out`."""
    spools: dict[str, Spool] = {}
    with ExitStack() as stack:

        def start() -> dict[str, int]:
            writer.check_out(out)
            for path in files.values():
                writer.check_file(path)
                check_kind(path)
            sizes = {split: path.stat().st_size for split, path in files.items()}
            for split, path in files.items():
                file = stack.enter_context(tempfile.TemporaryFile(dir=Path(out).parent))
                spools[split] = Spool(path, file)
            return sizes

        yield writer.on_root(comm, start), spools


def _read(
    path: Path,
    size: int,
    indices: Indices,
    comm: Communicator | None,
    spool: Spool | None,
    check: Callable[[], None],
) -> None:
    """Fill the Spool of rank 0 with the rows of a file of `size` bytes. Collective.

    check() is called on rank 0 after every round.
    """
    rank, ranks = (0, 1) if comm is None else (comm.rank, comm.size)
    mine, more = blocks(path, size, indices, rank, ranks), True
    with progress.bar(size, f"read {path.name}") if spool else nullcontext() as bar:
        while more:
            block: Block | UserError | None
            try:
                block = next(mine, None)
            except UserError as error:
                block = error
            found = [block] if comm is None else comm.gather(block)  # [ranks] on rank 0
            more = writer.on_root(comm, partial(_take, spool, found, bar, check))


def _take(
    spool: Spool | None,
    found: list[Block | UserError | None] | None,
    bar: tqdm | None,
    check: Callable[[], None],
) -> bool:
    """Append the blocks of a round of all ranks. Return whether there may be more.

    Raises the first mistake that a rank found; blocks after it are not appended.
    """
    assert spool is not None and found is not None and bar is not None, "only rank 0 takes"
    for block in found:
        if isinstance(block, UserError):
            raise block
        if block is not None:
            spool.append(block)
            bar.update(block.position - bar.n)
    check()
    if found[-1] is None and not spool.rows:
        raise UserError(f"{spool.path} holds no rows; is it the right file?")
    return found[-1] is not None


def _check_room(out: Path, spools: dict[str, Spool], features: int | None, any_size: bool) -> None:
    """Raise UserError where the rows read so far have no room when they are dense."""
    rows = sum(spool.rows for spool in spools.values())
    d = features or max(spool.features for spool in spools.values())
    nbytes = writer.dense_bytes(rows, d)
    what = f"{rows} rows read so far of {d} features, dense, in float32"
    writer.need_room(out, nbytes, what)
    if not any_size:
        writer.need_memory(out, nbytes, what)


def _write(out, spools, features, shuffle, name):
    """Write the prepared file from the spools, on rank 0."""
    features = features or max(spool.features for spool in spools.values())
    if not features:
        raise UserError(f"{spools['train'].path} holds no features: every line is a bare label")
    classes = _classes(spools)
    attributes = {
        "name": name,
        "source": ", ".join(spool.path.name for spool in spools.values()),
        "classes": classes,
        "shuffled": shuffle is not None,
    } | ({} if shuffle is None else {"shuffle_seed": shuffle})
    rows = {split: spool.rows for split, spool in spools.items()}
    total = sum(rows.values()) * features * 4
    with (
        writer.create(out, features, rows, attributes) as target,
        progress.bar(total, f"write {Path(out).name}") as bar,
    ):
        for split, spool in spools.items():
            order = None
            if split == "train" and shuffle is not None:
                order = np.random.default_rng(shuffle).permutation(spool.rows)  # [n]
            y = spool.signs(classes)[slice(None) if order is None else order]  # [n]
            for start, x in spool.dense(features, order):
                target.write(split, start, x, y[start : start + len(x)])
                bar.update(x.nbytes)


def _classes(spools):
    """Return the two labels of the training file, smaller first."""
    train = spools["train"]
    if len(train.labels) != 2:
        raise UserError(
            f"{train.path} has one label only ({train.labels[0]:g}); a dataset here has two classes"
        )
    for spool in spools.values():
        strange = [label for label in spool.labels if label not in train.labels]
        if strange:
            raise UserError(
                f"{spool.path} has the label {strange[0]:g}, which {train.path} has not"
            )
    return sorted(train.labels)
