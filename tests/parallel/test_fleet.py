"""The ranks and their machine: launchers that disagree with MPI, threads a rank, artificial nodes,
shared errors.
"""

import os
from types import SimpleNamespace
from unittest import mock

import pytest
from mpi import call, run

from localavg.errors import UserError
from localavg.parallel.fleet import _reserved, _shared_file

# --------------------------------------------------------------------------------------- what needs

SIZES = [  # (environment, ranks that MPI sees, words of the error or None)
    ({}, 1, None),
    ({}, 64, None),
    *[
        ({name: "4"}, 4, None)
        for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "JSM_NAMESPACE_SIZE", "SLURM_NTASKS")
    ],
    (
        {"OMPI_COMM_WORLD_SIZE": "4"},
        1,
        ["Open MPI's mpirun started 4 ranks (OMPI_COMM_WORLD_SIZE)", "MPI sees 1"],
    ),
    ({"PMI_SIZE": "4"}, 1, ["started 4 ranks (PMI_SIZE)", "MPI sees 1"]),
    ({"JSM_NAMESPACE_SIZE": "6"}, 1, ["jsrun started 6 ranks (JSM_NAMESPACE_SIZE)", "MPI sees 1"]),
    (
        {"SLURM_STEP_NUM_TASKS": "2"},
        1,
        ["srun started 2 ranks (SLURM_STEP_NUM_TASKS)", "MPI sees 1"],
    ),
    (
        {"SLURM_NTASKS": "8"},
        1,
        ["Slurm started 8 ranks (SLURM_NTASKS)", "MPI sees 1", "unset SLURM_NTASKS"],
    ),
    ({"SLURM_NTASKS": "2"}, 4, ["Slurm started 2 ranks", "MPI sees 4"]),
    # the innermost launcher counts
    ({"OMPI_COMM_WORLD_SIZE": "2", "SLURM_NTASKS": "16"}, 2, None),
    ({"PMI_SIZE": "2", "SLURM_NTASKS": "16"}, 2, None),
    ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "16"}, 4, None),
    (
        {"OMPI_COMM_WORLD_SIZE": "2", "SLURM_NTASKS": "16"},
        16,
        ["(OMPI_COMM_WORLD_SIZE)", "MPI sees 16"],
    ),
    # what is no number says nothing
    ({"SLURM_NTASKS": ""}, 3, None),
    ({"PMI_SIZE": "many", "SLURM_NTASKS": "3"}, 3, None),
    ({"HOME": "/", "SLURM_JOB_NUM_NODES": "9"}, 3, None),
]

HALF = frozenset(range(4))
# (OMP_NUM_THREADS or None, my cores, those of the ranks here, cores of the machine or None,
# threads)
THREADS = [
    ("5", range(16), [range(16)] * 8, 16, 5),
    ("1", HALF, [HALF], 16, 1),
    (None, range(16), [range(16)], 16, 1),  # bound to nothing: nothing was said
    (None, range(16), [range(16)] * 4, 16, 1),
    (None, HALF, [HALF], 16, 4),  # bound to four cores, alone there
    (None, HALF, [HALF, range(4, 8), range(8, 12)], 16, 4),
    (None, HALF, [HALF, HALF], 16, 2),  # shared fairly
    (None, HALF, [HALF, HALF, HALF], 16, 1),
    (None, HALF, [HALF, range(3, 7)], 16, 2),
    (None, [3], [[3], [3]], 16, 1),  # never none
    (None, [0], [[0]], None, 1),
    ("", HALF, [HALF], 16, 4),  # no number of threads
    ("0", HALF, [HALF], 16, 4),
    ("-2", HALF, [HALF], 16, 4),
    ("all", HALF, [HALF], 16, 4),
]


def on_one_rank(world):
    """What the two tables give: an error or None, and numbers of threads."""
    from localavg.errors import UserError
    from localavg.parallel.fleet import check_world_size, threads_per_rank

    errors = []
    for environ, size, _ in SIZES:
        try:
            errors.append(check_world_size(size, environ))
        except UserError as e:
            errors.append(str(e))
    threads = []
    for told, mine, everyone, cores, _ in THREADS:
        environ = {} if told is None else {"OMP_NUM_THREADS": told}
        machine = SimpleNamespace(
            allgather=lambda _, everyone=everyone: [frozenset(cores) for cores in everyone]
        )
        with (
            mock.patch.dict(os.environ, environ),
            mock.patch("os.cpu_count", lambda cores=cores: cores),
            mock.patch("os.sched_getaffinity", lambda _, mine=mine: set(mine), create=True),
        ):
            if told is None:
                os.environ.pop("OMP_NUM_THREADS", None)
            threads.append(threads_per_rank(machine))
    return errors, threads


