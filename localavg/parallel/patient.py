"""A communicator for a thread in the background: who waits sleeps, and leaves its core to the rest.

MPI libraries wait by asking again and again, which takes a whole core from the learners.
"""

from __future__ import annotations

from collections.abc import Callable
from time import sleep
from typing import Any

from mpi4py import MPI

FIRST_S, LONGEST_S = 2e-5, 5e-4  # of a sleep, which doubles while nothing arrives


def wait(done: Callable[[], bool]) -> None:
    """Wait until `done()`, asleep most of the time."""
    pause_s = FIRST_S
    while not done():
        sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_S)


class PatientRequest(MPI.Request):
    """A request whose Wait sleeps."""

    def Wait(self, status: MPI.Status | None = None) -> Any:
        wait(self.Test)
        return True


class Patient(MPI.Intracomm):
    """An intracommunicator whose collectives for means sleep while they wait."""

    def Barrier(self) -> None:
        wait(super().Ibarrier().Test)

    def Allreduce(self, sendbuf: Any, recvbuf: Any, op: MPI.Op = MPI.SUM) -> None:
        wait(super().Iallreduce(sendbuf, recvbuf, op).Test)

    def Iallreduce(self, sendbuf: Any, recvbuf: Any, op: MPI.Op = MPI.SUM) -> MPI.Request:
        return PatientRequest(super().Iallreduce(sendbuf, recvbuf, op))

    def Ialltoallv(self, sendbuf: Any, recvbuf: Any) -> MPI.Request:
        return PatientRequest(super().Ialltoallv(sendbuf, recvbuf))

    def Iallgatherv(self, sendbuf: Any, recvbuf: Any) -> MPI.Request:
        return PatientRequest(super().Iallgatherv(sendbuf, recvbuf))
