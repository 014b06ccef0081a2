"""Runs under MPI for `mpi.py`: `python -m mpi4py drive.py FOLDER REQUEST REPLY` calls one function
on every rank.

FOLDER has the module of the function; REQUEST holds (module, function, arguments), pickled. The
function gets the world communicator before its arguments. Rank 0 writes what it returned on all of
them to REPLY.
"""

import contextlib
import importlib
import io
import pickle
import sys
from functools import cache
from pathlib import Path

from localavg.__main__ import parser
from localavg.cli import in_flags
from localavg.errors import UserError
from localavg.files import provenance

parser = cache(parser)  # which takes as long to make as a short run to train


def command_lines(world, lines):
    """Run command lines of localavg one after the other in these processes; returns their exit
    statuses.
    """
    statuses = []
    for words in lines:
        try:
            args = parser().parse_args(words)
            statuses.append(args.call(args))
        except UserError as e:  # on all ranks alike
            statuses.append(2)
            if world.rank == 0:
                print(
                    f"localavg {' '.join(words)}: {in_flags(str(e))}", file=sys.stderr, flush=True
                )
    return statuses


def told_of(world, lines):
    """Run command lines likewise; returns the exit status of each with what this rank says on
    stderr.
    """
    ends = []
    for words in lines:
        with contextlib.redirect_stderr(io.StringIO()) as said:
            (status,) = command_lines(world, [words])
        ends.append((status, said.getvalue()))
    return ends


def main(folder, request, reply):
    """Do what REQUEST says."""
    from mpi4py import MPI  # here, because it starts MPI

    # git and the packages' versions are asked once a process, not once a run
    provenance._git, provenance._version = cache(provenance._git), cache(provenance._version)
    sys.path.append(folder)
    module, function, args = pickle.loads(Path(request).read_bytes())
    world = MPI.COMM_WORLD
    answers = world.gather(getattr(importlib.import_module(module), function)(world, *args))
    if world.rank == 0:
        Path(reply).write_bytes(pickle.dumps(answers))


if __name__ == "__main__":
    main(*sys.argv[1:])
