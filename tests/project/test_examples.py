"""The programs in jobs/examples by their own launch lines, with smaller settings.

attach.py is in test_averager.py, survive.py in test_outlive.py.
"""

import math
import re
import runpy

import pytest
from mpi import ROOT, call, run

from localavg.files.record import load

torch = pytest.importorskip("torch", reason="the examples train networks: make test")

EXAMPLES = ROOT / "jobs" / "examples"
ELSEWHERE = {"attach.py", "survive.py"}


def lines(name):
    """The launch lines of an example: ranks, and the words after the program."""
    text = (EXAMPLES / name).read_text().replace("\\\n", "")
    found = re.findall(
        rf"^    jobs/local/mpirun -n (\d) python jobs/examples/{name}(.*)$", text, re.M
    )
    return [(int(ranks), words.split()) for ranks, words in found]


def programs():
    return sorted(path.name for path in EXAMPLES.glob("*.py") if path.name not in ELSEWHERE)


@pytest.mark.parametrize("name", programs())
def test_an_example_says_what_it_shows_what_it_costs_and_how_to_start_it(name):
    text = (EXAMPLES / name).read_text()
    title, _, rest = text.removeprefix('"""').partition("\n\n")
    assert title.count("\n") == 0 and title.endswith(".") and "\nCost: about " in rest
    assert lines(name)


def together(world, runs):
    """Several programs one after the other in one launch: (name, words)."""
    for name, words in runs:
        example = runpy.run_path(str(EXAMPLES / name), run_name="example")
        main = example.get("main") or example["train"]
        main(example["arguments"](words))


def test_the_torch_program_resumes_to_the_same_bits(tmp_path):
    """By its lines, stopped after two of four epochs, and once without a stop."""
    (ranks, start), (_, again) = lines("torch_digits.py")
    assert again == [*start, "--resume"] and start[:1] == ["--out"]
    small, out = ["--epochs", "4"], {name: str(tmp_path / name) for name in ("stopped", "whole")}
    words = [
        [*start, *small, "--out", out["stopped"], "--stop-after", "2"],
        [*again, *small, "--out", out["stopped"]],
        [*start, *small, "--out", out["whole"]],
    ]
    call(ranks, together, [("torch_digits.py", each) for each in words])
    stopped, whole = (torch.load(f"{folder}/model.pt") for folder in out.values())
    assert stopped.keys() == whole.keys()
    assert all(torch.equal(x, whole[name]) for name, x in stopped.items())
    first, second = (load(tmp_path / "stopped" / f"run-{i}.h5") for i in (1, 2))
    assert (first.status, second.status) == ("interrupted", "finished")
    assert first.eval.epoch.tolist() == [1, 2] and second.eval.epoch.tolist() == [3, 4]
    assert second.train.t.iloc[-1] == second.config["steps"] == 4 * 44
    assert second.eval.test_accuracy.iloc[-1] > 0.95
    kept = sorted(path.name for path in (tmp_path / "whole").glob("*.pt"))
    assert kept == [f"epoch-{i}-rank-{j}.pt" for i in (3, 4) for j in (0, 1)] + ["model.pt"]


def test_the_language_model_by_its_own_lines():
    """A few updates, with which it learns what is frequent."""
    (ranks, _), (_, words) = lines("char_lm.py")
    small = ["--steps", "20", "--every", "20", "--K", "10", "--batch-size", "4"]
    program = ("python", EXAMPLES / "char_lm.py")
    done = run(ranks, *words, *small, check=True, program=program)
    last = done.stdout.splitlines()[-1]
    found = re.fullmatch(
        r"bits a character: diloco \(K = 10\) ([\d.]+), sync ([\d.]+), no averages ([\d.]+)", last
    )
    text = runpy.run_path(str(EXAMPLES / "char_lm.py"), run_name="example")["Text"]()
    assert all(float(x) < math.log2(text.V) - 0.5 for x in found.groups())
    assert re.findall(r"^(\w+)  update +(\d+) ", done.stdout, re.M) == [
        (name, "20") for name in ("diloco", "sync", "sgd")
    ]


def test_the_own_algorithm_by_its_own_line(tmp_path):
    """Its averages come after other updates than K-AVG's, and on all ranks after the same."""
    ((ranks, words),) = lines("own_algorithm.py")
    out = tmp_path / "coin"
    small = ["--K", "2", "8", "--seeds", "1", "--steps", "40", "--out", out]
    program = ("python", EXAMPLES / "own_algorithm.py")
    done = run(ranks, *words, *small, check=True, program=program)
    assert (out / "coin.png").stat().st_size > 0 and "test_accuracy" in done.stdout
    files = {path.stem: load(path) for path in out.glob("*.h5")}
    assert files.keys() == {"kavg-2-0", "kavg-8-0", "coin-2-0", "coin-8-0"}
    assert files["kavg-8-0"].averages.t.tolist() == [8, 16, 24, 32, 40]
    tossed = files["coin-2-0"].averages
    assert tossed.t.iloc[-1] == 40 and 10 < len(tossed) < 30 and tossed.period.nunique() > 2
