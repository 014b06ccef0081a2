"""Evaluations: the same for any number of ranks, and no message that grows with the model."""

import pickle

import numpy as np
import pytest
from mpi import call
from mpi4py import MPI

from localavg import datasets
from localavg.parallel.fleet import Fleet
from localavg.problems.logistic import Logistic
from localavg.training.evaluate import Evaluator, by_rank


class Small:
    """A communicator whose pickled messages must be small."""

    def __init__(self, comm):
        self.comm, self.rank, self.size = comm, comm.rank, comm.size

    def allgather(self, x):
        assert len(pickle.dumps(x)) < 4000
        return self.comm.allgather(x)

    def Bcast(self, x, root):
        self.comm.Bcast(x, root)


def graded(world):
    """A row of /eval by parts, as the asynchronous runs evaluate."""
    problem = Logistic(datasets.load("epsilon-like:300x2000", Fleet(world)), 0.1)
    comm = Small(world)
    evaluator = Evaluator(problem, comm, by_rank(comm, comm.size), grad_norm=True)
    w = np.random.default_rng(1).normal(size=problem.d).astype(np.float32)
    x, y = problem.data.train.x, problem.data.train.y
    return evaluator.row(w), w, np.array(x), np.array(y)


def test_the_gradient_of_all_parts_is_the_same_on_any_number_of_ranks():
    alone, w, x, y = graded(MPI.COMM_SELF)
    s = 1 / (1 + np.exp(y * (x.astype(float) @ w)))
    gradient = -(x * (y * s)[:, None]).mean(axis=0) + 0.1 * w
    assert alone["grad_norm_sq"] == pytest.approx(gradient @ gradient, rel=1e-5)
    for row, *_ in call(3, graded):
        assert row == alone
