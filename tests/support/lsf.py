"""Stand-ins of LSF's bsub, jsrun and blaunch, which check what IBM's manuals ask for.

Written from *IBM Spectrum LSF 10.1, Command Reference* and *Administering*, and *IBM Job Step
Manager*, without LSF. A rule that is broken is printed with the manual's section, and the command
fails with 255. bsub runs the jobs of an array here, one after the other, and requeues them.

    write(folder)            the three commands, as files of a folder for PATH
    python lsf.py bsub …     what these files call
"""

import os
import re
import shlex
import subprocess
import sys
from math import ceil
from pathlib import Path

MOST_STARTS = 9  # of a job, so that a test that requeues for ever ends
MPIRUN = Path(__file__).resolve().parents[2] / "jobs" / "local" / "mpirun"
TIME = r"(\d+:)?\d+"  # [hour:]minute
SECTIONS = r"(span|affinity|rusage|select|order|same|cu)\[[^\[\]]*\]"
BSUB = {  # option: pattern of its value, section of the Command Reference
    "-J": (r"[\w.-]+(\[\d+(-\d+)?\](%\d+)?)?", "bsub -J"),
    "-P": (r"\S+", "bsub -P"),
    "-q": (r"\S+", "bsub -q"),
    "-W": (TIME, "bsub -W"),
    "-o": (r"\S+", "bsub -o"),
    "-wa": (r"[A-Z0-9]+", "bsub -wa"),
    "-wt": (TIME, "bsub -wt"),
    "-Q": (r"\d+( \d+)*", "bsub -Q"),
    "-n": (r"\d+(,\d+)?", "bsub -n"),
    "-R": (rf"{SECTIONS}( {SECTIONS})*", "bsub -R"),
    "-gpu": (
        r"num=\d+(/task|/host)?(:mode=(shared|exclusive_process))?(:mps=\w+)?(:j_exclusive=\w+)?",
        "bsub -gpu",
    ),
    "-nnodes": (r"\d+", "bsub -nnodes"),
    "-alloc_flags": (r"[\w ]+", "bsub -alloc_flags"),
}
RESOURCES = {  # sections of -R: pattern of what is in the brackets, section of Administering LSF
    "span": (r"hosts=1|ptile=\d+|block=\d+", "Span string"),
    "affinity": (
        r"(numa|socket|core|thread)\(\d+\)(:cpubind=(numa|socket|core|thread))?"
        r"(:membind=(localonly|localprefer))?",
        "Affinity string",
    ),
    "rusage": (r"mem=\d+([KMGT]B?)?", "Resource usage string"),
}
JSRUN = {  # long option: pattern of its value; "jsrun command" in IBM Job Step Manager
    "--np": r"\d+",
    "--nrs": r"\d+",
    "--rs_per_host": r"\d+",
    "--tasks_per_rs": r"\d+",
    "--cpu_per_rs": r"\d+",
    "--gpu_per_rs": r"\d+",
    "--bind": r"none|rs|packed:\d+|proportional-packed:\d+",
    "--exit_on_error": r"[01]",
    "--smpiargs": r".*",
}


def write(folder):
    """Write bsub, jsrun and blaunch into the folder."""
    for name in ("bsub", "jsrun", "blaunch"):
        path = folder / name
        path.write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} {name} "$@"\n')
        path.chmod(0o755)


def fail(section, text):
    print(f"{text} (manual: {section})", file=sys.stderr)
    sys.exit(255)


def parse(words, table, section):
    """{option: value} of the words, and those behind the options."""
    found, words = {}, list(words)
    while words and words[0].startswith("-"):
        option, equals, value = words.pop(0).partition("=")
        if option not in table:
            fail(section, f"{option}: no such option")
        value = value if equals else words.pop(0) if words else ""
        pattern = table[option] if isinstance(table[option], str) else table[option][0]
        if not re.fullmatch(pattern, value):
            where = section if isinstance(table[option], str) else table[option][1]
            fail(where, f"{option} {value!r}: must read {pattern}")
        found[option] = value
    return found, words


def bsub(words):
    """bsub [options] < script: check, and run every job of the array."""
    script = sys.stdin.read()
    asked = {}
    for line in script.splitlines():
        if line.startswith("#BSUB"):
            asked |= parse(shlex.split(line)[1:], BSUB, "bsub")[0]
    given, command = parse(words, BSUB, "bsub")
    if command:
        fail("bsub", f"{command}: with a command the #BSUB lines of the script do not count")
    asked |= given  # options of the command line override those of the script
    check(asked)
    indices = re.search(r"\[(\d+)(?:-(\d+))?\]", asked["-J"])
    first, last = (int(indices[1]), int(indices[2] or indices[1])) if indices else (0, 0)
    print(f"Job <7> is submitted to queue <{asked['-q']}>.", flush=True)
    for index in range(first, last + 1):
        run(script, asked, index, last)


