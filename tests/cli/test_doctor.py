"""`localavg doctor`: each piece of advice from its facts, the probe of device memory with children
that fail, and launches.
"""

import json
import os
import re
import sys
import time
from dataclasses import replace
from pathlib import Path

import nvml
import pytest
from mpi import ROOT, alone, run

from localavg.cli.doctor.advice import ADVICE, wrong_numbers
from localavg.cli.doctor.command import _rows
from localavg.cli.doctor.facts import Facts, Rank
from localavg.cli.doctor.line import launch_line, launcher
from localavg.parallel import losing, probe, survive
from localavg.parallel.probe import Probe, cached, tried

GPU = (("Fake GPU", "GPU-0"), ("Fake GPU", "GPU-1"))
RANK = Rank(
    host="n0",
    machine=0,
    node=0,
    cpus=(0, 1),
    cores=2,
    host_cpus=4,
    threads=2,
    omp=None,
    shm_free_bytes=9e9,
    shm_need_bytes=4_000_000_000,
    gpus=(),
    gpus_why="no driver",
    gpu=None,
    mps=False,
    alloc_conf="",
)
OTHER = replace(RANK, cpus=(2, 3))
NO, YES, UNTRIED = (
    Probe(False, "17 numbers were wrong"),
    Probe(True, "right"),
    Probe(None, "not tried"),
)
WELL = Facts(
    mpi="Open MPI v9",
    mpi4py="4",
    thread_level="multiple",
    ranks=(RANK, OTHER),
    nodes=1,
    learners=2,
    probe=UNTRIED,
    cuda_flag=False,
    memory_bytes_per_s=1e10,
    link_bytes_per_s=None,
    latency_s=None,
    transport="shared",
    transport_why="ranks of a node share its memory",
    allreduce_wrong=0,
    mean_wrong=0,
)


def on(*ranks, **facts):
    return replace(WELL, ranks=ranks, **facts)


def each(**facts):
    return replace(RANK, **facts), replace(OTHER, **facts)


def bound(*cpus, **facts):
    """Ranks of one machine bound so."""
    return [replace(RANK, cpus=c, cores=len(c), **facts) for c in cpus]


def elsewhere(ranks):
    return [replace(r, host="n1", machine=2, node=1) for r in ranks]


