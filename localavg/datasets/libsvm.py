"""LIBSVM text (plain, .bz2, .xz or .gz) to a prepared dataset, parsed by all ranks at once.

The file is cut into chunks; chunk c is parsed by rank c mod ranks and sent to rank 0, which takes
the chunks in the order of the file: the result has the same bits, and a mistake the same message,
for any number of ranks. A compressed file must be unpacked from its start, so every rank unpacks
all of it; unpack it beforehand if many ranks are to gain.
"""

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from localavg.datasets import progress, writer
from localavg.datasets.libsvm_text import blocks
from localavg.datasets.spool import Spool
from localavg.errors import UserError


def prepare_libsvm(
    train: str | Path,
    out: str | Path,
    test: str | Path | None = None,
    features: int | None = None,
    shuffle: int | None = None,
    name: str | None = None,
    comm: Any = None,
) -> None:
    """Write the prepared file `out` from LIBSVM text; collective over `comm` (None: no MPI).

    features: number of features d; default the largest index in the files. A larger index is an
    error. shuffle: seed; output row i is then row
    numpy.random.default_rng(shuffle).permutation(n)[i] of `train`. The test rows keep their order.
    name: name of the dataset; default that of the training file up to its first dot.

    Every rank raises the same UserError on a mistake in the text (file, line and rule are named),
    labels that are not two, a damaged or empty file, or an existing `out`. Memory: tens of MB a
    rank, and about 5 bytes a row on rank 0 (30 while it writes). Disk: 8 bytes an entry of the text
    beside `out`, until the end.
    """
    if features is not None and features < 1:
        raise UserError(f"--features {features} must be at least 1")
    if shuffle is not None and shuffle < 0:
        raise UserError(f"--shuffle {shuffle} is a seed and must not be negative")
    files = {"train": Path(train)} | ({"test": Path(test)} if test is not None else {})
    rank, ranks = (comm.rank, comm.size) if comm is not None else (0, 1)
    spools = {}
    with contextlib.ExitStack() as stack:

        def start():
            writer.check_out(out)
            for path in files.values():
                with open(
                    path, "rb"
                ):  # a missing file is named now, not after the other one is read
                    pass
            for split, path in files.items():
                file = stack.enter_context(tempfile.TemporaryFile(dir=Path(out).parent))
                spools[split] = Spool(path, file)

        writer.on_root(comm, start)
        for split, path in files.items():
            if rank:
                _send(path, features, comm)
            writer.on_root(comm, lambda split=split: _collect(spools[split], features, comm, ranks))
        writer.on_root(
            comm, lambda: _write(out, spools, features, shuffle, name or _stem(files["train"]))
        )


def _stem(path):
    return path.name.split(".")[0]


def _send(path, features, comm):
    """Parse this rank's chunks and send each to rank 0, at last None or a UserError; stop when rank
    0 answers False.
    """
    answer_due = False
    for message in _messages(path, features, comm):
        if answer_due and not comm.recv(source=0):
            return
        comm.send(message, dest=0)
        answer_due = True
    comm.recv(source=0)


def _messages(path, features, comm):
    try:
        for _, block in blocks(path, features, comm.rank, comm.size):
            if block is not None:
                yield block
        yield None
    except UserError as error:
        yield error


def _collect(spool, features, comm, ranks):
    """Fill the Spool of rank 0 with the blocks of all ranks in the order of the file; on an error,
    stop all ranks.
    """
    sending, in_hand = (
        set(range(1, ranks)),
        None,
    )  # ranks that will send again; the one that waits for an answer

    def receive(source):
        nonlocal in_hand
        message, in_hand = comm.recv(source=source), source
        if isinstance(message, UserError):
            raise message
        return message

    def answer(source):
        nonlocal in_hand
        comm.send(True, dest=source)
        in_hand = None

    size = os.path.getsize(spool.path) if os.path.exists(spool.path) else None
    try:
        with progress.bar(size, f"read {spool.path.name}") as bar:
            for number, (position, block) in enumerate(blocks(spool.path, features, 0, ranks)):
                source = number % ranks
                if source:
                    block = receive(source)
                    if block is None or block.number != number:
                        raise _differs(spool.path, source)
                spool.append(block)
                if source:
                    answer(source)
                bar.update(position - bar.n)
            for source in range(1, ranks):
                if receive(source) is not None:
                    raise _differs(spool.path, source)
                answer(source)
                sending.discard(source)
    except (UserError, OSError):
        for source in sending:
            if source != in_hand:
                comm.recv(source=source)
            comm.send(False, dest=source)
        raise
    if not spool.rows:
        raise UserError(f"{spool.path} holds no rows; is it the right file?")


def _differs(path, source):
    return UserError(
        f"{path} differs between ranks 0 and {source}; put it on a file system that all ranks share"
    )


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
