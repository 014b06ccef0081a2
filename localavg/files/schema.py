"""The tables of run files: the type, unit and meaning of every column."""

from __future__ import annotations

from typing import TypeAlias

import h5py
import numpy as np

Column: TypeAlias = tuple[str | np.dtype, str, str]  # dtype, unit, description

SCHEMA_VERSION = 1
# settings by the names that older run files have, and their names now
RENAMED = {"schedule": "lr_schedule", "every": "decay_every", "machine": "timing_from"}
CLUSTER, WORLD, NEIGHBOURS = 1, 2, 3  # values of the column scope
LATER = ("begun", "level")  # integer columns that files of earlier versions do not have

WEIGHTS = {  # vectors [d] beside the tables
    "weights": "averaged model at the end",
    "initial_weights": "model that all learners started from",
}
_T = ("i8", "updates", "completed local updates of each learner")
_EPOCH = ("f8", "epochs", "passes over the training set, all learners together")
_WALL = ("f8", "s", "wall clock since the start of training, evaluation left out")
SCHEMA: dict[str, dict[str, Column]] = {  # of training: {group: {name: column}}
    "train": {
        "t": _T,
        "epoch": _EPOCH,
        "samples": (
            "i8",
            "examples",
            "training examples used since the start, all learners together",
        ),
        "step_size": ("f8", "1", "step size of this update"),
        "loss": ("f8", "1", "mini-batch loss of the local models, averaged since the row before"),
        "wall_s": _WALL,
        "compute_s": (
            "f8",
            "s",
            "time in gradients, local updates and other work of a rank since the start of training",
        ),
        "communicate_s": ("f8", "s", "time in communication since the start of training"),
        "wait_s": ("f8", "s", "time waiting for other ranks since the start of training"),
        "data_s": ("f8", "s", "time waiting for training data since the start of training"),
    },
    "averages": {
        "t": _T,
        "begun": ("i8", "updates", "the update after which it began: t, unless it was delayed"),
        "scope": (
            "i1",
            "1",
            f"whose models were averaged: {CLUSTER} = cluster, {WORLD} = world, {NEIGHBOURS} = "
            "neighbours in a graph",
        ),
        "level": (
            "i1",
            "1",
            "level of the average: 1 = the innermost clusters; everyone is the highest level, 1 "
            "without clusters; 0 = neighbours",
        ),
        "period": ("i8", "updates", "local updates since the average before, of any scope"),
        "variance": (
            "f8",
            "1",
            "S = mean over learners of |w_mean - w_j|^2 just before the average",
        ),
        "mean_variance": (
            "f8",
            "1",
            "V_t = mean of that variance over the updates since the average before",
        ),
        "bytes_node": (
            "i8",
            "bytes",
            "payload handed to communicators inside a node, summed over ranks",
        ),
        "bytes_cross": (
            "i8",
            "bytes",
            "payload handed to communicators spanning nodes, summed over ranks",
        ),
        "seconds": ("f8", "s", "duration of this one average, without waiting"),
        "wait_s": (
            "f8",
            "s",
            "waiting for other ranks in this one average, or for a delayed one, mean over ranks",
        ),
        "hidden_s": ("f8", "s", "seconds of a delayed average in which no learner waited for it"),
    },
    "eval": {
        "t": _T,
        "epoch": _EPOCH,
        "wall_s": _WALL,
        "train_loss": ("f8", "1", "objective of the averaged model on the training set"),
        "train_accuracy": (
            "f8",
            "1",
            "fraction of the training set that the averaged model gets right",
        ),
        "test_loss": ("f8", "1", "objective of the averaged model on the test set"),
        "test_accuracy": ("f8", "1", "fraction of the test set that the averaged model gets right"),
        "grad_norm_sq": (
            "f8",
            "1",
            "squared norm of the full training gradient at the averaged model",
        ),
    },
    "staleness": {
        "t": ("i8", "updates", "completed local updates of this learner"),
        "learner": ("i8", "1", "id of the learner that exchanged with the server"),
        "staleness": ("i8", "updates", "server updates since this learner's last pull"),
        "wall_s": _WALL,
    },
    "periods": {
        "t": ("i8", "updates", "the average after this update chose a period, with K = auto"),
        "K": ("i8", "updates", "period that was chosen"),
        "reason": (
            h5py.string_dtype(),
            "name",
            "start = times not known; growth = at most twice the last one; time = what averages "
            "cost; losses = what averages undo; look = 2 after many rounds of 1",
        ),
        "average_s": ("f8", "s", "seconds of an average without waiting, median of some rounds"),
        "update_s": ("f8", "s", "seconds of an update, median of some rounds"),
        "time_K": ("f8", "updates", "period for which averages take 1/20 of the updates' time"),
        "x": ("f8", "1", "growth of the loss at an average, per update before it but one"),
    },
    "events": {
        "t": ("i8", "updates", "the update after which the run went on, without ranks that died"),
        "repeated": ("i8", "updates", "updates that had been made after it, and were made again"),
        "lost": (h5py.string_dtype(), "name", "the ranks that died, and their hosts"),
        "ranks_before": ("i8", "1", "MPI ranks before"),
        "ranks_after": ("i8", "1", "MPI ranks after"),
        "seconds": ("f8", "s", "from the average after update t until the run went on"),
    },
    "holdings": {
        "learner": ("i8", "1", "id of the learner that has rows of its own"),
        "label": ("i8", "1", "label of the rows, as in the training set"),
        "rows": ("i8", "examples", "training examples of this label that the learner has"),
    },
}
BENCHES: dict[str, dict[str, Column]] = {  # the same of the benchmarks that write a file
    "average": {
        "elements": ("i8", "floats", "length of a learner's row"),
        "ranks": ("i8", "1", "MPI ranks"),
        "nodes": ("i8", "1", "nodes that the ranks lie on"),
        "learners": ("i8", "1", "rows that are averaged"),
        "transport": (h5py.string_dtype(), "name", "how our average travels"),
        "ours_s": (
            "f8",
            "s",
            "our average; this and the times below are medians, of the slowest rank",
        ),
        "allreduce_s": ("f8", "s", "MPI Allreduce of one row a rank, and the division"),
        "torch_s": ("f8", "s", "torch's PeriodicModelAverager on one row a rank"),
        "floor_s": (
            "f8",
            "s",
            "what memory must take; between nodes what their link must take, if that is longer",
        ),
        "outer_s": ("f8", "s", "our average with a step of an outer optimiser"),
        "gossip_s": ("f8", "s", "a gossip on a graph, with neighbours alone"),
        "gossip_floor_s": (
            "f8",
            "s",
            "what a gossip must take: memory, or the link for its neighbours' rows",
        ),
        "wire_s": ("f8", "s", "our average, between nodes in code"),
        "wire_bytes": ("f8", "bytes", "what all ranks send between nodes in such an average"),
        "plain_bytes": ("f8", "bytes", "the same in float32"),
        "kept_s": ("f8", "s", "our average, and a copy of it from which ranks go on"),
    }
}
TABLES = SCHEMA | BENCHES
EVENTS = "events"
"""the table whose rows are never taken back"""