@pytest.fixture(scope="module")
def one_rank():
    return call(1, on_one_rank)[0]


@pytest.mark.parametrize(
    "case", range(len(SIZES)), ids=[f"{environ} {size}" for environ, size, _ in SIZES]
)
def test_a_launcher_that_disagrees_with_mpi_is_told(one_rank, case):
    error, words = one_rank[0][case], SIZES[case][2]
    if words is None:
        assert error is None
    else:
        assert [word for word in words if word not in (error or "")] == [], error
        assert "mpirun" in error and "\n" not in error  # a remedy


@pytest.mark.parametrize("case", range(len(THREADS)))
def test_threads_of_a_rank(one_rank, case):
    assert one_rank[1][case] == THREADS[case][-1]


# --------------------------------------------------------------------------------------- what needs

NODES = {  # ranks a node: node of each rank, its place there, ranks on its node
    None: ([0, 0, 0, 0], [0, 1, 2, 3], [4, 4, 4, 4]),
    1: ([0, 1, 2, 3], [0, 0, 0, 0], [1, 1, 1, 1]),
    2: ([0, 0, 1, 1], [0, 1, 0, 1], [2, 2, 2, 2]),
    3: ([0, 0, 0, 1], [0, 1, 2, 0], [3, 3, 3, 1]),
    4: ([0, 0, 0, 0], [0, 1, 2, 3], [4, 4, 4, 4]),
    9: ([0, 0, 0, 0], [0, 1, 2, 3], [4, 4, 4, 4]),
}


def on_four_ranks(world):
    """What fleets of this world look like from here."""
    from threadpoolctl import threadpool_info

    from localavg.errors import UserError
    from localavg.parallel.fleet import Fleet

    seen = {"nodes": {}}
    seen["sharing"] = {n: Fleet(world, 12, n).sharing for n in (None, 1, 2, 3)}
    for n in NODES:
        fleet = Fleet(world, ranks_per_node=n)
        seen["nodes"][n] = fleet.node_of, fleet.nodes, fleet.node.rank, fleet.node.size
    seen["default"] = fleet.P, fleet.L, fleet.rank, fleet.ranks, list(fleet.learners)
    for P in (5, 7):
        fleet = Fleet(world, P)
        seen[P] = fleet.P, fleet.L, fleet.rank, fleet.ranks, list(fleet.learners)
    fleet = Fleet(world, 12)
    seen["twelve"] = fleet.P, fleet.L, fleet.rank, fleet.ranks, list(fleet.learners)
    seen["hosts"] = fleet.hosts
    seen["threads"] = fleet.threads, {pool["num_threads"] for pool in threadpool_info()}

    def together(work):
        try:
            return fleet.together(work)
        except UserError as e:
            return str(e)

    def raising(by_rank):
        if world.rank in by_rank:
            raise by_rank[world.rank]
        return world.rank

    seen["value"] = together(lambda: raising({}))
    seen["one fails"] = together(lambda: raising({2: UserError("mine is bad")}))
    seen["two fail"] = together(
        lambda: raising({3: UserError("late"), 1: OSError(28, "No space left on device")})
    )
    seen["no memory"] = together(lambda: raising({3: MemoryError()}))

    half = world.Split(world.rank % 2, key=world.rank)
    try:
        fleet = Fleet(half, 4)
        seen["half"] = fleet.P, fleet.L, fleet.rank, fleet.ranks, list(fleet.learners)
    except UserError as e:
        seen["half"] = str(e)
    return seen


@pytest.fixture(scope="module")
def four_ranks():
    return call(4, on_four_ranks, env={"OMP_NUM_THREADS": "2"})


@pytest.mark.parametrize("n", NODES)
def test_artificial_nodes(four_ranks, n):
    node_of, place, ranks = NODES[n]
    for r, seen in enumerate(four_ranks):
        assert seen["nodes"][n] == (tuple(node_of), max(node_of) + 1, place[r], ranks[r])