CASES = {  # name: (facts, the check that fires or None, words of it, words of its remedy)
    "all is well": (WELL, None, [], []),
    "srun's one node, seen as two": (
        replace(on(RANK, replace(OTHER, machine=RANK.machine + 1)), srun_nodes=1),
        "strangers",
        ["on 1 node, and MPI sees 2"],
        ["srun --mpi", "mpirun"],
    ),
    "two nodes of srun": (
        replace(on(RANK, replace(OTHER, machine=RANK.machine + 1)), srun_nodes=2),
        None,
        [],
        [],
    ),
    # ranks bound to one core
    "one core, two idle": (
        on(*bound((0,), (1,))),
        "one_core",
        ["n0", "one core", "2 of 4 are idle"],
        ["--map-by slot:PE=", "--cpus-per-task", "OMP_NUM_THREADS=1"],
    ),
    "one core of two hardware threads": (
        on(replace(RANK, cores=1)),
        "one_core",
        ["2 of 4"],
        ["PE="],
    ),
    "one core, physical cores unknown": (
        on(*bound((0,), (1,))[:1]),
        "one_core",
        ["3 of 4"],
        ["PE="],
    ),
    "one core, on the second machine": (
        on(RANK, OTHER, *elsewhere(bound((0,), (1,)))),
        "one_core",
        ["n1"],
        ["PE="],
    ),
    "one core, one thread asked for": (on(*bound((0,), (1,), omp="1")), None, [], []),
    "one core, none idle": (on(*bound((0,), (1,), (2,), (3,))), None, [], []),
    "one core is all there is": (on(*bound((0,), host_cpus=1)), None, [], []),
    "affinities unknown": (on(*each(cpus=None, cores=None)), None, [], []),
    # more ranks than cores
    "three ranks on two cores": (
        on(RANK, RANK, RANK),
        "oversubscribed",
        ["3 ranks", "2 cores", "n0"],
        ["at most 2", "--learners", "--bind-to none"],
    ),
    "both on one core": (
        on(*bound((0,), (0,), omp="1")),
        "oversubscribed",
        ["2 ranks", "1 core on"],
        ["at most 1"],
    ),
    "five ranks, affinities unknown": (
        on(*[replace(RANK, cpus=None, cores=None)] * 5),
        "oversubscribed",
        ["4 cores"],
        [],
    ),
    "as many ranks as cores": (on(RANK, RANK), None, [], []),
    "as many on two machines": (on(RANK, RANK, *elsewhere([RANK, RANK])), None, [], []),
    # threads
    "three threads on two cores": (
        on(*each(omp="3")),
        "threads_above_cores",
        ["OMP_NUM_THREADS=3", "2 cores"],
        ["OMP_NUM_THREADS=2", "3 cores"],
    ),
    "two threads on shared cores": (
        on(RANK, replace(RANK, omp="2")),
        "threads_above_cores",
        ["1 core to"],
        ["OMP_NUM_THREADS=1"],
    ),
    "four threads each, affinities unknown": (
        on(*each(cpus=None, omp="4")),
        "threads_above_cores",
        ["2 cores"],
        ["OMP_NUM_THREADS=2"],
    ),
    "two threads on two cores": (on(*each(omp="2")), None, [], []),
    "no number of threads": (on(*each(omp="many")), None, [], []),
    # shared memory
    "little room": (
        on(*each(shm_free_bytes=3.9e9)),
        "little_shared_memory",
        ["/dev/shm", "3.90 GB free", "4.00 GB"],
        ["remount,size=", "--shm-size"],
    ),
    "little room on one node": (
        on(RANK, *elsewhere(each(shm_free_bytes=0.0))),
        "little_shared_memory",
        ["n1"],
        ["remount"],
    ),
    "just enough room": (on(*each(shm_free_bytes=4e9)), None, [], []),
    "no shared memory needed": (on(*each(shm_free_bytes=None)), None, [], []),
    "MPI was asked for": (
        on(*each(shm_free_bytes=0.0), transport="mpi", transport_why="asked for"),
        None,
        [],
        [],
    ),
    # GPUs
    "expandable segments": (
        on(*each(gpus=GPU, alloc_conf="max_split_size_mb:9, expandable_segments: True")),
        "expandable_segments",
        ["PYTORCH_CUDA_ALLOC_CONF", "CUDA IPC"],
        ["leave expandable_segments out"],
    ),
    "expandable segments off": (
        on(*each(gpus=GPU, alloc_conf="expandable_segments:False")),
        None,
        [],
        [],
    ),
    "expandable segments without GPU": (
        on(*each(alloc_conf="expandable_segments:True")),
        None,
        [],
        [],
    ),
    "one GPU for two": (
        on(*each(gpus=GPU[:1], gpu="GPU-0")),
        "shared_gpu",
        ["2 ranks", "one GPU of n0", "without MPS"],
        ["--learners", "nvidia-cuda-mps-control"],
    ),
    "one GPU for two with MPS": (on(*each(gpus=GPU[:1], gpu="GPU-0", mps=True)), None, [], []),
    "a GPU each": (
        on(replace(RANK, gpus=GPU, gpu="GPU-0"), replace(OTHER, gpus=GPU, gpu="GPU-1")),
        None,
        [],
        [],
    ),
    "GPUs of one name on two machines": (
        on(*(ranks := [replace(RANK, gpus=GPU, gpu="0")]), *elsewhere(ranks)),
        None,
        [],
        [],
    ),
    "the flag lies": (
        replace(WELL, cuda_flag=True, probe=NO),
        "cuda_flag_lies",
        ["Open MPI v9", "17 numbers were wrong"],
        ["CUDA-aware build", "--fresh"],
    ),
    "the flag is right": (replace(WELL, cuda_flag=True, probe=YES), None, [], []),
    "the flag could not be tried": (replace(WELL, cuda_flag=True, probe=UNTRIED), None, [], []),
    "no flag, no support": (replace(WELL, probe=NO), None, [], []),
    "no such flag": (replace(WELL, cuda_flag=None, probe=NO), None, [], []),
}


