"""The tests catch the mistakes that `mutants.py` lists."""

import re

import mutants
import pytest
from mutants import MUTANTS, ROOT


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the checkout whose tests pass."""
    found = mutants.copied(tmp_path_factory.mktemp("tree"))
    assert mutants.sound(found, MUTANTS) == ""
    return found


@pytest.mark.long
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_is_caught(mutant, tree):
    assert mutants.survived(mutant, tree) == ""


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_can_be_made_and_its_test_is_there(mutant):
    assert (ROOT / mutant.file).read_text(encoding="utf-8").count(mutant.old) == 1
    assert mutant.new != mutant.old
    file, _, test = mutant.test.partition("::")
    test = test.partition("[")[0]  # perhaps one case of it
    assert re.search(rf"^def {test}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)


def test_no_two_mutants_have_one_name():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


def test_what_is_no_failed_test_is_not_taken_for_a_catch(tmp_path):
    """A test that passes, one that is not there, and a mutant that is not Python."""
    (tmp_path / "mine.py").write_text("x = 1\n")
    (tmp_path / "test_mine.py").write_text(
        "def test_less():\n    pass\n\n\ndef test_x():\n    import mine\n    assert mine.x == 1\n"
    )
    same = mutants.Mutant("same", "mine.py", "x = 1", "x = 2", "test_mine.py::test_less")
    gone = mutants.Mutant("gone", "mine.py", "x = 1", "x = 2", "test_mine.py::test_more")
    broken = mutants.Mutant("broken", "mine.py", "x = 1", "x = (", "test_mine.py::test_x")
    caught = mutants.Mutant("caught", "mine.py", "x = 1", "x = 2", "test_mine.py::test_x")
    assert "passes" in mutants.survived(same, tmp_path)
    assert "does not fail but ends with status 4" in mutants.survived(gone, tmp_path)
    assert "is broken" in mutants.survived(broken, tmp_path)
    assert mutants.survived(caught, tmp_path) == ""
    assert (tmp_path / "mine.py").read_text() == "x = 1\n"
