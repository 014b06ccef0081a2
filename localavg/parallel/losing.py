"""Find out whether the ranks of this MPI go on when one dies: start some, and kill one."""

from __future__ import annotations

import json
import os
import signal
import sys
from shutil import which

from localavg.parallel.child import answer, ended, run_child
from localavg.parallel.outside import outside

RANKS, LIMIT_S = 3, 30.0


def tried() -> tuple[bool | None, str]:
    """Return whether the ranks that live went on, and how it was found; None: not tried.

    It starts an mpirun, so call it before MPI starts.
    """
    from localavg.parallel import survive

    if not survive.able():
        return False, f"that needs Open MPI 5 or later, and MPI is {survive.library()}"
    if (mpirun := which("mpirun")) is None:
        return None, "not tried: no mpirun on PATH"
    program = [sys.executable, "-m", "mpi4py", "-m", __name__]
    command = [mpirun, "--with-ft", "ulfm", "-n", str(RANKS), *program]
    try:
        status, out, err = run_child(command, outside(os.environ), LIMIT_S)
    except OSError as e:
        return None, f"not tried: {e}"
    found = answer(out)
    if found is None:  # its ranks never met
        return None, f"not tried: {ended(status, err, LIMIT_S)}"
    if status == 0 and found.get("left") == RANKS - 1:
        return True, f"one of {RANKS} ranks of a trial was killed, and the others went on"
    return False, ended(status, err, LIMIT_S)


def lose_one() -> None:
    """Kill rank 1, and go on without it. Runs in a child, see `tried`."""
    signal.alarm(int(LIMIT_S))
    from mpi4py import MPI

    from localavg.parallel import survive

    world = MPI.COMM_WORLD
    world.Barrier()
    if world.rank == 0:
        print(json.dumps({"ranks": world.size}), flush=True)
    if world.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        world.Barrier()
    except MPI.Exception as error:
        if not survive.is_loss(world, error):
            raise
        survive.revoke([world])
    if survive.agreed(world, False):
        sys.exit("error: nobody was lost")
    survive.survivors.append(survive.shrunk(world))
    left = sum(survive.survivors[-1].allgather(1))
    if survive.survivors[-1].rank == 0:
        print(json.dumps({"left": left}), flush=True)
    survive.leave(0)


if __name__ == "__main__":
    lose_one()