@pytest.mark.parametrize("name", CASES)
def test_advice_follows_from_the_facts(name):
    facts, check, words, remedies = CASES[name]
    told = {f.__name__: advice for f in ADVICE if (advice := f(facts))}
    assert list(told) == ([check] if check else [])
    for advice in told.get(check, []):
        assert [word for word in words if word not in advice.what] == [], advice.what
        assert [word for word in remedies if word not in advice.remedy] == [], advice.remedy
        assert advice.remedy and "\n" not in advice.what + advice.remedy
    assert all(len(advice) == 1 for advice in told.values()) and wrong_numbers(facts) == []


def test_each_piece_of_advice_is_tested():
    assert {f.__name__ for f in ADVICE} == {check for _, check, *_ in CASES.values()} - {None}


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"hidden_why": "one rank"}, "unknown: one rank"),
        ({"hidden": {"sleeping": 0.96, "computing": 0.4}}, "yes: a delay hides 96% of one behind"),
        ({"hidden": {"sleeping": 0.3, "computing": 0.2}}, "hardly: .* leave --delay out"),
    ],
)
def test_the_table_says_whether_averages_overlap(facts, words):
    text = dict(_rows(replace(WELL, **facts)))["averages overlap"]
    assert re.match(words, text.replace("\n", " "))
    assert ("--delay" in text) == ("hidden" in facts)


@pytest.mark.parametrize(
    ("status", "out", "words"),
    [
        (0, '{"ranks": 3}\n{"left": 2}\n', "the others can go on: one of 3 ranks .*--on-failure"),
        (0, '{"ranks": 3}\n{"left": 3}\n', "the others cannot go on: the child ended"),
        (137, '{"ranks": 3}\n', "the others cannot go on: the child ended with status 137"),
        (None, '{"ranks": 3}\n', "the others cannot go on: no answer within"),
        (1, "", "unknown: not tried: the child ended with status 1"),
    ],
)
def test_the_table_says_whether_a_job_outlives_a_rank(status, out, words, monkeypatch):
    monkeypatch.setattr(losing, "which", lambda name: name)
    monkeypatch.setattr(losing, "run_child", lambda *_: (status, out, ""))
    survives, why = losing.tried()
    text = dict(_rows(replace(WELL, survives=survives, survives_why=why)))["a rank that dies"]
    assert re.match(words, text.replace("\n", " ")), text


def test_the_launch_line_asks_for_the_nodes_that_srun_gave():
    """srun gives one node, and each of the two ranks believes to be on a machine of its own."""
    apart = facts_of(ranks=(RANK, replace(OTHER, machine=RANK.machine + 1)), srun_nodes=1)
    assert "--nodes=1 --ntasks=2" in launch_line(replace(apart, launcher=("srun",)))


def test_an_mpi_that_cannot_be_loaded_is_one_line():
    """As in a shell where the module is missing that mpi4py was built with."""
    done = alone("doctor", MPI4PY_LIBMPI="/nowhere/libmpi.so")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("localavg: MPI cannot be loaded (") and done.stdout == ""


