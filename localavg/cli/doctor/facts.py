"""What `localavg doctor` knows of the ranks, hosts and MPI. Standard library only.

A fact that cannot be found is None.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from localavg.parallel.probe import Gpus, Probe

PART = 0.05  # of the time, which averages of ResNet-50 may take
STEP_S = 0.2  # of an update of ResNet-50: 64 images at 320 a second


@dataclass(frozen=True)
class Rank:
    """One rank and what it may use."""

    host: str
    machine: int  # its host, as the number of the first rank there
    node: int  # a host, or the part of it that --ranks-per-node makes
    cpus: tuple[int, ...] | None  # hardware threads it may run on
    cores: int | None  # physical cores of these
    host_cpus: int  # hardware threads of the host
    threads: int  # that it will use
    omp: str | None  # OMP_NUM_THREADS
    shm_free_bytes: float | None  # None: alone on its node, it needs none
    shm_need_bytes: int  # for all ranks of its node
    gpus: Gpus  # that it sees
    gpus_why: str  # why it sees none
    gpu: str | None  # identity of the GPU it would take
    mps: bool  # whether CUDA's Multi-Process Service runs on the host
    alloc_conf: str  # settings of torch's CUDA allocator


@dataclass(frozen=True)
class Facts:
    """All that `localavg doctor` knows."""

    mpi: str
    mpi4py: str
    thread_level: str
    ranks: tuple[Rank, ...]
    nodes: int
    learners: int
    probe: Probe
    cuda_flag: bool | None  # MPIX_Query_cuda_support(); None: the library has no such function
    memory_bytes_per_s: float  # read and written, of the slowest node, while all ranks copy
    link_bytes_per_s: float | None  # each way, between the first two nodes; None: there is one node
    latency_s: float | None  # of an empty message between them
    transport: str
    transport_why: str
    allreduce_wrong: int  # wrong numbers in MPI's sum, over all ranks
    mean_wrong: int  # wrong numbers in the transport's mean, over all ranks
    # parts of an average that a delay hides, behind updates of a GPU (sleeping) and of a CPU
    # (computing); None: averages cannot be delayed here, or there is one rank
    hidden: dict[str, float] | None = None
    hidden_why: str = "not tried"  # why they are not known
    survives: bool | None = None  # whether ranks go on when one dies; None: not tried
    survives_why: str = "not tried"  # how that was found
    average_s: float | None = None  # of an average of ResNet-50; None: one rank
    step_s: float = STEP_S  # of an update of ResNet-50, which the period follows from
    launcher: tuple[str, ...] = ("mpirun",)  # words by which ranks are started here
    program: str = "localavg"  # the command, as a shell here finds it
    srun_nodes: int | None = None  # nodes that srun gave these ranks; None: srun did not start them

    @property
    def period(self) -> int | None:
        """The smallest K whose averages of ResNet-50 take at most PART of the time, or None.

        K updates and an average take K step_s + average_s, without waiting for slower ranks.
        """
        if self.average_s is None:
            return None
        return max(1, ceil(self.average_s * (1 - PART) / (PART * self.step_s)))

    def machines(self) -> list[list[Rank]]:
        """Return the ranks of each host."""
        numbers = sorted({r.machine for r in self.ranks})
        return [[r for r in self.ranks if r.machine == number] for number in numbers]