def test_the_learners_of_all_artificial_nodes_share_the_memory_of_one_machine(four_ranks):
    """A rank alone on its node shares nothing: with three ranks a node that is the fourth."""
    assert all(seen["sharing"] == {None: 12, 1: 0, 2: 12, 3: 9} for seen in four_ranks)


def test_shared_memory_is_reserved_and_not_promised():
    path = _reserved(3_000_000, "/dev/shm")
    try:
        assert os.stat(path).st_blocks * 512 >= 3_000_000
    finally:
        os.unlink(path)


def test_where_shared_memory_has_no_room_a_file_is_shared(monkeypatch, tmp_path, capsys):
    """Whoever takes the room after it was looked at: the reservation decides."""
    really = os.posix_fallocate

    def full(handle, start, nbytes):
        if os.readlink(f"/proc/self/fd/{handle}").startswith("/dev/shm"):
            raise OSError(28, "No space left on device")
        really(handle, start, nbytes)

    before = set(os.listdir("/dev/shm"))
    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    path = _shared_file(4096, "the data", "use one rank a node")
    assert os.path.dirname(path) == str(tmp_path) and os.path.getsize(path) == 4096
    assert "do not fit in /dev/shm" in capsys.readouterr().err
    assert set(os.listdir("/dev/shm")) - before == set()


def test_where_nothing_has_room_the_error_names_what_it_is_for(monkeypatch, tmp_path):
    def full(handle, start, nbytes):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    with pytest.raises(UserError, match=r"kB a node for the copies: neither .* or leave it out"):
        _shared_file(4096, "the copies", "leave it out")
    assert not [*tmp_path.iterdir()]


def test_learners_lie_over_the_ranks_in_order(four_ranks):
    assert [seen["default"] for seen in four_ranks] == [(4, 1, r, 4, [r]) for r in range(4)]
    assert [seen["twelve"] for seen in four_ranks] == [
        (12, 3, r, 4, [3 * r, 3 * r + 1, 3 * r + 2]) for r in range(4)
    ]
    for P, held in ((5, [[0], [1], [2], [3, 4]]), (7, [[0], [1, 2], [3, 4], [5, 6]])):
        assert [seen[P] for seen in four_ranks] == [
            (P, len(held[r]), r, 4, held[r]) for r in range(4)
        ]
    assert all(seen["hosts"] == [seen["hosts"][0]] * 4 for seen in four_ranks)


def test_the_number_of_threads_takes_hold(four_ranks):
    """OMP_NUM_THREADS = 2 was said, and NumPy's linear algebra obeys."""
    assert [seen["threads"][0] for seen in four_ranks] == [2, 2, 2, 2]
    assert all(seen["threads"][1] <= {1, 2} for seen in four_ranks)


def test_an_error_on_one_rank_is_everyones(four_ranks):
    assert [seen["value"] for seen in four_ranks] == [0, 1, 2, 3]
    assert [seen["one fails"] for seen in four_ranks] == ["mine is bad"] * 4
    assert len({seen["two fail"] for seen in four_ranks}) == 1
    assert (
        "rank 1" in four_ranks[0]["two fail"]
        and "No space left on device" in four_ranks[0]["two fail"]
    )
    assert [seen["no memory"] for seen in four_ranks] == ["rank 3: MemoryError"] * 4


def test_the_world_of_a_fleet_is_any_communicator(four_ranks):
    """Two fleets side by side, one on the even ranks and one on the odd."""
    assert [seen["half"] for seen in four_ranks] == [
        (4, 2, r // 2, 2, [r // 2 * 2, r // 2 * 2 + 1]) for r in range(4)
    ]


# --------------------------------------------------------------------------------------------------

THREAD = """\
import threading

from mpi4py import MPI

from localavg.parallel.abort import abort_on_exception


def work():
    raise RuntimeError("made to fail")


world = MPI.COMM_WORLD
abort_on_exception(world)
if world.rank == 1:
    threading.Thread(target=work).start()
world.recv(source=1 - world.rank)
"""


def test_an_exception_in_a_thread_ends_the_job(tmp_path):
    """While both ranks wait for a message that nobody sends."""
    (tmp_path / "driver.py").write_text(THREAD)
    done = run(2, tmp_path / "driver.py")
    assert done.returncode != 0
    assert "rank 1 failed" in done.stderr and "RuntimeError: made to fail" in done.stderr