@pytest.mark.parametrize("library", ["Open MPI v4.1.4, package: Debian\0", "MPICH Version: 4.2.3"])
def test_an_mpi_without_ulfm_is_not_tried(library, monkeypatch):
    monkeypatch.setattr(survive.MPI, "Get_library_version", lambda: library)
    survives, why = losing.tried()
    text = dict(_rows(replace(WELL, survives=survives, survives_why=why)))["a rank that dies"]
    assert text.startswith("the others cannot go on: that needs Open MPI 5 or later, and MPI is ")


def test_the_period_keeps_averages_under_five_hundredths_of_the_time():
    """K updates of 0.2 s and an average of 0.1 s: 9.5 updates are 1.9 s, of 2 s in all."""
    assert facts_of(average_s=0.1).period == 10
    assert facts_of(average_s=0.1, step_s=0.05).period == 38
    assert facts_of(average_s=1e-9).period == 1 and facts_of(average_s=None).period is None


def facts_of(**more):
    return replace(WELL, **more)


TWO = (*[replace(r, gpus=GPU) for r in (RANK, OTHER)], *elsewhere([RANK, OTHER]))


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        (
            {"launcher": ("jobs/local/mpirun",)},
            "jobs/local/mpirun -n 2 localavg train kavg --K 16 ",
        ),
        (
            {"launcher": ("srun", "--mpi=pmix"), "ranks": TWO, "average_s": 0.1},
            "srun --mpi=pmix --nodes=2 --ntasks=4 --cpus-per-task=2 --gpus-per-node=2 "
            "--cpu-bind=cores --kill-on-bad-exit=1 localavg train kavg --K 10 ",
        ),
        (
            {"launcher": ("jsrun",), "ranks": TWO},
            "jsrun --np 4 --rs_per_host 1 --tasks_per_rs 2 --cpu_per_rs 4 --gpu_per_rs 2 "
            "--bind packed:2 localavg train ",
        ),
        ({"ranks": TWO}, "mpirun -n 4 --map-by ppr:2:node:PE=2 localavg train "),
        ({"ranks": TWO, "mpi": "MPICH 4"}, "mpirun -n 4 localavg train "),
        # alone: a rank a core, or a GPU, where there are several
        ({"ranks": (replace(RANK, cores=2),)}, "mpirun -n 2 localavg train "),
        ({"ranks": (replace(RANK, gpus=GPU, cores=64),)}, "mpirun -n 2 localavg train "),
        ({"ranks": (replace(RANK, cores=1),)}, "localavg train "),
        ({"ranks": (RANK,), "launcher": ()}, "localavg train "),
    ],
)
def test_the_launch_line_is_for_these_ranks(facts, line):
    assert launch_line(facts_of(**facts)).startswith(line)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("JSM_NAMESPACE_RANK=0", ("jsrun",)),
        ("SLURM_JOB_ID=1 SLURM_STEP_ID=0 PMIX_RANK=0", ("srun", "--mpi=pmix")),
        ("SLURM_JOB_ID=1 SLURM_STEP_ID=0 PMI_RANK=0", ("srun", "--mpi=pmi2")),
        ("SLURM_JOB_ID=1 SLURM_STEP_ID=0 PMIX_RANK=0 OMPI_COMM_WORLD_RANK=0", ("mpirun",)),
        ("SLURM_JOB_ID=1 SLURM_STEP_ID=0 PMI_RANK=0 MPI_LOCALRANKID=0", ("mpirun",)),
        ("LSB_JOBID=1", ("mpirun",)),
        ("PMI_RANK=0", ("mpirun",)),
        ("PMI_RANK=0 MPI=mpich", ("MPI=mpich", "jobs/local/mpirun")),
        ("OMPI_COMM_WORLD_RANK=0", ("jobs/local/mpirun",)),
        ("", ("jobs/local/mpirun",)),
    ],
)
def test_the_launcher_is_known_by_its_environment(given, words, monkeypatch):
    for name in list(os.environ):
        if name == "MPI" or name.startswith(("OMPI_", "PMI", "SLURM_", "JSM_", "LSB_", "MPI_")):
            monkeypatch.delenv(name)
    for word in given.split():
        monkeypatch.setenv(*word.split("=", 1))
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.chdir(ROOT)
    assert launcher() == words


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"allreduce_wrong": 5}, ["Allreduce: wrong numbers: 5", "--mpi-library"]),
        ({"mean_wrong": 7}, ["transport shared: wrong numbers: 7", "--transport mpi"]),
        (
            {"mean_wrong": 7, "transport": "mpi"},
            ["transport mpi: wrong numbers: 7", "--transport shared"],
        ),
    ],
)
def test_wrong_numbers_are_failures(facts, words):
    (advice,) = wrong_numbers(replace(WELL, **facts))
    assert [word for word in words if word not in f"{advice.what}; {advice.remedy}"] == []