def check(asked):
    for option in ("-P", "-q"):
        if asked.get(option, "").isupper():
            fail(f"bsub {option}", f"{option} {asked[option]}: no such project or queue")
    if ("-wa" in asked) != ("-wt" in asked):
        fail("bsub -wa", "-wa and -wt must be specified together")
    if "-nnodes" in asked and asked.keys() & {"-n", "-R", "-gpu"}:
        fail("bsub -csm", "easy mode of CSM has -nnodes; a full requirement needs -csm y")
    for name, inside in re.findall(r"(\w+)\[([^\[\]]*)\]", asked.get("-R", "")):
        pattern, section = RESOURCES[name]
        if not re.fullmatch(pattern, inside):
            fail(section, f"{name}[{inside}]: must read {pattern}")


def hosts(asked):
    """The hosts of a job, one a slot. Under CSM a launch host stands before the nodes."""
    if "-nnodes" in asked:
        return [
            "launch",
            *(f"node{i + 1}" for i in range(int(asked["-nnodes"])) for _ in range(42)),
        ]
    slots, ptile = int(asked.get("-n", 1)), re.search(r"ptile=(\d+)", asked.get("-R", ""))
    each = int(ptile[1]) if ptile else slots
    here = os.environ.get("LSF_HOSTS", os.uname().nodename).split()
    if ceil(slots / each) > len(here):
        fail("bsub -n", f"{slots} slots, {each} a host: more than the hosts {here}")
    return [here[i // each] for i in range(slots)]


def run(script, asked, index, last):
    """Run a job; requeue it while its status is one of -Q."""
    slots = hosts(asked)
    listed = Path(f".hosts-{index}")
    listed.write_text("".join(f"{host}\n" for host in slots))
    env = {
        **os.environ,
        "LSB_JOBID": "7",
        "LSB_JOBINDEX": str(index),
        "LSB_JOBINDEX_END": str(last),
        "LSB_HOSTS": " ".join(slots),
        "LSB_DJOB_HOSTFILE": str(listed.resolve()),
        "LSB_DJOB_NUMPROC": str(len(slots)),
        "LSF_GPUS": re.sub(r"num=(\d+).*", r"\1", asked.get("-gpu", "num=0")),
        "LSF_NNODES": asked.get("-nnodes", ""),
        "LS_SUBCWD": os.getcwd(),
    }
    name = asked["-o"].replace("%J", "7").replace("%I", str(index))
    for _ in range(MOST_STARTS):
        with open(name, "a") as log:
            status = subprocess.run(
                ["bash", "-s"], input=script, text=True, env=env, stdout=log, stderr=log
            ).returncode
        print(f"status {status}", flush=True)
        if str(status) not in asked.get("-Q", "").split():
            return


def jsrun(words):
    """jsrun: check the resource sets, and start the tasks."""
    section = "jsrun command"
    found, command = parse(words, JSRUN, section)
    number = {name: int(value) for name, value in found.items() if value.isdigit()}
    tasks = number["--tasks_per_rs"]
    ranks = number.get("--np") or number["--nrs"] * tasks
    sets = ceil(ranks / tasks)
    if sets > number["--rs_per_host"] * int(os.environ["LSF_NNODES"]):
        fail(section, f"{sets} resource sets do not fit on {os.environ['LSF_NNODES']} hosts")
    packed = re.fullmatch(r"packed:(\d+)", found["--bind"])
    if packed and int(packed[1]) * tasks > number["--cpu_per_rs"]:
        fail(section, "more cores are bound than --cpu_per_rs has")
    if '"' in found.get("--smpiargs", ""):
        fail(section, f"--smpiargs {found['--smpiargs']}: quotation marks are not the shell's")
    os.execv(MPIRUN, [str(MPIRUN), "-n", str(ranks), *command])


def blaunch(words):
    """blaunch HOST COMMAND: as ssh would start it, on a host of the job."""
    words = [word for word in words if word != "-n"]
    host, command = words[0], words[1:]
    if "LSB_JOBID" not in os.environ:
        fail("blaunch", "works only under LSF")
    if host not in os.environ["LSB_HOSTS"].split():
        fail("blaunch", f"{host}: is not a part of the job's allocation")
    with open("blaunch.log", "a") as log:
        log.write(f"{host}\n")
    os.execv("/bin/sh", ["/bin/sh", "-c", " ".join(command)])


if __name__ == "__main__":
    {"bsub": bsub, "jsrun": jsrun, "blaunch": blaunch}[sys.argv[1]](sys.argv[2:])