def test_both_failures_are_told():
    assert len(wrong_numbers(replace(WELL, allreduce_wrong=1, mean_wrong=1))) == 2


# ----------------------------------------------------------------------------------------- the prob


def answer(**parts):
    return f"print('{json.dumps({'ranks': 2, 'wrong': 0, 'numbers': 10, **parts})}')"


CHILDREN = {  # name: (script, works, words of why)
    "right": (f"print('chatter'); {answer()}", True, "every number right"),
    "wrong": (answer(wrong=3), False, "3 of 10 numbers were wrong"),
    "error": (
        "raise RuntimeError('CUDA-aware support is disabled')",
        False,
        "status 1: RuntimeError: CUDA-aware",
    ),
    "crash": (
        "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
        False,
        "status -11: it printed nothing",
    ),
    "crash after the answer": (
        f"import os; {answer()}; sys.stdout.flush(); os._exit(7)",
        False,
        "status 7",
    ),
    "silence": ("pass", False, "status 0: it printed nothing"),
    "no answer but words": ("print('{oops')", False, "status 0"),
    "each rank alone": (answer(ranks=1), None, "not of the MPI that mpi4py loads"),
}


@pytest.mark.parametrize("name", CHILDREN)
def test_what_the_child_does_is_a_result(name):
    script, works, why = CHILDREN[name]
    found = tried([sys.executable, "-c", f"import sys; {script}"], 30)
    assert found.works is works and why in found.why and not found.cached


MET = {"ranks": 4, "nodes": 2}
BETWEEN = {  # name: (script, works, words of why)
    "right": (answer(**MET), True, "on two nodes, every number right"),
    "wrong": (answer(**MET, wrong=3), False, "3 of 10"),
    "crash after the ranks met": (f"print('{json.dumps(MET)}'); sys.exit(7)", False, "status 7"),
    "never met": ("raise SystemExit('no slots: error')", None, "no slots"),
    "all on one": (answer(ranks=4, nodes=1), None, "all ranks are on 1"),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_ranks_that_never_met_on_two_nodes_say_nothing_of_the_path_between(name):
    script, works, why = BETWEEN[name]
    found = tried([sys.executable, "-c", f"import sys; {script}"], 30, nodes=2)
    assert found.works is works and why in found.why
    assert found.nodes == (1 if works is None else 2)


@pytest.mark.parametrize(
    ("between", "works", "nodes"), [(True, True, 2), (False, False, 2), (None, True, 1)]
)
def test_where_two_nodes_cannot_be_tried_one_is(between, works, nodes, tmp_path, monkeypatch):
    tries = []

    def try_(command, limit_s, nodes=1):
        tries.append(nodes)
        return Probe(between if nodes == 2 else True, f"on {nodes}", nodes=nodes)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(probe, "on_two_nodes", lambda *_: ["mpirun", "-n", "4"])
    monkeypatch.setattr(probe, "which", lambda name: name)
    monkeypatch.setattr(probe, "tried", try_)
    found = probe.probe(GPU, "", fresh=False)
    assert (found.works, found.nodes) == (works, nodes) and "on 2" in found.why
    assert tries == ([2, 1] if between is None else [2])
    assert probe.probe(GPU, "", fresh=False) == replace(found, cached=True)
    monkeypatch.setattr(probe, "on_two_nodes", lambda *_: [])
    assert probe.probe(GPU, "", fresh=False).nodes == 1 and tries[-1] == 1  # a job on one node


def test_a_child_that_hangs_is_ended_with_its_own_children(tmp_path):
    """The grandchild holds the output open, and both ignore the polite request."""
    hang = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    script = (
        f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {hang!r}]); "
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(p.pid)); {hang.replace('60', '61')}"
    )
    start = time.perf_counter()
    found = tried([sys.executable, "-c", script], 1.5)
    assert time.perf_counter() - start < 15
    assert found == Probe(False, "no answer within 1.5 s")
    pid = int((tmp_path / "pid").read_text())
    for _ in range(50):
        if (
            not Path(f"/proc/{pid}").exists()
            or Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
        ):
            return
        time.sleep(0.1)
    pytest.fail("the grandchild lives")


def test_a_launcher_that_is_not_there_is_unknown():
    found = tried(["/nowhere/mpirun"], 5)
    assert found.works is None and "/nowhere/mpirun" in found.why


def test_the_child_is_launched_as_from_outside_the_job(monkeypatch):
    inside = {
        "OMPI_COMM_WORLD_RANK": "0",
        "PMIX_RANK": "0",
        "PMI_FD": "9",
        "SLURM_PROCID": "0",
        "OMPI_MCA_ess_base_jobid": "1",
        "OMPI_MCA_btl": "self",
        "PRTE_LAUNCHED": "1",
        "MPI_LOCALRANKID": "0",
        "JSM_NAMESPACE_RANK": "0",
    }
    users = {
        "OMPI_MCA_osc": "^ucx",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "PRTE_MCA_hwloc_default_binding_policy": "core",
        "CUDA_VISIBLE_DEVICES": "3",
    }
    for name, value in {**inside, **users}.items():
        monkeypatch.setenv(name, value)
    check = f"assert not {set(inside)!r} & set(os.environ); assert {users!r}.items() <= os.environ.items()"
    assert tried([sys.executable, "-c", f"import os; {check}; {answer()}"], 30).works


def test_a_result_is_kept_by_its_key(tmp_path):
    path, tries = tmp_path / "cache" / "results.json", []

    def find(works):
        return lambda: tries.append(works) or Probe(works, f"found {works}")

    first = cached(path, "MPI 1 on A", find(False))
    assert (first.works, first.cached) == (False, False) and re.fullmatch(
        r"\d{4}-\d\d-\d\d", first.tried
    )
    assert cached(path, "MPI 1 on A", find(True)) == replace(first, cached=True)
    assert cached(path, "MPI 2 on A", find(True)).works is True  # another library
    assert cached(path, "MPI 1 on A", find(True), fresh=True).cached is False
    assert cached(path, "MPI 1 on A", find(False)).works is True
    assert cached(path, "MPI 2 on A", find(False)).works is True  # the other entries are kept
    assert tries == [False, True, True] and os.listdir(path.parent) == [path.name]


def test_what_was_not_tried_is_not_kept(tmp_path):
    cached(tmp_path / "results.json", "MPI", lambda: UNTRIED)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"MPI": 3}', '{"MPI": {"works": true}}'])
def test_a_broken_cache_is_as_none(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    assert cached(tmp_path / "results.json", "MPI", lambda: YES).cached is False
    assert cached(tmp_path / "results.json", "MPI", lambda: NO).works is True


def test_a_cache_that_cannot_be_written_does_no_harm(tmp_path):
    (tmp_path / "file").write_text("")
    assert cached(tmp_path / "file" / "results.json", "MPI", lambda: YES).works is True


# --------------------------------------------------------------------------------------------------

FACTS = [
    "MPI library",
    "mpi4py",
    "thread level",
    "size",
    "machines",
    "binding",
    "threads a rank",
    "GPUs",
    "MPI on device memory",
    "MPI's own CUDA flag",
    "/dev/shm",
    "memory",
    "link",
    "Allreduce",
    "mean",
    "period",
    "averages overlap",
    "a rank that dies",
    "transport",
]
QUIET = {
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": None,
    "XDG_CACHE_HOME": os.devnull,
}  # no GPU, nothing kept


def rows(out):
    """The table of the output, {fact: text}; it must be the only one, with all facts."""
    lines = out.splitlines()
    assert [line for line in lines if line.startswith("-----")] == [lines[3]], out
    end = lines.index("", 4)
    found = [re.split(r" {2,}", line, maxsplit=1) for line in lines[4:end]]
    assert [name for name, _ in found if name] == FACTS
    return dict(found)


def told(out):
    """The warnings and failures."""
    return re.findall(r"^(warning|failed): (.*)\n  remedy: (.+)$", out, re.M)


def doctor(*words, **env):
    """`python -m localavg doctor WORDS` in one process that sees no GPU."""
    return alone("doctor", *words, CUDA_VISIBLE_DEVICES="", **env)


def test_one_rank_outside_any_job(tmp_path):
    done = doctor("--learners", 3, "--json", tmp_path / "facts.json", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    found, facts = rows(done.stdout), json.loads((tmp_path / "facts.json").read_text())
    assert (
        found["size"] == "1 rank, 1 node, 1 machine, 3 learners"
        and found["link"] == "unknown: one node"
    )
    assert found["Allreduce"] == found["mean"] == "exact" and found["/dev/shm"].startswith(
        "not needed"
    )
    assert (
        len(facts["ranks"]) == 1
        and facts["ranks"][0]["threads"] == 1
        and facts["link_bytes_per_s"] is None
    )
    assert (
        facts["ranks"][0]["cpus"] == sorted(os.sched_getaffinity(0))
        and facts["memory_bytes_per_s"] > 1e8
    )
    assert found["averages overlap"] == "unknown: one rank" and facts["hidden"] is None
    assert facts["warnings"] == facts["failures"] == [] and facts["allreduce_wrong"] == 0
    assert found["period"] == "unknown: one rank" and done.stderr == ""
    assert "training will work here\n" in done.stdout
    last = done.stdout.splitlines()[-1]
    assert re.match("launch it by: (jobs/local/mpirun -n [0-9]+ )?.venv/bin/localavg train", last)


@pytest.mark.parametrize(
    ("mpi", "library", "more"),
    [("openmpi", "Open", []), ("mpich", "MPICH", ["--ranks-per-node", "1"])],
)
def test_two_ranks(mpi, library, more):
    words = ("-m", "localavg", "doctor", "--learners", "3", *more)
    done = run(2, *words, "--step-s", "1000", mpi=mpi, env={**QUIET, "OMP_NUM_THREADS": "999"})
    assert done.returncode == 0, done.stderr
    found = rows(done.stdout)
    assert found["MPI library"].startswith(library) and found["thread level"] == "multiple"
    assert found["Allreduce"] == found["mean"] == "exact" and found["size"].endswith("3 learners")
    if more:
        assert found["size"].startswith("2 ranks, 2 nodes, 1 machine")
        rate, latency = re.match("(.*) GB/s each way, (.*) µs for an empty", found["link"]).groups()
        assert 0.01 < float(rate) < 100 and 0.05 < float(latency) < 1e5
    else:
        assert found["size"].startswith("2 ranks, 1 node,") and found["link"] == "unknown: one node"
        assert "0.61 GB needed" in found["/dev/shm"] and found["transport"].startswith("shared: ")
    assert re.match("(yes|hardly): a delay hides [0-9]+% of one", found["averages overlap"])
    goes_on = (
        "the others cannot go on: that needs Open MPI 5"
        if more
        else "the others can go on: one of 3"
    )
    assert found["a rank that dies"].startswith(goes_on)
    assert ("warning", "OMP_NUM_THREADS=999") in [
        (kind, what.partition(",")[0]) for kind, what, _ in told(done.stdout)
    ]
    assert found["period"].startswith("K = 1 or more") and "training will work here" in done.stdout
    launched = done.stdout.splitlines()[-1].removeprefix("launch it by: ")
    assert re.match(
        "(MPI=mpich )?jobs/local/mpirun -n 2 localavg train kavg --K 1 --learners 3 ", launched
    )
    assert launched.startswith("MPI=mpich") == (mpi == "mpich")


def test_a_launcher_that_disagrees_with_mpi_is_the_answer():
    done = doctor(SLURM_NTASKS="4")
    assert (done.returncode, done.stdout) == (2, "")
    assert "started 4 ranks (SLURM_NTASKS)" in done.stderr and "MPI sees 1" in done.stderr


def test_facts_that_cannot_be_written_are_a_users_mistake(tmp_path):
    done = doctor("--json", tmp_path / "nowhere" / "facts.json")
    assert done.returncode == 2 and "nowhere" in done.stderr and "Traceback" not in done.stderr


BROKEN = """\
from localavg.__main__ import main
from localavg.parallel.transport.shared import SharedMemory

mean_ = SharedMemory.mean_


def wrong_(self, w, *more):
    mean_(self, w, *more)
    if self.world.rank == 1:
        w[0, 7] += 1


SharedMemory.mean_ = wrong_
main(["doctor"])
"""


def test_a_wrong_mean_on_one_rank_fails(tmp_path):
    (tmp_path / "driver.py").write_text(BROKEN)
    done = run(2, tmp_path / "driver.py", env=QUIET)
    assert done.returncode == 1
    assert (
        rows(done.stdout)["mean"] == "wrong numbers: 1"
        and rows(done.stdout)["Allreduce"] == "exact"
    )
    ((_, what, remedy),) = [line for line in told(done.stdout) if line[0] == "failed"]
    assert "transport shared: wrong numbers: 1" in what and "--transport mpi" in remedy
    assert done.stdout.rstrip().endswith("training will not work here")


@pytest.fixture
def fake_gpu(tmp_path, monkeypatch):
    """A host with a driver and a torch that keep a GPU's memory on the host, and a cache folder of
    its own.
    """
    (tmp_path / "torch.py").write_text(nvml.TORCH)
    nvml.driver(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    return {
        **QUIET,
        "CUDA_VISIBLE_DEVICES": "0",
        "FAKE_GPUS": "Fake GPU=GPU-7",
        "LD_LIBRARY_PATH": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }


@pytest.mark.parametrize("mpi", ["openmpi", "mpich"])
def test_device_memory_is_tried_in_a_launch_within_the_launch(fake_gpu, mpi):
    """A right sum; the kept result while sums are wrong; the wrong sum with --fresh."""
    words = ("-m", "localavg", "doctor")
    found = rows(run(2, *words, "--step-s", "1000", mpi=mpi, env=fake_gpu, check=True).stdout)
    assert found["GPUs"] == "1 × Fake GPU" and found["MPI on device memory"].startswith("yes: ")
    if mpi == "openmpi":
        again = run(2, *words, env={**fake_gpu, "FAKE_ERROR": "1"}, check=True)
        assert "(cached, tried " in rows(again.stdout)["MPI on device memory"]
        assert "2 ranks take one GPU" in again.stdout
        fresh = run(1, *words, "--fresh", env={**fake_gpu, "FAKE_ERROR": "1"}, check=True)
        assert re.match(
            r"no: 2097162 of 2097162 numbers were wrong \(tried ",
            rows(fresh.stdout)["MPI on device memory"],
        )
