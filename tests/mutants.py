"""Mistakes that a test must catch: each is made in a copy of the tree, and its test must fail.

    python tests/mutants.py [NAME...]    all of them, or some; status 1 if one is not caught

A mutant whose test passes shows a hole in the tests. Prefer a test that needs no launch.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import psutil

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S, ALL_S = 300, 1500  # of a run of pytest, and of one with all tests named below
BROKEN = ("SyntaxError", "NameError", "ImportError", "ModuleNotFoundError")  # no mistake we mean

# Where things are.
ALGORITHMS = {
    name: f"localavg/algorithms/{name}.py"
    for name in (
        "adacomm",
        "base",
        "kavg",
        "hieravg",
        "adpsgd",
        "outer",
        "participants",
        "qsgd",
        "qsr",
        "eamsgd",
        "delay",
        "switch",
        "gossip",
        "graphs",
        "matchings",
        "fragments",
    )
}
LEARNER = {name: f"localavg/learner/{name}.py" for name in ("optim", "sampling", "partition")}
TRANSPORT = {
    name: f"localavg/parallel/transport/{name}.py"
    for name in (
        "__init__",
        "lanes",
        "mixes",
        "mixing",
        "slots",
        "shared",
        "coded_lanes",
        "deltas",
        "low_rank",
        "in_code",
        "in_code_on_device",
        "cuda_aware",
        "nccl",
        "mpi",
        "staged",
        "trial",
    )
}
PROBLEMS = {
    name: f"localavg/problems/{name}.py"
    for name in (
        "ahead",
        "device_feed",
        "device_jpegs",
        "row_numbers",
        "engines/graph",
        "engines/masks",
        "engines/capture",
        "engines/replayed_batch",
        "engines/stacked",
        "network",
        "rows",
    )
}
TRAINING = {
    name: f"localavg/training/{name}.py"
    for name in (
        "averaging",
        "beyond",
        "copies",
        "delayed",
        "flights",
        "kept",
        "loop",
        "losses",
        "marks",
        "meaning",
        "monitor",
        "recorder",
        "rehearsal",
        "replay",
        "resume",
        "stopwatch",
        "where",
    )
}
TESTS = {
    name: f"tests/{folder}/test_{name}.py"
    for folder, names in {
        "algorithms": (
            "schedules",
            "combine",
            "exchange",
            "participants",
            "adacomm",
            "graphs",
            "fragments",
        ),
        "analysis": ("claims", "conclusions", "figures", "headline", "measured", "methods"),
        "cli": (
            "cli",
            "silence",
            "sweep",
            "sweep_gpu",
            "sweep_warm",
            "bench_best",
            "bench_start",
            "doctor",
            "library",
            "status",
        ),
        "datasets": ("damage", "prepare"),
        "files": ("record",),
        "learner": ("sampling", "partition"),
        "parallel": (
            "transport",
            "mixing",
            "late_ranks",
            "lanes",
            "wires",
            "gpu_behind",
            "gpu_logic",
            "agreement",
            "fastest_way",
            "gpus",
        ),
        "attaching": ("averager", "even", "outlive", "rounds", "streams", "types"),
        "problems": ("batch", "graph", "device_feed", "stacked"),
        "training": (
            "in_process",
            "checkpoint",
            "asynchronous",
            "asynchronous_device",
            "delayed",
            "ends_averaged",
            "survive",
            "survive_center",
            "monitor",
            "where",
            "rehearsal",
            "survive_device",
        ),
    }.items()
    for name in names
}


class Mutant(NamedTuple):
    """One mistake: `old`, which stands once in `file`, becomes `new`, and `test` fails."""

    name: str
    file: str
    old: str
    new: str
    test: str


SMALLER = f"{TESTS['types']}::test_smaller_types_are_averaged_in_float32_and_rounded_once"
RESTARTED = f"{TESTS['types']}::test_looks_and_a_restart_leave_the_bits_and_addresses_stay"
ENDS = f"{TESTS['even']}::test_a_job_that_would_hang_ends_with_one_line"
MERGED = f"{TESTS['delayed']}::test_a_merge_is_of_the_copies_and_not_of_the_weights_of_then"
TURNS = f"{TESTS['fragments']}::test_every_piece_has_its_turn_once_in_a_period"
PIECES = f"{TESTS['fragments']}::test_a_piece_of_statistics_is_averaged_plainly_and_s_is_of_the_parameters"
CODED = f"{TESTS['wires']}::test_means_are_those_of_the_pseudo_code"
KEPT = f"{TESTS['wires']}::test_nothing_is_lost"
BEHIND = "test_a_mean_in_the_background_is_of_the_copies_and_leaves_the_learners_alone"
FLOWN = f"{TESTS['gpu_behind']}::{BEHIND}"
IN_BOTH = f"{TESTS['gpu_behind']}::test_averages_in_code_have_the_bits_and_the_bytes_of_the_host"
STATIC = f"{TESTS['schedules']}::test_a_schedule_averages_after_these_updates"
SHORTER = "a_period_is_the_rules_where_that_is_shorter"
HALVED = "constant_losses_and_step_sizes_halve_each_block_down_to_one"
FALLS = "a_step_size_that_falls_raises_r_and_so_halves_the_period"
SECONDS = "blocks_of_seconds_follow_the_clock_from_where_the_schedule_begins"
RESUMED = f"{TESTS['checkpoint']}::test_a_run_on_one_rank_goes_on_to_the_same_bits"
WAITS = f"{TESTS['monitor']}::test_waiting_is_what_a_rank_spends_more_than_the_last_one_to_come"
ON_DEVICE = f"{TESTS['gpu_logic']}::test_means_on_the_device_are_the_sum_in_order_divided_once"
DIVIDED = f"{TESTS['transport']}::test_a_sum_is_divided_by_the_learners_not_by_the_ranks"
AROUND = (
    f"{TESTS['asynchronous_device']}::"
    "test_the_device_gives_the_center_of_the_cpu_in_the_same_order[over MPI-downpour]"
)
ON_ONE = f"{TESTS['sweep_gpu']}::test_a_figure_has_the_papers_runs_with_all_learners_on_one_gpu"
LEARNER_TESTS = "tests/learner/test_optim.py"
BY_MOMENT = "test_each_moment_has_its_own_policy"
OUTER = f"{TESTS['combine']}::test_outer_steps_are_those_of_the_sources"
GRAPH = f"{TESTS['graphs']}::test_the_matrices_are_the_oracles"
MATCHA = f"{TESTS['graphs']}::test_matcha_has_the_papers_numbers"
PUSHED = f"{TESTS['graphs']}::test_push_sum_conserves_both_sums_and_finds_the_mean_of_everyone"
GOSSIPS = f"{TESTS['in_process']}::test_a_run_is_the_oracles"
MIXED = f"{TESTS['mixing']}::test_rows_are_mixed_to_the_same_bits_everywhere_and_the_bytes_are_those_that_travel[2-openmpi]"
RACES = f"{TESTS['graph']}::test_main_and_side_streams_never_touch_memory_out_of_order"
SAME = f"{TESTS['graph']}::test_replays_give_the_gradients_losses_and_statistics_of_the_loop"
ON_CPU = f"{TESTS['device_feed']}::test_batches_are_those_of_the_feed_on_the_cpu"
FIRST_BARRIER = """\
            self.here.Barrier()  # everyone's rows are ready
"""
LAST_BARRIER = """\
            self.here.Barrier()  # nobody goes on before all lanes are written
"""

MUTANTS = [
    # when learners average
    Mutant(
        "Every averages one update late",
        ALGORITHMS["kavg"],
        "return Scope.NONE if t % self.K else Scope.WORLD",
        "return Scope.NONE if (t - 1) % self.K else Scope.WORLD",
        STATIC,
    ),
    Mutant(
        "Hier-AVG does not restart the local count at a global average",
        ALGORITHMS["hieravg"],
        "since %= self.K[level - 1]",
        "since = t % self.K[level - 1]",
        STATIC,
    ),
    Mutant(
        "a level averages one update late",
        ALGORITHMS["hieravg"],
        "since = t  # updates",
        "since = t - 1  # updates",
        STATIC,
    ),
    Mutant(
        "the lowest level that is due averages",
        ALGORITHMS["hieravg"],
        "for level in range(len(self.K), 0, -1):",
        "for level in range(1, len(self.K) + 1):",
        STATIC,
    ),
    Mutant(
        "a level averages over the clusters of the level below",
        ALGORITHMS["hieravg"],
        "else Scope(level)",
        "else Scope(max(1, level - 1))",
        STATIC,
    ),
    Mutant(
        "clusters that do not lie in the larger ones are taken",
        ALGORITHMS["hieravg"],
        "if S >= larger or larger % S:",
        "if S >= larger:",
        f"{TESTS['schedules']}::test_levels_that_are_no_hierarchy_are_refused",
    ),
    Mutant(
        "the last level may have any number of learners",
        ALGORITHMS["base"],
        "if self.P not in (None, P):",
        "if False:",
        f"{TESTS['schedules']}::test_learners_that_do_not_form_the_hierarchy_are_refused",
    ),
    Mutant(
        "everyone is recorded as the level of the largest clusters",
        "localavg/scope.py",
        "else min(int(self), depth)",
        "else min(int(self), depth - 1)",
        f"{TESTS['schedules']}::test_where_each_period_divides_the_next_one_it_is_the_rule_of_torch",
    ),
    Mutant(
        "a large cluster meets without its small ones",
        "localavg/parallel/agreement.py",
        "self._comms[scope] = inner + mine + everyone",
        "self._comms[scope] = mine + everyone",
        "tests/parallel/test_agreement.py::"
        "test_a_cluster_meets_alone_and_before_the_larger_ones_and_everyone",
    ),
    Mutant(
        "a run does not end averaged",
        TRAINING["averaging"],
        "scope = schedule.final if last else schedule.after(t)",
        "scope = schedule.after(t)",
        f"{TESTS['in_process']}::test_a_run_is_the_oracles",
    ),
    Mutant(
        "learners that an average of one's own left apart end apart",
        TRAINING["averaging"],
        "if each_its_own:",
        "if not each_its_own:",
        f"{TESTS['ends_averaged']}::test_rows_that_differ_become_their_mean",
    ),
    Mutant(
        "ADPSGD counts its iterations from one",
        ALGORITHMS["adpsgd"],
        "S, k = value, t - self.warmup_steps - 1",
        "S, k = value, t - self.warmup_steps",
        f"{TESTS['schedules']}::test_iterations_count_from_zero_in_the_sampling_phase",
    ),
    Mutant(
        "ADPSGD samples S in place of S / γ",
        ALGORITHMS["adpsgd"],
        "self.C2 += (S / gamma - self.C2) / self.n_C",
        "self.C2 += (S - self.C2) / self.n_C",
        f"{TESTS['schedules']}::test_the_running_mean_of_the_samples_is_exact_and_then_frozen",
    ),
    *(
        Mutant(name, ALGORITHMS["adacomm"], old, new, f"{TESTS['adacomm']}::test_{test}")
        for name, old, new, test in (
            (
                "AdaComm's τ₀ stands inside the root",
                "self.tau0 * math.sqrt(ratio)",
                "math.sqrt(self.tau0 * ratio)",
                SHORTER,
            ),
            ("AdaComm rounds down", "math.ceil(round(self", "math.floor(round(self", SHORTER),
            (
                "AdaComm takes a period that is not shorter",
                "if r < self.tau else",
                "if r <= self.tau else",
                SHORTER,
            ),
            (
                "AdaComm's first decision does not halve",
                "self.F0 = F\n",
                "self.F0 = 2 * F\n",
                SHORTER,
            ),
            (
                "AdaComm's period grows",
                "int(r) if r < self.tau else max(1, -(-self.tau // 2))",
                "int(min(r, 10**9))",
                "a_period_never_grows",
            ),
            (
                "AdaComm halves downwards",
                "max(1, -(-self.tau // 2))",
                "max(1, self.tau // 2)",
                HALVED,
            ),
            (
                "AdaComm halves 1 to 0",
                "max(1, math.ceil(",
                "max(0, math.ceil(",
                "a_period_never_grows",
            ),
            ("AdaComm forgets γ", "* self.gamma0 / gamma if gamma", "if gamma", FALLS),
            (
                "AdaComm turns γ₀/γ round",
                "* self.gamma0 / gamma if gamma",
                "/ self.gamma0 * gamma if gamma",
                FALLS,
            ),
            (
                "AdaComm keeps the losses of the blocks before",
                "self.loss, self.begun = 0.0, t",
                "pass",
                SHORTER,
            ),
            (
                "AdaComm means the averages in place of the updates",
                "value * (t - self.last)",
                "value",
                "the_mean_is_over_the_updates_of_the_block",
            ),
            (
                "AdaComm's blocks are not passed over",
                "* (1 + (now - self.end) // self.length)",
                "",
                SECONDS,
            ),
            (
                "AdaComm's seconds count from the start of the run",
                "self.end = now + self.length",
                "self.end = self.length",
                SECONDS,
            ),
        )
    ),
    *(
        Mutant(name, TRAINING[file], old, new, f"{TESTS['adacomm']}::test_{test}")
        for name, file, old, new, test in (
            (
                "the losses are not cleared at an average",
                "losses",
                "        self.found.clear()\n",
                "",
                "the_mean_of_the_losses_is_over_learners_and_updates_since_the_last_call",
            ),
            (
                "the losses are divided by the updates alone",
                "losses",
                "/ (updates * self.fleet.P)",
                "/ updates",
                "the_mean_of_the_losses_is_over_learners_and_updates_since_the_last_call",
            ),
            (
                "the losses before the switch count",
                "averaging",
                'if self.schedule.needs != "variance":',
                'if self.schedule.needs == "objective":',
                "the_losses_before_the_switch_do_not_count",
            ),
            (
                "a replay is steered again",
                "replay",
                "schedule=Switched(ends, t0) if t0 else ends",
                "S=algorithm.S",
                "a_replay_takes_the_periods_and_not_what_steered_them",
            ),
        )
    ),
    Mutant(
        "the losses since the average are forgotten at resume",
        TRAINING["losses"],
        'state["losses"].T.ravel().tolist()',
        "[]",
        RESUMED,
    ),
    Mutant(
        "a delayed mean is of the weights themselves",
        TRAINING["flights"],
        "        self.z[:, columns] = w[:, columns]\n",
        "        self.z = w\n",
        MERGED,
    ),
    Mutant(
        "a merge has the wrong sign", ALGORITHMS["delay"], "piece -= own[", "piece += own[", MERGED
    ),
    Mutant(
        "a delayed mean is merged one update late",
        TRAINING["delayed"],
        "t == flight.t + self.delay.tau:",
        "t == flight.t + self.delay.tau + 1:",
        MERGED,
    ),
    Mutant(
        "DASO counts the updates once",
        ALGORITHMS["delay"],
        "learners / (2 * self.tau + learners)",
        "learners / (self.tau + learners)",
        MERGED,
    ),
    Mutant(
        "a checkpoint forgets the learners' copies",
        TRAINING["flights"],
        'put_(self.own, state["own"])',
        "pass",
        f"{TESTS['delayed']}::test_the_state_holds_a_mean_on_its_way",
    ),
    Mutant(
        "a wire sends the sum with the wrong sign",
        TRANSPORT["deltas"],
        "np.subtract(row, base,",
        "np.subtract(base, row,",
        CODED,
    ),
    Mutant(
        "a wire forgets what a node's code lost",
        TRANSPORT["coded_lanes"],
        "        u[...] = piece.e\n",
        "        u[...] = 0\n",
        KEPT,
    ),
    Mutant(
        "a wire forgets what the reply's code lost",
        TRANSPORT["coded_lanes"],
        "        v += piece.r\n",
        "",
        KEPT,
    ),
    Mutant(
        "feedback has the wrong sign",
        TRANSPORT["coded_lanes"],
        "np.subtract(u, piece.e, piece.e)",
        "np.subtract(piece.e, u, piece.e)",
        CODED,
    ),
    Mutant(
        "what codes lose counts in the sum of weights of another round",
        TRANSPORT["deltas"],
        "delta *= n / weights.total",
        "delta *= n / weights.learners",
        CODED,
    ),
    Mutant(
        "a mean with weights is divided by the learners too",
        TRANSPORT["deltas"],
        "return P if weights is None else 1",
        "return P",
        CODED,
    ),
    Mutant(
        "a wire keeps the first weights as the last average",
        TRANSPORT["deltas"],
        "            base[part] = new\n",
        "            pass\n",
        CODED,
    ),
    Mutant(
        "the last average is coded",
        TRAINING["averaging"],
        "self.wired.plain, self.wired.plain_at = True, t",
        "self.wired.plain, self.wired.plain_at = False, t",
        f"{TESTS['wires']}::test_a_run_is_that_of_the_oracle",
    ),
    Mutant(
        "low rank forgets what its factors leave out",
        TRANSPORT["low_rank"],
        "each.u -= each.A @ each.B.T",
        "each.u[...] = 0",
        KEPT,
    ),
    Mutant(
        "the next factor is the node's own",
        TRANSPORT["low_rank"],
        "share.comm.Allreduce(MPI.IN_PLACE, share.Q)",
        "share.comm.Allreduce(MPI.IN_PLACE, share.Q.copy())",
        CODED,
    ),
    Mutant(
        "every node keeps the factor that it made itself",
        TRANSPORT["low_rank"],
        "share.comm.Ibcast(share.left, share.owner)",
        "share.comm.Ibcast(share.left.copy(), share.owner)",
        CODED,
    ),
    Mutant(
        "nodes multiply factors by BLAS, each as its processor does",
        TRANSPORT["low_rank"],
        "product_(each.A, each.B, mean.reshape(each.u.shape))",
        "np.matmul(each.A, each.B.T, mean.reshape(each.u.shape))",
        CODED,
    ),
    Mutant(
        "rows that end apart are averaged in code",
        TRAINING["averaging"],
        "self.wired.plain = True  # a code",
        "self.wired.plain = False  # a code",
        f"{TESTS['wires']}::test_rows_that_end_apart_get_their_mean_in_float32",
    ),
    Mutant(
        "a checkpoint forgets the feedback of a wire",
        TRANSPORT["in_code"],
        '            mine[...] = state["wire_feedback"][start : start + len(mine)]\n',
        "",
        f"{TESTS['wires']}::test_attach_averages_and_resumes_with_a_wire",
    ),
    Mutant(
        "rows of a GPU are coded before they have come",
        TRANSPORT["in_code_on_device"],
        "        self.device.settle()\n",
        "",
        IN_BOTH,
    ),
    Mutant(
        "rows of a GPU in code are counted as sent by every rank",
        TRANSPORT["in_code_on_device"],
        "return super().payload_bytes(",
        "return self.way.payload_bytes(",
        IN_BOTH,
    ),
    Mutant(
        "other rows of a GPU than the weights are coded too",
        TRANSPORT["in_code_on_device"],
        "super().mean_ if watched else super(InCode, self).mean_",
        "super().mean_",
        IN_BOTH,
    ),
    Mutant(
        "a mean in the background does not wait for the copies",
        "localavg/parallel/device.py",
        "            side.wait_event(after)\n",
        "",
        FLOWN,
    ),
    Mutant(
        "a mean in the background has arrived before it is done",
        TRAINING["flights"],
        "            self.transport.settle()\n",
        "",
        FLOWN,
    ),
    Mutant(
        "MPI gets a GPU's memory from the thread in the background",
        TRANSPORT["cuda_aware"],
        'return Staged(fleet, self.device, self.clusters, "in the background")',
        'return type(self)(fleet, self.device, self.clusters, "in the background")',
        f"{TESTS['gpu_behind']}::test_mpi_gets_no_gpu_memory_in_the_background",
    ),
    Mutant(
        "sums of two communicators of NCCL begin as they come",
        TRANSPORT["nccl"],
        "            self.background.landed.wait()\n",
        "            pass\n",
        f"{TESTS['gpu_behind']}::test_sums_of_two_communicators_of_nccl_begin_in_one_order",
    ),
    Mutant(
        "a merge on a GPU forgets what the learner did meanwhile",
        "localavg/parallel/kernels.py",
        "w = (w - own) + z",
        "w = z",
        f"{TESTS['gpu_behind']}::test_a_merge_on_the_device_is_that_on_the_host",
    ),
    Mutant(
        "a merge is compiled when the clock runs",
        TRAINING["rehearsal"],
        "        _merge(e, covered, average.pieces[-1])\n",
        "        pass\n",
        f"{TESTS['rehearsal']}::test_training_compiles_nothing_that_the_rehearsal_did_not",
    ),
    Mutant(
        "an average in code is counted as float32",
        "localavg/training/payload.py",
        "coded.plain_at == t else",
        "coded.plain_at != t else",
        f"{TESTS['wires']}::test_rows_have_the_bytes_of_the_code_and_the_last_those_of_float32",
    ),
    Mutant(
        "a piece averages one update late",
        ALGORITHMS["fragments"],
        "        s = t % self.K or self.K  #",
        "        s = (t - 1) % self.K or self.K  #",
        TURNS,
    ),
    Mutant(
        "all pieces have the turn of the next",
        ALGORITHMS["fragments"],
        "return i if (i + 1)",
        "return (i + 1) % self.F if (i + 1)",
        TURNS,
    ),
    Mutant(
        "statistics step with the outer optimiser",
        ALGORITHMS["fragments"],
        "min(max(trained - columns.start, 0), columns.stop - columns.start)",
        "columns.stop - columns.start",
        PIECES,
    ),
    Mutant(
        "one piece alone averages at the end",
        ALGORITHMS["fragments"],
        "for i in range(self.schedule.F) if",
        "for i in range(1) if",
        PIECES,
    ),
    Mutant(
        "a delayed piece is merged into all columns",
        TRAINING["flights"],
        "self.average.pieces[self.average.piece(t)]",
        "slice(None)",
        f"{TESTS['fragments']}::test_a_run_is_that_of_the_oracle",
    ),
    Mutant(
        "an average of a piece is counted as one of all",
        "localavg/training/payload.py",
        "self.algorithm.average.pieces[piece].indices(",
        "self.algorithm.average.pieces[0].indices(",
        f"{TESTS['fragments']}::test_an_average_sends_its_piece_alone",
    ),
    Mutant(
        "a piece whose mean was dropped counts as averaged",
        TRAINING["delayed"],
        "            self.average.drop(flight.t)\n",
        "            pass\n",
        f"{TESTS['delayed']}::test_a_piece_whose_mean_is_dropped_averages_at_the_end",
    ),
    Mutant(
        "attach: the end of a loop counts the bytes of one piece",
        ALGORITHMS["fragments"],
        "self._rest[1] if t == self._rest[0] else (self.piece(t),)",
        "(self.piece(t),)",
        f"{TESTS['fragments']}::test_the_end_of_a_loop_sends_the_pieces_that_have_not_averaged",
    ),
    Mutant(
        "a switch averages one update late",
        ALGORITHMS["switch"],
        "self.rest.after(t - self.t0)",
        "self.rest.after(t - self.t0 - 1) if t > self.t0 + 1 else Scope.NONE",
        STATIC,
    ),
    Mutant(
        "mean gradients end one update early",
        ALGORITHMS["base"],
        "self.scope if t <= self.until",
        "self.scope if t < self.until",
        f"{TESTS['exchange']}::test_gradients_are_exchanged_up_to_the_switch",
    ),
    Mutant(
        "the outer optimiser steps from the start, not from the switch",
        TRAINING["averaging"],
        "            self.average.begin(self.w)\n",
        "",
        f"{TESTS['exchange']}::test_an_outer_optimiser_begins_at_the_switch",
    ),
    Mutant(
        "a round of QSR takes the step size before its first update",
        ALGORITHMS["qsr"],
        "self._gamma(begun + 1)",
        "self._gamma(max(1, begun))",
        STATIC,
    ),
    Mutant(
        "QSR rounds its periods up",
        ALGORITHMS["qsr"],
        "math.floor(round(",
        "math.ceil(round(",
        STATIC,
    ),
    Mutant(
        "QSR forgets its power",
        ALGORITHMS["qsr"],
        "(self.alpha / gamma) ** self.power, 9",
        "(self.alpha / gamma) ** 1, 9",
        STATIC,
    ),
    Mutant(
        "ADPSGD's lower threshold forgets γ",
        ALGORITHMS["adpsgd"],
        "elif S < self.low * gamma * self.C2:",
        "elif S < self.low * self.C2:",
        f"{TESTS['schedules']}::test_thresholds_follow_the_step_size",
    ),
    Mutant(
        "ADPSGD's upper threshold forgets γ",
        ALGORITHMS["adpsgd"],
        "elif S > self.high * gamma * self.C2:",
        "elif S > self.high * self.C2:",
        f"{TESTS['schedules']}::test_thresholds_follow_the_step_size",
    ),
    Mutant(
        "AdamW's decay forgets γ",
        LEARNER["optim"],
        "self.shrink = 1 - gamma * self.decay",
        "self.shrink = 1 - self.decay",
        f"{LEARNER_TESTS}::test_weight_decay_shrinks_the_weights_alone",
    ),
    *(
        Mutant(name, LEARNER["optim"], old, new, f"{LEARNER_TESTS}::{BY_MOMENT}")
        for name, old, new in (
            ("m takes v's step count", "beta1 ** self.t[0]) * (m", "beta1 ** self.t[1]) * (m"),
            (
                "v takes m's step count",
                "g *= (1 - self.beta2 ** self.t[1])",
                "g *= (1 - self.beta2 ** self.t[0])",
            ),
            ("a moment is reset without its step count", "self.t[i] = 0", "pass"),
            (
                "an average takes the first moment for another",
                "average_(self.state[i])",
                "average_(self.state[0])",
            ),
        )
    ),
    # gossip
    *(
        Mutant(f"gossip: {name}", ALGORITHMS[file], old, new, test)
        for name, file, old, new, test in (
            ("a half of a neighbour too little", "graphs", "1 / (1 + max(", "1 / (2 + max(", GRAPH),
            ("peers after a learner", "graphs", "[(j - jump) % P]", "[(j + jump) % P]", GRAPH),
            (
                "one jump too many",
                "graphs",
                "range((P - 1).bit_length())",
                "range(P.bit_length())",
                GRAPH,
            ),
            (
                "a torus with sides that differ more than they must",
                "graphs",
                "max(a for a in range(1, math.isqrt(P) + 1) if P % a == 0)",
                "min((a for a in range(2, math.isqrt(P) + 1) if P % a == 0), default=1)",
                GRAPH,
            ),
            (
                "thirds whose sum is above 1 in float32",
                "graphs",
                "    W = np.round(W / GRID) * GRID\n",
                "",
                f"{TESTS['graphs']}::test_every_matrix_is_doubly_stochastic_in_float32_too[ring]",
            ),
            (
                "push-sum whose rows sum to 1 in place of its columns",
                "graphs",
                "W[receivers, everyone]",
                "W[everyone, receivers]",
                f"{TESTS['graphs']}::test_push_sends_a_half_to_somebody_else",
            ),
            (
                "some push to themselves",
                "graphs",
                "(everyone + 1 + draws.integers(P - 1, size=P)) % P",
                "(everyone + draws.integers(P - 1, size=P)) % P",
                f"{TESTS['graphs']}::test_push_sends_a_half_to_somebody_else",
            ),
            ("MATCHA's L̃ forgets 1 − p", "matchings", "p * (1 - p)", "p", MATCHA),
            ("MATCHA forgets that L² is 2L", "matchings", "+ 2 * spread", "+ spread", MATCHA),
            (
                "the probabilities that connect the least",
                "matchings",
                "-(v @ L @ v)",
                "(v @ L @ v)",
                f"{TESTS['graphs']}::test_optimal_probabilities_beat_equal_ones_and_keep_the_budget",
            ),
            (
                "matchings are off as often as they should be on",
                "matchings",
                ".random(len(self.p)) < self.p",
                ".random(len(self.p)) > self.p",
                f"{TESTS['graphs']}::test_matchings_are_on_as_often_as_they_should",
            ),
            (
                "the first gossip takes the second matrix",
                "gossip",
                "// self.K - 1)",
                "// self.K)",
                f"{TESTS['graphs']}::test_the_kth_gossip_takes_the_kth_matrix",
            ),
            (
                "gossips count from the start, not from the switch",
                "gossip",
                "(t - self.t0) // self.K",
                "t // self.K",
                f"{TESTS['graphs']}::test_the_kth_gossip_takes_the_kth_matrix",
            ),
            (
                "push-sum's weights go the other way",
                "gossip",
                "self.matrix(due.t) @ self.s",
                "self.s @ self.matrix(due.t)",
                PUSHED,
            ),
            (
                "push-sum keeps its weights after the mean",
                "gossip",
                "else np.ones_like(self.s)",
                "else self.s",
                PUSHED,
            ),
            ("gradients of push-sum at x", "gossip", "x /= s  # z = x/s", "x *= 1", GOSSIPS),
            (
                "push-sum's update on z",
                "gossip",
                "                x *= s\n",
                "                x *= 1\n",
                GOSSIPS,
            ),
            (
                "push-sum's state grows and shrinks like x",
                "gossip",
                "W if (sums == 1).all() else W / sums",
                "W",
                f"{TESTS['graphs']}::test_state_is_mixed_to_a_mean_also_where_rows_do_not_sum_to_1",
            ),
            (
                "S is about the weights after the mix",
                "gossip",
                """\
        S = transport.variance(w[:, : self.trained]) if due.variance else math.nan
        transport.mix_(w, self.matrix(due.t))
""",
                """\
        transport.mix_(w, self.matrix(due.t))
        S = transport.variance(w[:, : self.trained]) if due.variance else math.nan
""",
                f"{TESTS['graphs']}::test_s_is_the_distance_before_the_mix_without_statistics",
            ),
        )
    ),
    Mutant(
        "gossip: a mix before the last update too",
        TRAINING["averaging"],
        "if self.average.before_update and not last:\n            self._average_(",
        "if self.average.before_update:\n            self._average_(",
        GOSSIPS,
    ),
    Mutant(
        "gossip: what should come before the update comes after it",
        TRAINING["averaging"],
        """\
        if self.average.before_update and not last:
            return Scope.NONE
""",
        "",
        GOSSIPS,
    ),
    Mutant(
        "gossip: a piece is mixed before it has come",
        TRANSPORT["mixing"],
        "            MPI.Request.Waitall(requests)\n",
        "            pass\n",
        MIXED,
    ),
    Mutant(
        "gossip: learners mix by the transposed matrix",
        TRANSPORT["mixing"],
        "float(W[j, i])) for i in np.flatnonzero(W[j])",
        "float(W[i, j])) for i in np.flatnonzero(W[:, j])",
        f"{TESTS['mixing']}::test_a_row_goes_once_to_a_node_whatever_takes_it_there",
    ),
    Mutant(
        "gossip: a row changes before all sums are made",
        TRANSPORT["mixing"],
        "            total += np.multiply(sources[source], weight, term)\n",
        "            total += np.multiply(sources[source], weight, term)\n        sources[_][...] = total\n",
        MIXED,
    ),
    Mutant(
        "gossip: a row is counted at its own node too",
        TRANSPORT["shared"],
        "nbytes * len(nodes - {home})",
        "nbytes * len(nodes)",
        MIXED,
    ),
    Mutant(
        "gossip: a new matrix is taken for an old one at its address",
        TRANSPORT["mixes"],
        "self._mixes[key] = W, self._mix(w, W)",
        "self._mixes[key] = w, self._mix(w, W)",
        f"{TESTS['mixing']}::test_mixes_of_many_matrices_do_not_pile_up",
    ),
    Mutant(
        "gossip: a modelled learner does not wait for itself",
        "localavg/simulate/clock.py",
        "latest = np.maximum(self.now, others)",
        "latest = others",
        "tests/simulate/test_machine.py::test_gossip_waits_for_neighbours_alone",
    ),
    Mutant(
        "gossip: a modelled learner waits for those that take from it",
        "localavg/simulate/clock.py",
        "np.where(takes, self.now, -np.inf).max(axis=1)",
        "np.where(takes.T, self.now, -np.inf).max(axis=1)",
        "tests/simulate/test_machine.py::test_gossip_waits_for_neighbours_alone",
    ),
    Mutant(
        "gossip: modelled links carry one direction",
        "localavg/simulate/clock.py",
        "np.maximum(takes.sum(axis=0), takes.sum(axis=1))",
        "takes.sum(axis=1)",
        "tests/simulate/test_machine.py::test_gossip_waits_for_neighbours_alone",
    ),
    Mutant(
        "gossip: the kernel takes a row of this rank for one that came",
        "localavg/parallel/kernels.py",
        "(r < l ? own",
        "(r < l - 1 ? own",
        f"{TESTS['gpu_logic']}::test_rows_on_the_device_are_mixed_to_the_bits_of_the_host",
    ),
    # what an average does
    Mutant(
        "an outer step at clusters",
        ALGORITHMS["outer"],
        "return self.step if scope is Scope.WORLD else None",
        "return self.step",
        f"{TESTS['combine']}::test_averages_of_clusters_are_plain_means_and_no_block_step",
    ),
    *(
        Mutant(name, ALGORITHMS["outer"], old, new, OUTER)
        for name, old, new in (
            ("momentum steps without η", "np.multiply(v, self.lr, mean)", "v"),
            (
                "Nesterov looks ahead by v in place of μv",
                "D += np.multiply(v, self.mu, self._scratch(v))",
                "D += v",
            ),
            (
                "Nesterov's step takes the momentum before the round",
                """\
        v *= self.mu  # v ← μv + D
        v += D
        D +=""",
                """\
        v *= self.mu
        D +=""",
            ),
            (
                "momentum steps by the momentum before the round",
                """\
        v += D
        w_tilde += v if self.lr == 1 else np.multiply(v, self.lr, mean)""",
                """\
        w_tilde += v * self.lr
        v += D""",
            ),
            (
                "Adam divides by the second moment before the round",
                """\
        D *= D
        self.second_(v, D)
        root = np.sqrt(v, mean)
""",
                """\
        root = np.sqrt(v)
        self.second_(v, D * D)
""",
            ),
            (
                "SlowMo steps by the momentum before the round",
                """\
        u += G
        w_tilde -= np.multiply(u, self.lr * self.gamma, mean)""",
                """\
        w_tilde -= u * (self.lr * self.gamma)
        u += G""",
            ),
            ("Adam weighs D by β₁", "np.multiply(D, 1 - self.mu,", "np.multiply(D, self.mu,"),
            ("Adam's second moment starts at 0", "first = tau**2", "first = 0.0"),
            ("Adam forgets τ", "root += self.tau", "root += 0"),
            ("Yogi's second moment goes the other way", "v -= square", "v += square"),
            (
                "Yogi takes the sign of D² − v",
                "np.subtract(v, square, self._scratch(v))",
                "np.subtract(square, v, self._scratch(v))",
            ),
            ("SlowMo's gradient forgets γ", "G *= 1 / self.gamma", "G *= 1"),
            ("SlowMo steps with α alone", "self.lr * self.gamma, mean", "self.lr, mean"),
            (
                "SlowMo's sign",
                "G = np.subtract(w_tilde, mean, mean)",
                "G = np.subtract(mean, w_tilde, mean)",
            ),
        )
    ),
    Mutant(
        "SlowMo's step size is that of the round before",
        TRAINING["averaging"],
        "Due(scope, t, gamma, self.variance, last)",
        "Due(scope, t, self.__dict__.setdefault('old', gamma), self.variance, last)",
        f"{TESTS['in_process']}::test_a_run_is_the_oracles",
    ),
    Mutant(
        "the step comes before the division",
        TRANSPORT["lanes"],
        """\
        mean /= self.P if weights is None else weights.total
        spread = self.spread(counted(parts, weights), mean) if variance else 0.0
        rows[...] = mean if step is None else step(mean, columns)
""",
        """\
        new = mean if step is None else step(mean, columns)
        mean /= self.P if weights is None else weights.total
        spread = self.spread(counted(parts, weights), mean) if variance else 0.0
        rows[...] = new
""",
        f"{TESTS['in_process']}::test_a_run_is_the_oracles",
    ),
    Mutant(
        "rounding to the nearest level in QSGD",
        "localavg/parallel/wires/int8.py",
        "levels = np.floor(np.abs(x) * self._spread(scale, len(x)) + u)",
        "levels = np.rint(np.abs(x) * self._spread(scale, len(x)))",
        f"{TESTS['exchange']}::test_rounding_by_hand",
    ),
    # how a mean travels
    Mutant(
        "MPI's sum is divided by the ranks",
        TRANSPORT["mpi"],
        "group.learners if weights is None else weights.total\n        return mean",
        "self.world.size if weights is None else weights.total\n        return mean",
        DIVIDED,
    ),
    Mutant(
        "the sum of the lanes is divided by the ranks",
        TRANSPORT["shared"],
        "part.learners, self._scratch",
        "self.world.size, self._scratch",
        DIVIDED,
    ),
    Mutant(
        "the sum of the slots is divided by the ranks",
        TRANSPORT["slots"],
        "w.dtype.type(P),",
        "w.dtype.type(self.here.size),",
        f"{TESTS['transport']}::test_slots_divide_by_the_learners_not_by_the_ranks",
    ),
    Mutant(
        "lanes do not wait for everyone's rows",
        TRANSPORT["lanes"],
        FIRST_BARRIER,
        FIRST_BARRIER.replace("self.here.Barrier()", "pass"),
        f"{TESTS['late_ranks']}::test_lanes_wait_for_a_rank_whose_row_is_not_ready",
    ),
    Mutant(
        "lanes do not wait until all are written",
        TRANSPORT["lanes"],
        LAST_BARRIER,
        LAST_BARRIER.replace("self.here.Barrier()", "pass"),
        f"{TESTS['late_ranks']}::test_nobody_leaves_before_the_last_lane_is_written",
    ),
    Mutant(
        "all lanes begin at one node",
        TRANSPORT["lanes"],
        "comms[(i + k) % len(comms)]",
        "comms[k % len(comms)]",
        f"{TESTS['lanes']}::test_as_many_pieces_begin_at_one_node_as_at_the_other",
    ),
    Mutant(
        "a lane of one piece is summed as one of many",
        TRANSPORT["lanes"],
        "len(cut) == 1",
        "len(cut) == 0",
        f"{TESTS['lanes']}::test_a_lane_of_one_piece_is_summed_by_mpis_best_way",
    ),
    Mutant(
        "slots use one half",
        TRANSPORT["slots"],
        "self.turn = turn = 1 - self.turn",
        "self.turn = turn = 0",
        f"{TESTS['late_ranks']}::test_slots_are_not_written_while_a_rank_still_reads_them",
    ),
    # what a learner does
    Mutant(
        "shuffle is not redone each epoch",
        LEARNER["sampling"],
        "generator(self.seed, self.P, window, Stream",
        "generator(self.seed, self.P, 0, Stream",
        f"{TESTS['sampling']}::test_learners_of_an_epoch_have_disjoint_parts",
    ),
    Mutant(
        "the first epoch's shuffle is kept",
        LEARNER["sampling"],
        "if self._order is None or self._order[0] != window:",
        "if self._order is None:",
        f"{TESTS['sampling']}::test_learners_of_an_epoch_have_disjoint_parts",
    ),
    Mutant(
        "a shard is not reshuffled in each pass",
        LEARNER["sampling"],
        "generator(self.seed, j, k, Stream",
        "generator(self.seed, j, 0, Stream",
        f"{TESTS['sampling']}::test_a_pass_over_a_shard_repeats_no_row_and_the_next_one_is_"
        "reshuffled",
    ),
    # who works in a round, and how much a learner counts
    Mutant(
        "learners that rest count in the mean",
        ALGORITHMS["participants"],
        "n if j in drawn else 0 for",
        "n for",
        f"{TESTS['participants']}::test_a_round_has_m_learners_drawn_without_replacement_with_"
        "equal_chances",
    ),
    Mutant(
        "every round has the learners of the first",
        ALGORITHMS["participants"],
        "generator(self.seed, 0, self.r, Stream",
        "generator(self.seed, 0, 0, Stream",
        f"{TESTS['participants']}::test_a_round_has_m_learners_drawn_without_replacement_with_"
        "equal_chances",
    ),
    Mutant(
        "the rows at work are those of rank 0's learners",
        ALGORITHMS["participants"],
        "enumerate(self.learners) if j in drawn",
        "enumerate(self.learners) if l in drawn",
        f"{TESTS['participants']}::test_the_rows_at_work_are_those_of_the_drawn_learners",
    ),
    Mutant(
        "a tenth of the learners is rounded up",
        ALGORITHMS["participants"],
        "math.floor(round(self.C * P, 9))",
        "math.ceil(round(self.C * P, 9))",
        f"{TESTS['participants']}::test_a_tenth_of_the_learners_works_by_default",
    ),
    Mutant(
        "equal numbers of rows are weights above 1",
        ALGORITHMS["participants"],
        "[n // common for n in counts]",
        "[n for n in counts]",
        f"{TESTS['participants']}::test_rows_are_the_weights_in_lowest_terms",
    ),
    Mutant(
        "fedavg counts all learners alike",
        ALGORITHMS["participants"],
        '"rows" if self.C < 1 and examples else "equal"',
        '"equal"',
        f"{TESTS['participants']}::test_fedavg_weighs_by_rows_where_learners_have_their_own",
    ),
    Mutant(
        "a resumed run begins with the first round",
        ALGORITHMS["participants"],
        'self.r = int(state.get("round", 0))',
        "self.r = 0",
        f"{TESTS['participants']}::test_a_draw_depends_on_the_seed_and_the_round_alone",
    ),
    Mutant(
        "weights of learners are left out of the sum",
        TRANSPORT["lanes"],
        "total += row if weight == 1 else weight * row",
        "total += row",
        f"{TESTS['transport']}::test_rows_are_added_up_by_weight_and_those_of_weight_0_are_not_read",
    ),
    Mutant(
        "rows of weight 0 are read",
        TRANSPORT["lanes"],
        "            if weight:\n",
        "            if True:\n",
        f"{TESTS['transport']}::test_rows_are_added_up_by_weight_and_those_of_weight_0_are_not_read",
    ),
    Mutant(
        "a mean by weight is divided by the learners",
        TRANSPORT["lanes"],
        "mean /= self.P if weights is None else weights.total",
        "mean /= self.P",
        f"{TESTS['in_process']}::test_a_run_is_the_oracles",
    ),
    Mutant(
        "the round does not change at an average",
        TRAINING["averaging"],
        "                self.participants.next_()\n",
        "",
        f"{TESTS['in_process']}::test_a_run_is_the_oracles",
    ),
    Mutant(
        "learners that rest make updates",
        TRAINING["loop"],
        "update_(w_trained, g_trained, gamma, rows=rows)",
        "update_(w_trained, g_trained, gamma)",
        f"{TESTS['in_process']}::test_a_run_is_the_oracles",
    ),
    Mutant(
        "losses are means over all learners",
        TRAINING["recorder"],
        "sums[0] / (steps * self.working)",
        "sums[0] / (steps * P)",
        f"{TESTS['in_process']}::test_a_run_counts_the_work_and_the_losses_of_those_who_work",
    ),
    Mutant(
        "samples count the work of those who rest",
        TRAINING["monitor"],
        "samples = t * self.working * length.B",
        "samples = t * length.P * length.B",
        f"{TESTS['in_process']}::test_a_run_counts_the_work_and_the_losses_of_those_who_work",
    ),
    Mutant(
        "an update of some rows is of the first rows",
        LEARNER["optim"],
        "        for l in rows:\n",
        "        for l in range(len(rows)):\n",
        f"{LEARNER_TESTS}::test_an_update_of_some_rows_is_that_of_their_learners_alone",
    ),
    Mutant(
        "auto: averages may take as long as ε of an average",
        "localavg/algorithms/auto.py",
        "average_s / (EPSILON * update_s)",
        "EPSILON * average_s / update_s",
        "tests/algorithms/test_auto.py::test_the_period_is_that_of_averages_that_take_a_twentieth",
    ),
    Mutant(
        "auto: the period is rounded down",
        "localavg/algorithms/auto.py",
        "max(1, math.ceil(round(average_s",
        "max(1, math.floor(round(average_s",
        "tests/algorithms/test_auto.py::test_the_period_is_that_of_averages_that_take_a_twentieth",
    ),
    Mutant(
        "auto: the last round alone counts",
        "localavg/algorithms/auto.py",
        "(of.average_s, of.update_s)][-RECENT:]",
        "(of.average_s, of.update_s)][-1:] * RECENT",
        "tests/algorithms/test_auto.py::test_the_times_are_medians_of_the_last_five_rounds",
    ),
    Mutant(
        "auto: rounds whose times are not known count",
        "localavg/algorithms/auto.py",
        "if of.average_s >= 0 and of.update_s > 0:",
        "if True:",
        "tests/algorithms/test_auto.py::test_times_that_are_not_known_do_not_count",
    ),
    Mutant(
        "auto: what averages undo does not bound the period",
        "localavg/algorithms/auto.py",
        "best = best_K(average_s / update_s, self.x, by_time)",
        "best = by_time",
        "tests/algorithms/test_auto.py::test_what_averages_undo_bounds_the_period",
    ),
    Mutant(
        "auto: the losses of the same round are compared",
        "localavg/algorithms/auto.py",
        "if K > 1 and math.isfinite(of.first - l):",
        "l = of.last\n        if K > 1 and math.isfinite(of.first - l):",
        "tests/algorithms/test_auto.py::test_it_is_the_rule_in_words",
    ),
    Mutant(
        "auto: a loss is undone by all updates of a round",
        "localavg/algorithms/auto.py",
        "(of.first - l, (K - 1) * l)",
        "(of.first - l, K * l)",
        "tests/algorithms/test_auto.py::test_what_averages_undo_bounds_the_period",
    ),
    Mutant(
        "auto: updates are worth less by the loss, not its root",
        "localavg/algorithms/auto.py",
        "math.sqrt(1 + (K - 1) * x))",
        "(1 + (K - 1) * x))",
        "tests/algorithms/test_auto.py::test_the_best_period_is_the_best_of_all",
    ),
    Mutant(
        "auto: the period jumps",
        "localavg/algorithms/auto.py",
        "self.K = 2 * self.K if growing else wanted",
        "self.K = wanted",
        "tests/algorithms/test_auto.py::test_the_period_at_most_doubles",
    ),
    Mutant(
        "auto: one update a round for ever",
        "localavg/algorithms/auto.py",
        "look = self.K == best == 1 < by_time and self.ones >= SEEN",
        "look = False",
        "tests/algorithms/test_auto.py::test_learners_that_lose_all_at_an_average_average_always_and_look_again",
    ),
    Mutant(
        "auto: a resumed run forgets the rounds",
        "localavg/algorithms/auto.py",
        'self.rounds, self.undone = pairs["rounds"], pairs["undone"]',
        'self.rounds, self.undone = [], pairs["undone"]',
        "tests/algorithms/test_auto.py::test_it_resumes_where_it_was",
    ),
    Mutant(
        "auto: a resumed run forgets what averages undid",
        "localavg/algorithms/auto.py",
        'self.rounds, self.undone = pairs["rounds"], pairs["undone"]',
        'self.rounds, self.undone = pairs["rounds"], []',
        "tests/algorithms/test_auto.py::test_it_resumes_where_it_was",
    ),
    Mutant(
        "auto: a resumed run forgets where its period began",
        "localavg/algorithms/auto.py",
        "setattr(self, name, int(state[name]))",
        'setattr(self, name, int(state[name]) * (name != "cnt"))',
        "tests/algorithms/test_auto.py::test_it_resumes_where_it_was",
    ),
    Mutant(
        "auto: the last losses count twice",
        "localavg/training/losses.py",
        "rows[:, [0, -1]]",
        "rows[:, [-1, -1]]",
        "tests/algorithms/test_auto.py::test_losses_from_before_the_switch_do_not_count",
    ),
    Mutant(
        "auto: losses before its begin count",
        "localavg/training/averaging.py",
        "                self._heard.ends()  # of updates before it begins: they do not count\n",
        "",
        "tests/algorithms/test_auto.py::test_losses_from_before_the_switch_do_not_count",
    ),
    Mutant(
        "auto: ranks meet at every average",
        "localavg/algorithms/auto.py",
        "self.left, self.every = self.every, min(2 * self.every, EVERY)",
        "pass",
        "tests/algorithms/test_auto.py::test_ranks_meet_for_a_choice_after_more_and_more_averages",
    ),
    Mutant(
        "auto: a resumed run forgets the rounds since the last choice",
        "localavg/training/pace.py",
        "self.rounds = list(rows.swapaxes(0, 1))",
        "self.rounds = []",
        "tests/training/test_checkpoint.py::test_a_chosen_period_goes_on_to_the_same_bits",
    ),
    Mutant(
        "auto: after a recovery a round is as long as the run",
        "localavg/training/pace.py",
        "        self.t, self._before_s = int(t), (before_s[0], before_s[1])",
        "        self._before_s = before_s[0], before_s[1]",
        "tests/algorithms/test_auto.py::test_after_a_recovery_a_round_begins_where_the_run_goes_on",
    ),
    Mutant(
        "auto: the first round counts",
        "localavg/training/pace.py",
        "self.t, self.whole = t, False",
        "self.t, self.whole = t, True",
        "tests/algorithms/test_auto.py::"
        "test_updates_and_averages_are_timed_apart_and_what_is_outside_is_left_out",
    ),
    Mutant(
        "auto: evaluations count as updates",
        "localavg/training/pace.py",
        "now - self._last - (out_s - self._out_s)",
        "now - self._last",
        "tests/algorithms/test_auto.py::"
        "test_updates_and_averages_are_timed_apart_and_what_is_outside_is_left_out",
    ),
    Mutant(
        "auto: evaluations in a user's own loop count as updates",
        "localavg/attaching/look.py",
        "                    self.pace.go_on()",
        "                    pass",
        "tests/algorithms/test_auto.py::test_an_evaluation_of_the_averaged_model_is_no_update",
    ),
    Mutant(
        "auto: an update is as long as its round",
        "localavg/training/pace.py",
        "self.update_s / updates",
        "self.update_s",
        "tests/algorithms/test_auto.py::"
        "test_updates_and_averages_are_timed_apart_and_what_is_outside_is_left_out",
    ),
    Mutant(
        "auto: every rank chooses by its own times",
        "localavg/training/pace.py",
        "np.array(self.fleet.world.allgather(mine))",
        "np.array([mine])",
        "tests/algorithms/test_auto.py::test_ranks_of_different_speeds_choose_alike",
    ),
    Mutant(
        "auto: the last average after a merge counts as a round",
        "localavg/training/averaging.py",
        "if not (last and t == self.steered):",
        "if True:",
        "tests/training/test_delayed.py::test_a_schedule_gets_its_feedback_once_after_an_update",
    ),
    Mutant(
        "a replay of delayed averages begins them where they were merged",
        "localavg/training/replay.py",
        "rows.begun - t0",
        "rows.t - t0",
        "tests/algorithms/test_auto.py::test_a_replay_has_the_bits_of_the_run",
    ),
    Mutant(
        "hiding: the first round of delayed averages counts",
        "localavg/cli/bench/hiding.py",
        "        self._go(1, update)\n        self.fleet",
        "        self.fleet",
        "tests/cli/test_bench.py::"
        "test_a_round_ends_with_an_average_that_is_made_at_once_or_merged_a_round_later",
    ),
    Mutant(
        "hiding: an average is on its way when rounds have been timed",
        "localavg/cli/bench/hiding.py",
        "            flight.arrived()\n",
        "            pass\n",
        "tests/cli/test_bench.py::test_no_average_is_on_its_way_when_rounds_have_been_timed",
    ),
    Mutant(
        "hiding: the cores of one host count",
        "localavg/cli/bench/hiding.py",
        "return sum(min(ranks, cores[host])",
        "return max(min(ranks, cores[host])",
        "tests/cli/test_bench.py::test_the_cores_of_all_hosts_count",
    ),
    Mutant(
        "plan: a code sends as many bytes as float32",
        "localavg/cli/plan_rows.py",
        "predict(machine, nbytes, K",
        "predict(machine, 4 * floats, K",
        "tests/cli/test_plan_command.py::test_a_code_sends_fewer_bytes_between_nodes",
    ),
    Mutant(
        "plan: the last average is of one piece",
        "localavg/simulate/plan.py",
        "average_s * (fragments if t == n else 1)",
        "average_s",
        "tests/cli/test_plan_command.py::test_pieces_send_less_at_a_time_and_as_much_in_all",
    ),
    Mutant(
        "plan: factors of low rank carry numbers that are in no tensor",
        "localavg/cli/plan_rows.py",
        "+ 4 * (floats - sum(map(math.prod, tensors)))",
        "",
        "tests/cli/test_plan_command.py::test_factors_of_a_rank_send_what_the_shapes_say",
    ),
    Mutant(
        "plan: an average takes no time inside a node",
        "localavg/simulate/plan.py",
        "within = part * self.node_s if self.ranks > 1 else 0.0",
        "within = 0.0",
        "tests/simulate/test_plan.py::test_averages_at_once_add_up",
    ),
    Mutant(
        "plan: a delayed average is merged an update late",
        "localavg/simulate/plan.py",
        "if scope and t == begun + delay:",
        "if scope and t == begun + delay + 1:",
        "tests/simulate/test_plan.py::test_delayed_averages_cost_what_their_updates_do_not_hide",
    ),
    Mutant(
        "plan: an average that falls due while another is on its way is forgotten",
        "localavg/simulate/plan.py",
        "            waiting = due",
        "            pass",
        "tests/simulate/test_plan.py::test_an_average_that_falls_due_waits_for_the_one_on_its_way",
    ),
    Mutant(
        "plan: the bytes of an average are those of half of it",
        "localavg/simulate/plan.py",
        "return 2 * (self.nodes - 1) / self.nodes * nbytes",
        "return (self.nodes - 1) / self.nodes * nbytes",
        "tests/simulate/test_plan.py::test_averages_at_once_add_up",
    ),
    Mutant(
        "plan: the bytes of a long run are those of the part that was modelled",
        "localavg/simulate/plan.py",
        "link_bytes=whole * made",
        "link_bytes=made",
        "tests/simulate/test_plan.py::test_a_long_run_is_extrapolated",
    ),
    Mutant(
        "plan: averages inside the measured node count as those of a link",
        "localavg/simulate/plan.py",
        "return Machine(timing, 1, ranks, seconds)",
        "return Machine(timing, ranks, 1, seconds)",
        "tests/simulate/test_plan.py::"
        "test_a_run_in_one_node_gives_the_average_inside_and_one_between_nodes_that_of_the_link",
    ),
    Mutant(
        "learners that rest take modelled time",
        "localavg/simulate/clock.py",
        "if weights is None or weights[j]:",
        "if True:",
        "tests/simulate/test_machine.py::"
        "test_learners_that_rest_take_no_time_and_wait_for_the_round_to_end",
    ),
    Mutant(
        "a log counts losses of learners that rest",
        "localavg/attaching/averager.py",
        "loss if self.participates else 0.0",
        "loss",
        "tests/attaching/test_rounds.py::"
        "test_the_log_counts_the_work_and_the_losses_of_those_who_work",
    ),
    Mutant(
        "a pass over rows of its own begins one update late",
        LEARNER["sampling"],
        "start = (first - passes.start * each) * self.B",
        "start = (first - passes.start * each + 1) * self.B",
        f"{TESTS['partition']}::test_a_learner_passes_over_its_own_rows_again_and_again",
    ),
    Mutant(
        "all learners' passes are as long as the first one's",
        LEARNER["sampling"],
        "return self.held[j] // self.B",
        "return self.held[0] // self.B",
        f"{TESTS['partition']}::test_a_learner_passes_over_its_own_rows_again_and_again",
    ),
    Mutant(
        "the order of another pass is kept",
        LEARNER["sampling"],
        "is not None and kept[0] == k:",
        "is not None:",
        f"{TESTS['partition']}::test_a_long_pass_is_one_permutation_over_many_windows",
    ),
    Mutant(
        "dirichlet takes a for every class",
        LEARNER["partition"],
        "q = random.dirichlet(a * n_k / len(y))  # [C]",
        "q = random.dirichlet(a * np.ones(len(n_k)))  # [C]",
        f"{TESTS['partition']}::test_dirichlet_follows_the_class_frequencies_with_parameters_a_p",
    ),
    Mutant(
        "dirichlet gives a row twice",
        LEARNER["partition"],
        "        left -= takes\n",
        "",
        f"{TESTS['partition']}::test_no_row_has_two_owners_and_they_lie_in_order",
    ),
    Mutant(
        "the last learner's share of a class is lost",
        LEARNER["partition"],
        "(np.cumsum(shares)[:-1] * len(rows))",
        "(np.cumsum(shares) * len(rows))",
        f"{TESTS['partition']}::test_no_row_has_two_owners_and_they_lie_in_order",
    ),
    Mutant(
        "shards are dealt in order",
        LEARNER["partition"],
        "random.permutation(blocks).reshape",
        "np.arange(blocks).reshape",
        f"{TESTS['partition']}::test_shards_are_equal_blocks_of_the_rows_sorted_by_label",
    ),
    Mutant(
        "a learner has one label more",
        LEARNER["partition"],
        "int(c) - 1, replace=False",
        "int(c), replace=False",
        f"{TESTS['partition']}::test_labels_are_exactly_c_of_which_the_first_goes_round",
    ),
    Mutant(
        "a draw with too few rows is kept",
        LEARNER["partition"],
        "if smallest >= least:",
        "if smallest >= 1:",
        f"{TESTS['partition']}::test_a_draw_with_a_learner_of_too_few_rows_is_repeated_and_counted",
    ),
    Mutant(
        "two learners' rows are swapped",
        "localavg/problems/engines/loop.py",
        "list(zip(self.learners, w, out, strict=True))",
        "list(zip(self.learners, w, [out[1], out[0], *out[2:]], strict=True))",
        f"{TESTS['in_process']}::test_a_run_is_the_oracles",
    ),
    Mutant(
        "the batch engine forgets BatchNorm's running variance",
        "localavg/problems/engines/norms.py",
        "        var.lerp_(square[:, 0] * (m / (m - 1)), momentum)\n",
        "",
        f"{TESTS['batch']}::test_every_model_has_the_gradients_of_the_loop_and_trains_alike[nin]",
    ),
    Mutant(
        "the batch engine gives every learner the dropout of its neighbour",
        "localavg/problems/engines/masks.py",
        "for l, seed in enumerate(seeds):",
        "for l, seed in enumerate([*seeds[1:], seeds[0]]):",
        f"{TESTS['batch']}::test_any_module_is_computed_though_the_engine_knows_few_layers",
    ),
    # what a user's own loop must not do in silence
    Mutant(
        "ranks average although they differ",
        "localavg/parallel/agreement.py",
        "if least != -most or least < 0 or",
        "if least < 0 or",
        f"{TESTS['agreement']}::test_ranks_that_differ_get_an_error",
    ),
    Mutant(
        "ranks exchange gradients of different parameters",
        "localavg/parallel/agreement.py",
        " or first != -last:",
        ":",
        f"{TESTS['agreement']}::test_ranks_that_train_different_parameters_get_an_error",
    ),
    Mutant(
        "what takes part in an exchange is not compared",
        "localavg/attaching/exchange.py",
        ", taking=gradients.taking)",
        ")",
        f"{TESTS['even']}::test_an_update_exchanges_everything_or_says_what_not",
    ),
    Mutant(
        "an average of attach begins without the agreement",
        "localavg/attaching/around.py",
        "        self.meetings.meet(What.AVERAGE, scope)\n",
        "",
        f"{ENDS}[2-uneven-openmpi]",
    ),
    Mutant(
        "CuPy's work for an averager is queued in CuPy's own stream",
        "localavg/attaching/place.py",
        "            stack.enter_context(self.device.xp.cuda.Stream.from_external(now))\n",
        "",
        f"{TESTS['streams']}::test_a_loop_in_any_stream_has_the_bits_of_the_cpu",
    ),
    Mutant(
        "the first average of gradients on a GPU is queued in CuPy's own stream",
        "localavg/attaching/exchange.py",
        "with self.watching(), self.place.here():\n                self._exchange(1 << i)\n",
        "if True:\n                self._exchange(1 << i)\n",
        f"{TESTS['streams']}::test_a_loop_in_any_stream_has_the_bits_of_the_cpu",
    ),
    Mutant(
        "a step in a capture counts as an update",
        "localavg/attaching/place.py",
        "if cuda.is_current_stream_capturing():",
        "if False:",
        f"{TESTS['streams']}::test_a_step_in_a_capture_is_refused_and_does_not_count",
    ),
    Mutant(
        "a model's GPU is that of its rank's place",
        "localavg/attaching/place.py",
        'choose_device("cuda", fleet, place=where.index)',
        'choose_device("cuda", fleet, place=None)',
        f"{TESTS['streams']}::test_cupy_takes_the_models_gpu_or_one_line_tells_what_to_install",
    ),
    Mutant(
        "masters forget what rounding cut off",
        "localavg/attaching/row.py",
        "                part.add_(change)\n",
        "                part.copy_(memory)\n",
        f"{SMALLER}[2-bf16-mavg-master]",
    ),
    Mutant(
        "parameters of a smaller type do not get the average",
        "localavg/attaching/around.py",
        "        self.flat.store_()\n        self.meetings.leave()\n        self.variance, self.began",
        "        self.meetings.leave()\n        self.variance, self.began",
        f"{SMALLER}[1-bf16-mavg]",
    ),
    Mutant(
        "an average takes parameters of a smaller type as they were",
        "localavg/attaching/around.py",
        "        self.flat.load_()\n        if scope in",
        "        if scope in",
        f"{SMALLER}[1-bf16-mavg]",
    ),
    Mutant(
        "optimizers do not get gradients of a smaller type",
        "localavg/attaching/exchange.py",
        "        gradients.row.store_()\n",
        "",
        f"{SMALLER}[2-bf16-sync]",
    ),
    Mutant(
        "the averaged state of a smaller type is not written back",
        "localavg/attaching/state.py",
        "            row.store_()\n",
        "",
        f"{SMALLER}[2-bf16-average]",
    ),
    Mutant(
        "a look at the average adds to the masters twice",
        "localavg/attaching/look.py",
        "            own = flat.copied()\n            flat.load_()\n",
        "            flat.load_()\n            own = flat.copied()\n",
        f"{RESTARTED}[1-mixed-mavg-master]",
    ),
    Mutant(
        "a restart begins with rounded masters",
        "localavg/attaching/saved.py",
        '        x.copy_(state["master"][name])\n',
        "        pass\n",
        f"{RESTARTED}[1-mixed-mavg-master]",
    ),
    Mutant(
        "tensors in a row lose their strides",
        "localavg/attaching/row.py",
        'torch.empty_like(like, device="meta").stride()',
        'torch.empty(like.shape, device="meta").stride()',
        f"{TESTS['types']}::test_what_users_do_around_a_step_changes_nothing[1]",
    ),
    Mutant(
        "ranks average tensors of other strides",
        "localavg/attaching/checks.py",
        ", strides {x.stride()}",
        "",
        f"{TESTS['averager']}::test_mistakes_are_told_on_every_rank[2]",
    ),
    Mutant(
        "neighbours of a smaller type are converted one by one",
        "localavg/attaching/row.py",
        "groupby(like, lambda name: like[name].dtype)",
        "((like[name].dtype, [name]) for name in like)",
        f"{TESTS['types']}::test_an_average_converts_all_tensors_of_a_type_at_once[1]",
    ),
    Mutant(
        "a rank whose program ends early meets nobody",
        "localavg/parallel/agreement.py",
        "        atexit.register(self._end)\n",
        "",
        f"{ENDS}[2-early end-openmpi]",
    ),
    Mutant(
        "a fleet lets an exception of one rank pass",
        "localavg/parallel/fleet.py",
        "            abort_on_exception(world)\n",
        "            pass\n",
        f"{ENDS}[2-raises-openmpi]",
    ),
    Mutant(
        "the second optimiser does not exchange",
        "localavg/attaching/exchange.py",
        "if closure or not self.gradients.used(i):",
        "if closure or (i == 0 and not self.gradients.used(i)):",
        f"{TESTS['even']}::test_the_second_optimizer_exchanges_its_gradients_too",
    ),
    Mutant(
        "averagers that take turns differently meet",
        "localavg/parallel/agreement.py",
        "        mark |= self._number << 16\n",
        "",
        f"{TESTS['even']}::test_ranks_that_differ_say_where_each_of_them_is[2-two averagers]",
    ),
    Mutant(
        "an uncaught exception leaves the log of attach running",
        "localavg/attaching/log.py",
        "        on_exception(self.end.failed)\n",
        "",
        "tests/attaching/test_log.py::test_however_a_program_ends_its_file_says_it[raises]",
    ),
    Mutant(
        "a model that is not finite ends as finished",
        "localavg/attaching/averager.py",
        '"failed" if why else "finished"',
        '"finished"',
        "tests/attaching/test_log.py::test_a_model_that_is_not_finite_fails_and_says_so_once",
    ),
    Mutant(
        "the wait for another rank's rows counted as computing",
        TRANSPORT["mpi"],
        "        digests = set(self.world.allgather(mine))\n        self.laps.met()\n",
        "        digests = set(self.world.allgather(mine))\n",
        "tests/training/test_times.py::test_whoever_compares_its_rows_early_waits",
    ),
    Mutant(
        "steps of an optimiser that was not given pass",
        "localavg/attaching/gradients.py",
        "            self.stranger = type(optimizer).__name__\n",
        "            pass\n",
        f"{TESTS['even']}::test_a_new_optimizer_for_a_part_is_told",
    ),
    Mutant(
        "a run whose process is gone counts as running",
        "localavg/files/reading.py",
        'written == "running" and process.gone(process_)',
        "False",
        f"{TESTS['record']}::test_a_run_whose_process_is_gone_died_and_one_that_cannot_be_seen_is_left",
    ),
    Mutant(
        "a run of another host that is silent is said to have died",
        "localavg/cli/watch.py",
        '"silent" if state.why',
        '"died" if state.why',
        f"{TESTS['status']}::test_a_run_that_died_is_told_from_one_that_cannot_be_seen",
    ),
    Mutant(
        "the time left counts the updates before the rows that are looked at",
        "localavg/cli/sweep/state.py",
        "(last.t - first.t) / took_s",
        "last.t / took_s",
        f"{TESTS['status']}::test_a_watch_shows_the_pace_until_no_run_runs",
    ),
    Mutant(
        "a table of runs leaves out bytes between nodes",
        "localavg/files/shown.py",
        "averages.bytes_node.sum() + averages.bytes_cross.sum()",
        "averages.bytes_node.sum()",
        f"{TESTS['record']}::test_runs_are_compared_in_a_table",
    ),
    Mutant(
        "a new module is no change of the package",
        "localavg/files/git.py",
        "bool(there - set(blobs)) or ",
        "",
        f"{TESTS['record']}::test_provenance_knows_the_commit_and_whether_the_package_was_changed",
    ),
    # a run from Python
    Mutant(
        "a call takes a number in quotes",
        "localavg/cli/given.py",
        "if not isinstance(value, Real) or isinstance(value, bool):",
        "if isinstance(value, bool):",
        f"{TESTS['library']}::test_what_only_python_can_ask_is_refused_by_its_name",
    ),
    Mutant(
        "a call leaves NumPy with the threads of its run",
        "localavg/library.py",
        "with threadpool_limits(limits=None):",
        "if threadpool_limits:",
        f"{TESTS['library']}::test_a_call_is_the_command_and_leaves_nothing_behind",
    ),
    Mutant(
        "the communicators of a run stay",
        "localavg/training/run.py",
        "fleet.free()",
        "pass",
        f"{TESTS['library']}::test_a_call_is_the_command_and_leaves_nothing_behind",
    ),
    Mutant(
        "after Ctrl-C a program makes its next run",
        "localavg/library.py",
        'if by == "SIGINT":',
        "if False:",
        f"{TESTS['library']}::test_a_signal_saves_the_run_and_ends_the_program",
    ),
    Mutant(
        "a call tries whether MPI takes GPU memory",
        "localavg/library.py",
        "aware = probe.known()",
        "aware = probe.probed()",
        f"{TESTS['library']}::test_whether_mpi_takes_gpu_memory_is_read_and_not_tried",
    ),
    # what a run remembers when it is resumed
    Mutant(
        "the optimiser's state is forgotten at resume",
        LEARNER["optim"],
        "            put_(s, state[str(i)])",
        "            pass",
        RESUMED,
    ),
    Mutant(
        "Adam's t is forgotten at resume",
        LEARNER["optim"],
        "self.t = [int(t) for t in both]",
        "self.t = [0, 0]",
        RESUMED,
    ),
    Mutant(
        "the outer moments are forgotten at resume",
        ALGORITHMS["outer"],
        "put_(mine, state[name])",
        'put_(mine, state[name]) if name == "w_tilde" else None',
        RESUMED,
    ),
    Mutant(
        "the last average is forgotten at resume",
        ALGORITHMS["outer"],
        "put_(mine, state[name])",
        'put_(mine, state[name]) if name != "w_tilde" else None',
        RESUMED,
    ),
    Mutant(
        "the steered period is forgotten at resume",
        ALGORITHMS["base"],
        "            setattr(self, name, state[name])",
        "            pass",
        RESUMED,
    ),
    Mutant(
        "a resumed run chooses the chunks of its learners anew",
        TRAINING["loop"],
        '        "engine": e.engine,\n',
        "",
        f"{TESTS['stacked']}::test_a_run_is_that_of_loop_and_resumes_to_the_same_bits",
    ),
    Mutant(
        "two learners' rows are swapped at resume",
        TRAINING["resume"],
        'put_(w, state["weights"]["w"])',
        'put_(w, state["weights"]["w"][[1, 0, 2, 3]])',
        RESUMED,
    ),
    Mutant(
        "the clock is forgotten at resume",
        TRAINING["monitor"],
        'self.clock.start(state["seconds"].tolist())',
        "self.clock.start()",
        f"{TESTS['checkpoint']}::test_the_clock_goes_on_where_it_was",
    ),
    # the center variable
    Mutant(
        "EAMSGD's learner moves and the center does not",
        ALGORITHMS["eamsgd"],
        "        reply *= self.alpha\n        center += reply",
        "        reply *= self.alpha",
        f"{TESTS['asynchronous']}::test_an_elastic_exchange_conserves_the_sum",
    ),
    Mutant(
        "a message is sent before it has come from the GPU",
        "localavg/training/asynchronous/mail.py",
        "stream.record().synchronize()",
        "stream.record()",
        AROUND,
    ),
    Mutant(
        "a server takes a GPU",
        "localavg/training/asynchronous/run.py",
        'roles.learners and c.device == "cuda"',
        'c.device == "cuda"',
        AROUND,
    ),
    Mutant(
        "the GPU's computing before a push counts as communicating",
        "localavg/training/asynchronous/client.py",
        """\
        pushed = local.take_losses(learner)  # a GPU has computed all of it then
        clock.lap("compute")
""",
        """\
        clock.lap("compute")
        pushed = local.take_losses(learner)
""",
        f"{TESTS['asynchronous_device']}::test_the_time_in_which_the_device_computes_is_computing",
    ),
    # job arrays, launch lines, packaging
    Mutant(
        "all runs of a sweep get the nodes of the largest",
        "localavg/cli/sweep/arrays.py",
        "nodes = 1 if one_gpu else ceil(ranks / node.ranks)",
        "nodes = 1 if one_gpu else ceil(max(r.ranks for r in runs) / node.ranks)",
        f"{TESTS['sweep']}::test_every_number_of_ranks_is_an_array_with_the_nodes_that_it_needs",
    ),
    Mutant(
        "runs smaller than a node are not packed",
        "localavg/cli/sweep/arrays.py",
        "pack = 1 if one_gpu else max(1, node.ranks // ranks)",
        "pack = 1",
        f"{TESTS['sweep']}::test_small_runs_go_several_at_once_on_one_node",
    ),
    Mutant(
        "runs without GPUs ask for them",
        "localavg/cli/sweep/arrays.py",
        "gpus=gpus if on_gpu else 0,",
        "gpus=gpus,",
        f"{TESTS['sweep']}::test_every_number_of_ranks_is_an_array_with_the_nodes_that_it_needs",
    ),
    Mutant(
        "hours are those of one rank",
        "localavg/cli/sweep/arrays.py",
        "work(run, rows) / (per_s * computing(run))",
        "work(run, rows) / per_s",
        f"{TESTS['sweep']}::test_hours_are_work_by_the_rate_of_a_rank",
    ),
    Mutant(
        "a sweep is submitted without its data",
        "localavg/cli/sweep/submit.py",
        "lacking = [*without_data(todo), *_to_fill_in(",
        "lacking = [*_to_fill_in(",
        f"{TESTS['sweep']}::test_nothing_is_submitted_before_data_account_and_partition_are_there",
    ),
    Mutant(
        "steps at the same time wait for each other",
        "localavg/cli/sweep/launch.py",
        '        words.append("--exact")\n',
        "",
        f"{TESTS['sweep']}::test_words_of_launchers",
    ),
    Mutant(
        "runs at the same time take the same GPUs",
        "localavg/cli/sweep/launch.py",
        "gpus, self._free = self._free[:each], self._free[each:]",
        "gpus = self._free[:each]",
        f"{TESTS['sweep']}::test_several_runs_at_once_share_the_gpus",
    ),
    Mutant(
        "the period forgets that averages are a part of the whole",
        "localavg/cli/doctor/facts.py",
        "self.average_s * (1 - PART) / (PART",
        "self.average_s / (PART",
        f"{TESTS['doctor']}::test_the_period_keeps_averages_under_five_hundredths_of_the_time",
    ),
    Mutant(
        "a sweep forgets that Fashion-MNIST has a file",
        "localavg/cli/sweep/lacking.py",
        'if name == "fashion-mnist":',
        'if name == "":',
        f"{TESTS['sweep']}::"
        "test_a_plan_names_each_missing_data_set_once_and_says_what_its_columns_mean",
    ),
    Mutant(
        "data that the jobs copy is missed where the sweep is submitted",
        "localavg/cli/sweep/lacking.py",
        " and file not in staged",
        "",
        f"{TESTS['sweep']}::"
        "test_a_plan_names_each_missing_data_set_once_and_says_what_its_columns_mean",
    ),
    Mutant(
        "LSF copies data to the host of the script alone",
        "jobs/modules.sh",
        'for host in $(sort -u "$LSB_DJOB_HOSTFILE"); do',
        'for host in $(sort -u "$LSB_DJOB_HOSTFILE" | head -n 1); do',
        "tests/project/test_lsf.py::test_data_is_on_every_node_while_the_run_lasts[train.lsf]",
    ),
    Mutant(
        "a copy that failed on one host starts the run",
        "jobs/modules.sh",
        'wait "$task" || status=$?',
        'wait "$task" || true',
        "tests/project/test_lsf.py::test_data_is_on_every_node_while_the_run_lasts[train.lsf]",
    ),
    Mutant(
        "an unknown algorithm gets no hint",
        "localavg/algorithms/__init__.py",
        "if like else OWN",
        'if like else ""',
        f"{TESTS['cli']}::test_an_algorithm_that_is_like_none_is_told_where_ones_own_belong",
    ),
    Mutant(
        "an interrupted LSF job is requeued for ever",
        "jobs/modules.sh",
        '[ "$1" = 75 ] && [ "$n" -lt "$requeues" ]',
        '[ "$1" = 75 ]',
        "tests/project/test_lsf.py::test_a_job_is_requeued_so_many_times_and_no_more",
    ),
    Mutant(
        "an option's default changes and the pages keep the old one",
        "localavg/algorithms/diloco.py",
        'Period("K", 500,',
        'Period("K", 400,',
        "tests/project/test_readme.py::test_generated_parts_are_up_to_date[docs/command-line.md]",
    ),
    Mutant(
        "preparing alone loads MPI",
        "localavg/cli/prepare/options.py",
        "return world() if launched() else None",
        "return world()",
        f"{TESTS['prepare']}::test_one_process_prepares_where_no_mpi_can_be_loaded",
    ),
    # sweeps at scale gpu
    Mutant(
        "at scale gpu the paper's ranks count",
        "localavg/cli/sweep/file.py",
        'or scale != "gpu"',
        "or True",
        ON_ONE,
    ),
    Mutant(
        "at scale gpu a block has not the paper's options",
        "localavg/cli/sweep/file.py",
        "_section(block, name, scale)) for name in scales(scale)",
        "_section(block, name, scale)) for name in [scale]",
        ON_ONE,
    ),
    Mutant(
        "asynchronous algorithms at scale gpu are measured",
        "localavg/cli/sweep/file.py",
        '({"simulate": True} if block["algorithm"] in ASYNCHRONOUS else {})',
        "{}",
        ON_ONE,
    ),
    Mutant(
        "hours of one learner's work",
        "localavg/cli/sweep/cost.py",
        ".T * P * c.batch_size",
        ".T * c.batch_size",
        f"{TESTS['sweep_gpu']}::test_hours_are_the_examples_of_all_learners_by_the_rate",
    ),
    # where the time goes
    Mutant(
        "data counted as computing",
        TRAINING["stopwatch"],
        "        self.seconds[name] += seconds\n        self._last += seconds",
        "        self._last += 0",
        WAITS,
    ),
    Mutant(
        "communication is the maximum over ranks",
        TRAINING["recorder"],
        "fastest, MPI.MIN)",
        "fastest, MPI.MAX)",
        WAITS,
    ),
    Mutant(
        "S counted as communication",
        TRAINING["recorder"],
        'self.clock.book("compute", self.transport.take_spread_s())',
        "self.transport.take_spread_s()",
        WAITS,
    ),
    Mutant(
        "the evaluation counted in wall_s",
        TRAINING["monitor"],
        """            self.progress.evaluated(t, row["train_loss"], row["test_accuracy"])
        self.clock.lap("outside")""",
        """            self.progress.evaluated(t, row["train_loss"], row["test_accuracy"])
        self.clock.lap("compute")""",
        f"{TESTS['monitor']}::test_the_next_row_does_not_count_the_evaluation",
    ),
    Mutant(
        "meetings forgotten at resume",
        TRAINING["monitor"],
        '        self.clock.meetings[:] = state["meetings"].tolist()\n',
        '        self.clock.meetings[:] = [0.0] * len(state["meetings"])\n',
        f"{TESTS['monitor']}::test_a_resumed_run_counts_what_was_before_it",
    ),
    Mutant(
        "settle dropped before a lap",
        TRAINING["recorder"],
        """        self.transport.settle()
        self.clock.met()

    def pace""",
        """        self.clock.met()

    def pace""",
        f"{TESTS['monitor']}::test_queued_work_is_waited_for_before_its_time_is_taken",
    ),
    Mutant(
        "a copy that does not wait for its buffer",
        TRANSPORT["staged"],
        "                self.down.wait_event(returned[k - 2])  # the buffer is free",
        "                pass",
        ON_DEVICE,
    ),
    Mutant(
        "a copy that does not wait for the kernels",
        TRANSPORT["staged"],
        "        self.down.wait_event(main.record())",
        "        main.record()",
        ON_DEVICE,
    ),
    # what travels coded
    Mutant(
        "the mean coded with a learner's draws",
        ALGORITHMS["qsgd"],
        "uniform(self.seed, 0, t, Stream.MEAN_ROUNDING, start, stop)",
        "uniform(self.seed, 0, t, Stream.ROUNDING, start, stop)",
        f"{TESTS['exchange']}::test_rounding_is_drawn_anew_by_learner_step_and_seed_and_for_the_mean",
    ),
    Mutant(
        "draws of a slice from its own beginning",
        "localavg/streams.py",
        "    bits.advance(start // DRAWN)\n",
        "",
        f"{TESTS['exchange']}::test_any_part_of_the_draws_is_the_part_of_all",
    ),
    # nothing goes wrong in silence: data, files and the command line
    Mutant(
        "deep grey becomes white",
        "localavg/datasets/jpegs.py",
        "(values >> 8).astype(np.uint8)",
        "values.clip(0, 255).astype(np.uint8)",
        f"{TESTS['damage']}::test_grey_of_16_bits_keeps_256_levels",
    ),
    Mutant(
        "damaged pictures are prepared",
        "localavg/datasets/image_writer.py",
        "        self._checker.finish()",
        "        pass",
        f"{TESTS['damage']}::test_every_picture_that_cannot_be_used_is_named_in_one_error",
    ),
    Mutant(
        "an unreadable picture is blamed on the output",
        "localavg/datasets/folder.py",
        'with clear_errors(f"{path} cannot be read", "make it readable, or remove it"):',
        "if True:",
        f"{TESTS['damage']}::test_a_picture_that_cannot_be_read_is_named_and_not_the_output",
    ),
    Mutant(
        "an empty word is a value",
        "localavg/cli/parser.py",
        'if "" in arg_strings:',
        "if False:",
        f"{TESTS['cli']}::test_no_option_takes_an_empty_word",
    ),
    Mutant(
        "a run file is to hold any integer",
        "localavg/cli/parser.py",
        "abs(value) > LARGEST",
        "False",
        f"{TESTS['cli']}::test_no_option_takes_an_integer_that_a_run_file_cannot_hold",
    ),
    Mutant(
        "a fraction of an update is cut off",
        "localavg/algorithms/parameters.py",
        " or int(value) != value",
        "",
        f"{TESTS['cli']}::test_a_bad_option_of_an_algorithm_is_refused_by_name",
    ),
    Mutant(
        "of an option given twice in a section one has no effect",
        "localavg/cli/sweep/plan.py",
        "            self.refuse_twice(section, level)\n",
        "",
        f"{TESTS['sweep']}::test_a_mistake_is_one_line_that_names_file_section_and_option",
    ),
    Mutant(
        "output that is lost is a success",
        "localavg/cli/output.py",
        "            _Out.error = error\n",
        "",
        f"{TESTS['silence']}::test_output_on_a_full_disk_is_one_line_and_no_success",
    ),
    Mutant(
        "hidden files are pictures",
        "localavg/datasets/folder.py",
        " and not _hidden(path) and ",
        " and ",
        f"{TESTS['damage']}::test_hidden_files_are_skipped_as_hidden_folders_are_and_all_are_counted",
    ),
    Mutant(
        "rows without room are read to the end",
        "localavg/datasets/libsvm.py",
        "    check()\n",
        "",
        f"{TESTS['prepare']}::test_rows_that_fill_the_disk_are_refused_as_soon_as_they_are_read",
    ),
    Mutant(
        "a file that is open elsewhere is opened with another lock",
        "localavg/files/hdf5.py",
        'for locking in (None, "best-effort", True):',
        "for locking in ():",
        f"{TESTS['record']}::test_a_file_that_is_open_elsewhere_is_read",
    ),
    Mutant(
        "a closed pipe ends a command",
        "localavg/cli/output.py",
        "        except BrokenPipeError:\n            return memoryview(data).nbytes",
        "        except BrokenPipeError:\n            raise",
        f"{TESTS['silence']}::test_a_closed_pipe_is_no_traceback",
    ),
    Mutant(
        "one learner is not told that nothing is averaged",
        "localavg/training/run.py",
        "    if P == 1:",
        "    if P == 0:",
        f"{TESTS['silence']}::test_one_learner_averages_nothing_which_is_printed",
    ),
    Mutant(
        "images are shuffled and their labels are not",
        "localavg/datasets/mnist.py",
        'splits["train"] = x[order], y[order]',
        'splits["train"] = x[order], y',
        "tests/datasets/test_mnist.py::test_rows_are_shuffled_and_transposed_as_told",
    ),
    Mutant(
        "features are sorted and their labels are not",
        "localavg/datasets/two_classes.py",
        "x, y = x[order], y[order]",
        "x = x[order]",
        "tests/datasets/test_mnist.py::test_features_are_pixels_of_norm_1_and_the_classes_asked_for_are_positive",
    ),
    Mutant(
        "finish takes the step size of the next update",
        "localavg/attaching/averager.py",
        "average_(self.t, self._gamma, last=True)",
        "average_(self.t, step_size(self.optimizers), last=True)",
        f"{TESTS['types']}::test_finish_takes_the_step_size_of_the_last_update",
    ),
    # the learners of one GPU
    Mutant(
        "a step does not wait for its side streams",
        PROBLEMS["engines/graph"],
        "forking.wait_stream(side)",
        "pass",
        f"{RACES}[mlp-3]",
    ),
    Mutant(
        "side streams do not wait for the batches",
        PROBLEMS["engines/graph"],
        "side.wait_stream(forking)",
        "pass",
        f"{RACES}[mlp-3]",
    ),
    Mutant(
        "learners take the next side stream only after the one before is joined",
        PROBLEMS["engines/graph"],
        "self._losses[l].copy_(bound.gradient_(x[l], y[l]))",
        "self._losses[l].copy_(bound.gradient_(x[l], y[l]))\n"
        "            for side in self.sides:\n"
        "                side.wait_stream(self.sides[l % len(self.sides)])",
        f"{TESTS['graph']}::test_learners_of_a_step_do_not_wait_for_each_other",
    ),
    Mutant(
        "losses are those of the last replay",
        PROBLEMS["engines/graph"],
        "[self._losses.clone()]",
        "[self._losses]",
        f"{TESTS['graph']}::test_losses_that_are_kept_do_not_change_with_later_replays",
    ),
    Mutant(
        "all learners have the masks of the first",
        PROBLEMS["engines/graph"],
        "draw_(self.feed.seeds(self.learners, t), self.masks)",
        "draw_(self.feed.seeds(self.learners[:1], t) * len(self.learners), self.masks)",
        f"{SAME}[drawing-float32]",
    ),
    Mutant(
        "a dropout takes the mask of the one before",
        PROBLEMS["engines/masks"],
        "turns = cycle(masks)",
        "turns = cycle(masks[1:])",
        f"{SAME}[drawing-float32]",
    ),
    Mutant(
        "main does not wait for the first steps of an engine",
        PROBLEMS["engines/capture"],
        "main.wait_stream(self._stream)",
        "pass",
        f"{TESTS['graph']}::test_a_replayed_batch_gives_the_bits_of_the_batch[mlp-float32]",
    ),
    Mutant(
        "the first steps of an engine do not wait for main",
        PROBLEMS["engines/capture"],
        "self._stream.wait_stream(main)",
        "pass",
        f"{TESTS['graph']}::test_a_replayed_batch_gives_the_bits_of_the_batch[mlp-float32]",
    ),
    Mutant(
        "the feed on a GPU is one update late",
        PROBLEMS["device_feed"],
        "divmod(t - 1, self.length)",
        "divmod(max(0, t - 2), self.length)",
        f"{ON_CPU}[iid-both-3]",
    ),
    Mutant(
        "numbers are drawn again while the GPU may still read them",
        PROBLEMS["ahead"],
        "window.copied.synchronize()",
        "pass",
        f"{TESTS['device_feed']}::test_numbers_are_drawn_again_only_when_the_gpu_has_read_them",
    ),
    Mutant(
        "row numbers are drawn again while the GPU may still read them",
        PROBLEMS["row_numbers"],
        "window.copied = stream.record()",
        "pass",
        f"{TESTS['stacked']}::test_pinned_memory_is_written_again_only_when_it_was_copied",
    ),
    Mutant(
        "row numbers of a window are sent only once",
        PROBLEMS["row_numbers"],
        "if k != self._window:",
        "if self._window < 0:",
        f"{TESTS['stacked']}::test_losses_and_gradients_are_those_of_one_learner_after_the_other",
    ),
    Mutant(
        "every chunk of learners has the row numbers of the first",
        PROBLEMS["engines/stacked"],
        "self._gather_(rows[chunk], scratch)",
        "self._gather_(rows[: chunk.stop - a], scratch)",
        f"{TESTS['stacked']}::test_chunks_change_only_rounding",
    ),
    Mutant(
        "pictures are copied over those that the GPU still reads",
        PROBLEMS["device_jpegs"],
        "self._side.wait_event(slot.used)",
        "pass",
        f"{TESTS['device_feed']}::test_pictures_on_the_gpu_are_those_of_the_feed_on_the_cpu",
    ),
    Mutant(
        "pictures are read before they are copied",
        PROBLEMS["device_jpegs"],
        "self.cuda.current_stream().wait_event(slot.copied)",
        "pass",
        f"{TESTS['device_feed']}::test_pictures_on_the_gpu_are_those_of_the_feed_on_the_cpu",
    ),
    Mutant(
        "pictures are decoded over those that are not yet copied",
        PROBLEMS["device_jpegs"],
        "self.copied.synchronize()",
        "pass",
        f"{TESTS['device_feed']}::test_pictures_on_the_gpu_are_those_of_the_feed_on_the_cpu",
    ),
    # what ours is measured against
    Mutant(
        "the loop by hand does less: no weight decay",
        "localavg/cli/bench/best_network.py",
        "weight_decay=self.problem.l2,",
        "weight_decay=0.0,",
        f"{TESTS['bench_best']}::test_a_loop_by_hand_has_the_weights_and_statistics_of_ours",
    ),
    Mutant(
        "the graph by hand takes the same batch at every replay",
        "localavg/cli/bench/best_network.py",
        "self.place.add_(1).remainder_(len(self.work.rows))",
        "self.place.add_(0)",
        f"{TESTS['bench_best']}::test_a_graph_by_hand_has_the_weights_of_ours",
    ),
    Mutant(
        "a shortage of memory in a capture is taken for what cannot be captured",
        PROBLEMS["engines/capture"],
        "if is_shortage(cause):",
        "if False:",
        f"{TESTS['graph']}::test_a_shortage_in_a_capture_is_not_taken_for_what_cannot_be_captured",
    ),
    Mutant(
        "garbage is freed while a graph is captured",
        PROBLEMS["engines/capture"],
        "    gc.disable()\n",
        "",
        f"{TESTS['graph']}::test_no_garbage_is_freed_in_a_capture",
    ),
    Mutant(
        "gradients that are added at once are added twice",
        PROBLEMS["rows"],
        "            parameter.grad = None\n",
        "            pass\n",
        f"{TESTS['graph']}::test_gradients_that_are_added_at_once_have_the_bits_of_those_added_one_by_one",
    ),
    Mutant(
        "a GPU takes kernels that do not repeat their bits without being asked",
        PROBLEMS["network"],
        '"warn" if repeats else "default"',
        '"default" if repeats else "warn"',
        f"{TESTS['graph']}::test_torch_repeats_its_bits_if_asked_and_loads_no_compiler_for_it",
    ),
    Mutant(
        "a mean of four columns at a time forgets one of them",
        "localavg/parallel/kernels.py",
        "s.z += x.z; s.w += x.w;",
        "s.z += x.z;",
        f"{TESTS['gpu_logic']}::test_means_on_the_device_are_the_sum_in_order_divided_once",
    ),
    # what is chosen for a GPU, and the start
    Mutant(
        "auto between GPUs takes the slowest way",
        TRANSPORT["trial"],
        "return min(seconds, key",
        "return max(seconds, key",
        f"{TESTS['fastest_way']}::test_auto_takes_the_way_whose_slowest_rank_is_the_fastest",
    ),
    Mutant(
        "auto between GPUs goes by the fastest rank",
        "localavg/parallel/measure.py",
        "    return max(fleet.world.allgather(perf_counter() - start))\n",
        "    return min(fleet.world.allgather(perf_counter() - start))\n",
        f"{TESTS['fastest_way']}::test_auto_takes_the_way_whose_slowest_rank_is_the_fastest",
    ),
    Mutant(
        "the time of shorter rows is not scaled",
        TRANSPORT["trial"],
        "times[name].append(took * n / m)",
        "times[name].append(took)",
        f"{TESTS['fastest_way']}::test_without_the_memory_shorter_rows_are_timed_and_scaled",
    ),
    Mutant(
        "a resumed run tries the ways again",
        TRANSPORT["__init__"],
        "if earlier is not None and earlier in ways:",
        "if False:",
        f"{TESTS['fastest_way']}::test_a_resumed_run_keeps_its_way_without_a_trial",
    ),
    Mutant(
        "what was tried on one node is taken between nodes",
        TRANSPORT["__init__"],
        "len(set(fleet.hosts)) > 1 and aware.nodes < 2",
        "aware.nodes < 1",
        f"{TESTS['fastest_way']}::test_what_was_tried_on_one_node_is_not_taken_between_nodes_unless_it_is_asked_for",
    ),
    Mutant(
        "one rank alone tries the ways",
        TRANSPORT["__init__"],
        "if name == AUTO and fleet.ranks == 1:",
        "if False:",
        f"{TESTS['fastest_way']}::test_nothing_is_tried_for_one_rank",
    ),
    Mutant(
        "ranks that never met on two nodes count as a failure of the path",
        "localavg/parallel/probe.py",
        'if nodes > 1 and found.get("nodes", 0) < nodes:',
        "if False:",
        f"{TESTS['doctor']}::test_ranks_that_never_met_on_two_nodes_say_nothing_of_the_path_between",
    ),
    Mutant(
        "a trial on two nodes is taken for one on this node",
        "localavg/parallel/probe.py",
        "        key += f",
        "        f",
        f"{TESTS['doctor']}::test_where_two_nodes_cannot_be_tried_one_is",
    ),
    Mutant(
        "an mpirun on two nodes does not find the allocation",
        "localavg/parallel/outside.py",
        "if not (allocated and prefix in ALLOCATED))",
        "if True)",
        f"{TESTS['gpus']}::test_an_mpirun_on_two_nodes_keeps_the_allocation_and_nothing_else_of_the_job",
    ),
    Mutant(
        "a job that srun started is tried by mpirun",
        "localavg/parallel/outside.py",
        'if not ranks and int(env.get("SLURM_STEP_NUM_NODES", 1)) > 1:',
        "if False:",
        f"{TESTS['gpus']}::test_a_job_on_several_nodes_is_tried_on_two_of_them",
    ),
    Mutant(
        "a wrong word of CUDA_VISIBLE_DEVICES hides nothing after it",
        "localavg/parallel/gpus.py",
        "            break\n",
        "            continue\n",
        f"{TESTS['gpus']}::test_cuda_visible_devices_is_read_as_cuda_does",
    ),
    Mutant(
        "MPI is tried on device memory for one rank too",
        "localavg/cli/__init__.py",
        "if not (device and launched() and",
        "if not (device and",
        f"{TESTS['where']}::test_mpi_is_tried_on_device_memory_only_where_a_choice_needs_it",
    ),
    Mutant(
        "auto takes a GPU for small logistic regression",
        TRAINING["where"],
        "if read < READ:",
        "if read < 1:",
        f"{TESTS['where']}::test_logistic_regression_takes_the_gpu_by_what_an_update_reads",
    ),
    Mutant(
        "each rank reckons its own learners for auto",
        TRAINING["where"],
        "max(fleet.layout.counts) * c.batch_size",
        "fleet.L * c.batch_size",
        f"{TESTS['where']}::test_the_rank_with_the_most_learners_decides",
    ),
    Mutant(
        "auto does not mind a rank that sees no GPU",
        TRAINING["where"],
        "    if reasons:\n        return",
        "    if False:\n        return",
        f"{TESTS['where']}::test_all_ranks_take_the_same",
    ),
    Mutant(
        "auto fills the GPU with data",
        TRAINING["where"],
        "if 2 * nbytes > free:",
        "if nbytes > free:",
        f"{TESTS['where']}::test_data_that_fill_the_gpu_stay_on_the_host",
    ),
    Mutant(
        "auto chooses again for a resumed run",
        TRAINING["where"],
        "if c.device != AUTO or earlier:",
        "if c.device != AUTO:",
        f"{TESTS['where']}::test_a_run_that_stopped_resumes_on_its_device",
    ),
    Mutant(
        "the run file has auto as its device",
        "localavg/training/build.py",
        "    if c.device == where.AUTO:\n",
        "    if False:\n",
        f"{TESTS['where']}::test_the_run_file_has_the_device_and_a_resumed_run_keeps_it",
    ),
    Mutant(
        "a finished run on a GPU is another one than auto's",
        "localavg/training/checks.py",
        '"problem", "device", "participants"',
        '"problem", "participants"',
        f"{TESTS['where']}::test_the_run_file_has_the_device_and_a_resumed_run_keeps_it",
    ),
    Mutant(
        "survivors take the weights of the other copy",
        TRAINING["kept"],
        "{name: copies[slot] for name, copies in kept.items()}",
        "{name: copies[1 - slot] for name, copies in kept.items()}",
        f"{TESTS['survive']}::test_what_is_rolled_back_is_made_again_to_the_same_bits",
    ),
    Mutant(
        "a push that was served is pushed again after a loss",
        "localavg/training/asynchronous/client.py",
        "for learner in waiting if served[learner.j] < learner.t]",
        "for learner in waiting]",
        f"{TESTS['survive_center']}::test_a_learner_that_waits_pushes_again_unless_it_was_served",
    ),
    Mutant(
        "learners of dead ranks begin at update 0",
        "localavg/training/asynchronous/client.py",
        "            learner.t = served[j]\n",
        "            learner.t = 0\n",
        f"{TESTS['survive_center']}::test_a_learner_that_waits_pushes_again_unless_it_was_served",
    ),
    Mutant(
        "a server lacks exchanges after a loss",
        "localavg/training/asynchronous/server.py",
        "last[len(last) - (served - self.served) :]",
        "last[len(last) :]",
        f"{TESTS['survive_center']}::test_servers_have_the_same_exchanges_after_a_loss",
    ),
    Mutant(
        "learners that resume around a center begin at update 0",
        "localavg/training/asynchronous/run.py",
        "            learner.t = t[learner.j]\n",
        "            learner.t = 0\n",
        f"{TESTS['survive_center']}::"
        "test_a_lost_server_ends_the_job_and_the_run_resumes_on_other_ranks",
    ),
    Mutant(
        "an attached model takes back no statistics of its own",
        "localavg/attaching/copies.py",
        "                buffer.data = self.buffers[name].clone()\n",
        "                pass\n",
        f"{TESTS['outlive']}::test_nothing_is_lost_but_the_updates_since_the_average",
    ),
    Mutant(
        "an attached model's weights stay when ranks die",
        "localavg/attaching/copies.py",
        "        flat.restore_(self.weights)\n",
        "",
        f"{TESTS['outlive']}::test_nothing_is_lost_but_the_updates_since_the_average",
    ),
    Mutant(
        "an attached optimiser's state stays when ranks die",
        "localavg/attaching/copies.py",
        "            optimizer.state.clear()\n            if self.moments is not None:\n",
        "            if False:\n",
        f"{TESTS['outlive']}::test_nothing_is_lost_but_the_updates_since_the_average",
    ),
    Mutant(
        "an averager keeps its t when ranks die",
        "localavg/attaching/averager.py",
        "        self._load(state)\n        self._meetings",
        "        self._load({**state, 't': copy.t + 1})\n        self._meetings",
        f"{TESTS['outlive']}::test_nothing_is_lost_but_the_updates_since_the_average",
    ),
    Mutant(
        "attach: a delayed average begins before the copy",
        "localavg/attaching/parts.py",
        "averaging.holds = recovery is not None",
        "averaging.holds = False",
        f"{TESTS['outlive']}::test_learners_that_are_apart_go_on_each_from_its_own_weights",
    ),
    Mutant(
        "attach: an average that was held back does not begin after a recovery",
        "localavg/attaching/recovery.py",
        "            self.now().averaging.depart_()\n            return",
        "            return",
        f"{TESTS['outlive']}::test_nothing_is_lost_but_the_updates_since_the_average",
    ),
    Mutant(
        "attach: gossip goes back to an average of everyone",
        "localavg/attaching/averager.py",
        "met = self.scope in (Scope.WORLD, Scope.NEIGHBOURS)",
        "met = self.scope is Scope.WORLD",
        f"{TESTS['outlive']}::test_nothing_is_lost_but_the_updates_since_the_average",
    ),
    Mutant(
        "attach: a rank that rests has no copy before the first average",
        "localavg/attaching/averager.py",
        "        if not self.participates:  # its",
        "        if False:  # its",
        f"{TESTS['outlive']}::test_ranks_that_rest_and_make_no_step_go_back_too",
    ),
    Mutant(
        "attach: what codes had lost stays behind when ranks die",
        "localavg/attaching/copies.py",
        "            averaging |= {name: torch.from_numpy(x) for name, x in owed.items()}\n",
        "",
        f"{TESTS['outlive']}::test_loops_go_on_from_the_point_that_the_page_names",
    ),
    Mutant(
        "what codes of a node have lost is of the learners before a loss",
        "localavg/training/owed.py",
        "                x *= np.float32((total or self.wired.total) / self.wired.total)\n",
        "                pass\n",
        f"{TESTS['wires']}::test_what_codes_have_lost_outlives_ranks",
    ),
    Mutant(
        "a round of fragments can be gone back to after each of them",
        TRAINING["averaging"],
        "        return self.round_after == t\n",
        "        return self.equal_after == t\n",
        f"{TESTS['survive']}::test_what_is_rolled_back_is_made_again_to_the_same_bits",
    ),
    Mutant(
        "the log of attach keeps rows that are made again",
        "localavg/attaching/log.py",
        "self.file.back_to(fleet, then.counts)",
        "self.file.back_to(fleet, self.file.counts())",
        f"{TESTS['outlive']}::test_a_loop_goes_on_from_any_point",
    ),
    Mutant(
        "a copy that is half done counts in attach",
        "localavg/attaching/copies.py",
        "        self.marks.begin(slot, t)\n",
        "        self.marks.finish(slot, t)\n",
        f"{TESTS['outlive']}::test_a_loop_goes_on_from_any_point",
    ),
    Mutant(
        "the table of algorithms is loaded where a module is meant",
        "localavg/__init__.py",
        """    if find_spec(f"{__name__}.{name}"):""",
        """    if name == "nothing":""",
        "tests/test_layers.py::test_any_name_of_the_library_may_be_the_first_that_a_program_uses",
    ),
    Mutant(
        "the log of a resumed program counts losses from its start",
        "localavg/attaching/log.py",
        "        self.reported, self.due = t, t + 1\n",
        "        self.due = t + 1\n",
        "tests/attaching/test_log.py::test_the_file_of_a_resumed_program_counts_from_where_it_resumes",
    ),
    Mutant(
        "the first period of a resumed log begins an average too early",
        "localavg/attaching/averager.py",
        "last=self.t if self.scope else self._start",
        "last=self._start",
        "tests/attaching/test_log.py::test_the_file_of_a_resumed_program_counts_from_where_it_resumes",
    ),
    Mutant(
        "an algorithm of the user's takes the place of a row",
        "localavg/cli/own.py",
        """known.__module__.startswith("localavg."):""",
        """known.__module__.startswith("nothing."):""",
        f"{TESTS['library']}::test_a_function_that_makes_no_algorithm_is_refused",
    ),
    Mutant(
        "an option of a row takes the name of a setting",
        "localavg/cli/train.py",
        "        check_names(name, algorithms.declared(name))\n",
        "        pass\n",
        f"{TESTS['library']}::test_a_row_whose_option_is_a_setting_of_every_run_is_refused",
    ),
    Mutant(
        "a schedule fails after its run file was made",
        "localavg/training/run.py",
        "    deepcopy(e.algorithm.schedule).after(1)\n",
        "",
        f"{TESTS['library']}::test_a_schedule_that_fails_at_once_leaves_no_file",
    ),
    Mutant(
        "a name in other capitals is like none",
        "localavg/errors.py",
        "word.lower() == name.lower()",
        "word == name",
        f"{TESTS['library']}::test_a_misspelt_argument_of_an_algorithm_names_the_nearest",
    ),
    Mutant(
        "a sweep without digits is run as digits",
        "jobs/local/scale",
        "[ $# -gt 0 ] &&",
        "[ $# -gt 1 ] &&",
        "tests/project/test_jobs.py::test_a_sweep_without_digits_takes_its_own_data",
    ),
    Mutant(
        "a state is loaded on another number of ranks",
        "localavg/attaching/saved.py",
        '(P := state.get("P", fleet.P)) != fleet.P',
        "(P := fleet.P) != fleet.P",
        "tests/attaching/test_saved.py::test_a_state_is_loaded_by_its_own_rank_of_as_many",
    ),
    Mutant(
        "a rank that made fewer updates is sent to a condition that is not there",
        "localavg/parallel/places.py",
        "if len(counts) > 1 else CALLS",
        "if False else CALLS",
        "tests/attaching/test_saved.py::test_ranks_elsewhere_after_different_updates_may_have_lost_count",
    ),
    Mutant(
        "an option's name elsewhere is unknown",
        "localavg/cli/parser.py",
        "called if called in options else like(name, options)",
        "like(name, options)",
        "tests/cli/test_silence.py::test_a_misspelt_option_names_the_nearest_and_where_they_all_are",
    ),
    Mutant(
        "a model that nobody holds stands in the way of another",
        "localavg/attaching/meetings.py",
        "        gc.collect()  # a model that nobody holds any more may be in a circle of references\n",
        "        pass\n",
        f"{TESTS['outlive']}::test_a_model_that_nobody_holds_is_not_another_one",
    ),
    Mutant(
        "two models may be attached where ranks may die",
        "localavg/attaching/meetings.py",
        "        return any(a.outlives or asked.on_failure == CONTINUE for a in found)\n",
        "        return False\n",
        f"{TESTS['outlive']}::test_a_second_model_is_refused_while_the_first_one_works",
    ),
    Mutant(
        "survivors do not set t back",
        TRAINING["kept"],
        "        return Saved(t, state,",
        "        return Saved(t + 1, state,",
        f"{TESTS['survive']}::test_what_is_rolled_back_is_made_again_to_the_same_bits",
    ),
    Mutant(
        "a copy that is half done counts",
        TRAINING["copies"],
        "        self.marks.begin(slot, t)\n",
        "        self.marks.finish(slot, t)\n",
        f"{TESTS['survive']}::test_a_run_goes_on_from_any_point",
    ),
    Mutant(
        "survivors trust the last copy where they cannot know whether a lost node has made it",
        TRAINING["marks"],
        " and (known or t < begun)]",
        "]",
        f"{TESTS['survive']}::test_survivors_go_on_from_a_copy_that_all_have_finished",
    ),
    Mutant(
        "a number is added up in a communicator that nobody can revoke",
        "localavg/parallel/transport/mpi.py",
        "sum(self.world.allgather(spread))",
        "self.world.allreduce(spread)",
        "tests/test_layers.py::test_objects_are_not_reduced_by_mpi4py",
    ),
    Mutant(
        "an error that is not MPI's is never taken for a loss",
        "localavg/parallel/survive.py",
        "    while not reported(world):\n",
        "    while not (isinstance(error, MPI.Exception) and reported(world)):\n",
        f"{TESTS['survive']}::test_any_error_may_follow_from_a_death",
    ),
    Mutant(
        "who knows of a loss waits for ever for a rank that never hears",
        "localavg/parallel/survive.py",
        "    with nullcontext() if done else limited(world, remedy, HEARD_S):\n",
        "    with nullcontext():\n",
        f"{TESTS['survive']}::test_whoever_knows_of_a_loss_does_not_wait_for_ever"
        "_for_a_rank_that_never_hears",
    ),
    Mutant(
        "survivors keep the rows that they make again",
        "localavg/files/mirror.py",
        "            del new[max(0, stay[group] - self.rows[group]) :]\n",
        "            del new[len(new) :]\n",
        f"{TESTS['survive']}::test_what_is_rolled_back_is_made_again_to_the_same_bits",
    ),
    Mutant(
        "moments that nobody kept stay",
        TRAINING["copies"],
        'elif e.config.recovery_state == "all":',
        "else:",
        f"{TESTS['survive']}::test_moments_that_nobody_kept_are_zero_after_a_recovery",
    ),
    Mutant(
        "moments count as equal after the switch",
        TRAINING["copies"],
        "self.e.algorithm.exchange.at(t))",
        "self.e.algorithm.exchange.at(1))",
        f"{TESTS['survive']}::test_moments_that_nobody_kept_are_zero_after_a_recovery",
    ),
    Mutant(
        "checkpoints that were rolled back stay",
        "localavg/files/checkpoint.py",
        "for s in found(folder) if s > t]",
        "for s in found(folder) if s < 0]",
        f"{TESTS['survive']}::"
        "test_a_recovery_removes_checkpoints_that_it_rolled_back_and_saves_soon",
    ),
    Mutant(
        "losses before the first average are off the clock",
        "localavg/training/loop.py",
        "monitor.clock.start([*monitor.clock.seconds.values()])",
        "monitor.clock.start()",
        f"{TESTS['survive']}::test_losses_before_the_first_average_stay_on_the_clock",
    ),
    Mutant(
        "losses of the last report count again",
        TRAINING["copies"],
        "half, updates, self._reported = 1 - half, 0, self.monitor.reported",
        "half, updates, self._reported = half, updates, self.monitor.reported",
        f"{TESTS['survive']}::test_what_is_rolled_back_is_made_again_to_the_same_bits",
    ),
    Mutant(
        "averages begin before the run is copied",
        TRAINING["loop"],
        "        averaging.holds = True  # nothing is on its way where the run is copied\n",
        "",
        f"{TESTS['survive']}::test_what_is_rolled_back_is_made_again_to_the_same_bits",
    ),
    Mutant(
        "what was on its way begins again an update late",
        TRAINING["loop"],
        "        kept.start(begun, averaging, parts)\n    averaging.depart_()\n",
        "        kept.start(begun, averaging, parts)\n",
        f"{TESTS['survive']}::test_what_is_rolled_back_is_made_again_to_the_same_bits",
    ),
    Mutant(
        "an average that is held back is not in the checkpoint",
        TRAINING["delayed"],
        "[self.waiting, self.anchored, held.scope, held.t, held.gamma]",
        "[self.waiting, self.anchored, 0, held.t, held.gamma]",
        f"{TESTS['survive']}::test_an_average_that_is_held_back_for_a_copy_is_in_the_checkpoint",
    ),
    Mutant(
        "a round of pieces ends with any of them",
        TRAINING["averaging"],
        "if last or self.average.piece(begun) in (0, len(self.average.pieces) - 1):",
        "if last or self.average.piece(begun) >= 0:",
        f"{TESTS['survive']}::test_what_is_rolled_back_is_made_again_to_the_same_bits",
    ),
    Mutant(
        "learners that are apart go on from one row",
        TRAINING["kept"],
        'if (w := rows.get("w")) is None:',
        'if (w := rows.get("w")[:1].repeat(e.fleet.L, 0) if "w" in rows else None) is None:',
        f"{TESTS['survive']}::test_what_is_rolled_back_is_made_again_to_the_same_bits",
    ),
    Mutant(
        "the next node puts rows into the other copy",
        TRAINING["beyond"],
        "(self.rows[name][slot, rows] for name in mine)",
        "(self.rows[name][1 - slot, rows] for name in mine)",
        f"{TESTS['survive']}::test_the_next_node_has_what_the_learners_of_a_node_have",
    ),
    Mutant(
        "what codes have lost is lost with a rank",
        TRANSPORT["in_code"],
        "            x[...] = kept[key][columns]\n",
        "            pass\n",
        f"{TESTS['wires']}::test_what_codes_have_lost_outlives_ranks",
    ),
    Mutant(
        "what codes have lost never arrives on one node",
        TRANSPORT["in_code"],
        "            mean += late[columns]\n",
        "",
        f"{TESTS['wires']}::test_what_codes_have_lost_outlives_ranks",
    ),
    Mutant(
        "the communicators of averages in the background are not revoked",
        "localavg/parallel/fleet.py",
        "self.ranks_per_node, self.made, self.outlives)",
        "self.ranks_per_node, None, self.outlives)",
        f"{TESTS['survive']}::test_every_communicator_of_a_run_is_revoked",
    ),
    Mutant(
        "communicators of NCCL are not aborted",
        TRANSPORT["nccl"],
        "                    fleet.made.append(ring)\n",
        "                    pass\n",
        f"{TESTS['survive_device']}::test_a_sum_with_a_rank_that_is_dead_is_ended",
    ),
    Mutant(
        "NCCL sums with ranks that are dead already",
        TRANSPORT["nccl"],
        "        group.comm.Barrier()  # raises where a rank has died\n",
        "",
        f"{TESTS['survive_device']}::"
        "test_ranks_meet_before_a_sum_and_do_not_begin_it_with_a_dead_one",
    ),
    Mutant(
        "a sum of NCCL that another thread has ended counts",
        TRANSPORT["nccl"],
        "        ring.check()\n",
        "",
        f"{TESTS['survive_device']}::test_a_sum_that_another_thread_has_ended_is_no_sum",
    ),
    Mutant(
        "NCCL may connect the ranks for ever",
        TRANSPORT["nccl"],
        "        with nullcontext() if len(x) in ring.lengths else self._limited():\n",
        "        with nullcontext():\n",
        f"{TESTS['survive_device']}::test_a_sum_that_nccl_never_begins_ends_the_job",
    ),
    Mutant(
        "the mean on a GPU is not copied to the host",
        "localavg/parallel/device.py",
        "        x.get(out=to)",
        "        x.get()",
        f"{TESTS['survive_device']}::"
        "test_what_is_rolled_back_on_a_device_is_made_again_to_the_same_bits",
    ),
    Mutant(
        "losses in a vector count as one update's scalar",
        TRAINING["copies"],
        "        found[updates * L :] = new.T.ravel().tolist()",
        "        _ = found",
        f"{TESTS['survive_device']}::test_losses_that_are_vectors_count_as_their_updates",
    ),
    Mutant(
        "the communicator of gossip is not revoked",
        "localavg/parallel/fleet.py",
        "        self.made.append(made := self.world.Dup())\n",
        "        made = self.world.Dup()\n",
        f"{TESTS['survive']}::test_every_communicator_of_a_run_is_revoked",
    ),
    Mutant(
        "the communicators of clusters are not revoked",
        "localavg/parallel/fleet.py",
        "        self.made.append(made)\n",
        "",
        f"{TESTS['survive']}::test_every_communicator_of_a_run_is_revoked",
    ),
    Mutant(
        "the kernels of a run are not rehearsed",
        "localavg/training/run.py",
        "    rehearse(e)\n",
        "",
        f"{TESTS['rehearsal']}::test_a_run_rehearses_before_its_clock_starts",
    ),
    Mutant(
        "the rehearsal leaves the update out",
        TRAINING["rehearsal"],
        "    optimizer.update_(w[:, :n], g[:, :n], 0.0)\n",
        "",
        f"{TESTS['rehearsal']}::test_training_compiles_nothing_that_the_rehearsal_did_not",
    ),
    Mutant(
        "the rehearsal steps the run's own optimiser",
        TRAINING["rehearsal"],
        "copy.copy(e.optimizer), copy.deepcopy",
        "e.optimizer, copy.deepcopy",
        f"{TESTS['rehearsal']}::test_the_rehearsal_leaves_the_run_as_it_was",
    ),
    Mutant(
        "a step of a start counts the steps before it too",
        "localavg/cli/bench/start.py",
        "start[step] - start.get(before, 0.0) for",
        "start[step] for",
        f"{TESTS['bench_start']}::test_each_step_is_the_median_of_its_own_times",
    ),
    # the figure of all methods
    Mutant(
        "an average on another link comes on top of that of the run's link",
        "analysis/quantities.py",
        "(ratio - 1)",
        "ratio",
        f"{TESTS['methods']}::test_one_run_has_the_seconds_of_runs_on_other_links",
    ),
    Mutant(
        "the bytes of an average count after the evaluation that follows it",
        "analysis/quantities.py",
        'np.searchsorted(averages.t, rows.t, "right")',
        'np.searchsorted(averages.t, rows.t, "left")',
        f"{TESTS['methods']}::test_bytes_are_those_of_clusters_too_and_rounds_are_not",
    ),
    Mutant(
        "an average of clusters is a round",
        "analysis/quantities.py",
        "np.sort(run.averages.t[run.averages.scope != CLUSTER])",
        "np.sort(run.averages.t)",
        f"{TESTS['methods']}::test_bytes_are_those_of_clusters_too_and_rounds_are_not",
    ),
    Mutant(
        "the claim of fewer averages looks at the accuracy alone",
        "analysis/trends/comparisons.py",
        'all_of(*decisions), "; ".join(words)',
        'decisions[0], "; ".join(words)',
        f"{TESTS['claims']}::test_more_averages_fail_a_claim_of_fewer_whatever_else[QSR]",
    ),
    Mutant(
        "the letter P of levels is no number of learners",
        TRAINING["meaning"],
        'settings.get("learners") if S == "P" else S',
        "S",
        f"{TESTS['sweep']}::test_texts_that_mean_the_same_are_the_same_setting[levels]",
    ),
    Mutant(
        "all policies of the state are alike",
        TRAINING["meaning"],
        'by_moment(value, MOMENTS[settings["optimizer"]])',
        'sorted(by_moment(value, MOMENTS[settings["optimizer"]]))',
        f"{TESTS['sweep']}::test_texts_that_mean_the_same_are_the_same_setting[state]",
    ),
    Mutant(
        "sync takes a policy of the state",
        "localavg/config/settings.py",
        '("sgd", "sync", "qsgd")  #',
        '("sgd", "qsgd")  #',
        f"{TESTS['cli']}::test_the_rows_that_average_no_weights_are_known",
    ),
    Mutant(
        "everyone is of level 1 in files of earlier versions",
        "localavg/files/tables.py",
        "[1, top], 0",
        "[1, 1], 0",
        f"{TESTS['record']}::"
        "test_a_column_that_an_earlier_version_did_not_write_is_filled_up[config1-1-2]",
    ),
    Mutant(
        "a level may be everyone below the top",
        ALGORITHMS["base"],
        "if levels and S == P:",
        "if levels and S > P:",
        f"{TESTS['schedules']}::test_learners_that_do_not_form_the_hierarchy_are_refused",
    ),
    Mutant(
        "classes that nobody has are not told",
        "localavg/training/header.py",
        "if held < classes and says:",
        "if held > classes and says:",
        f"{TESTS['silence']}::test_classes_that_no_learner_has_are_counted",
    ),
    Mutant(
        "links that connect nobody are taken",
        ALGORITHMS["matchings"],
        "LEAST * connectivity",
        "-LEAST * connectivity",
        f"{TESTS['graphs']}::test_links_that_connect_nobody_are_refused",
    ),
    Mutant(
        "a restart of attach begins with the first round",
        "localavg/attaching/saved.py",
        'x.numpy() for name, x in state.get("averaging", {}).items()}',
        'x.numpy() * 0 for name, x in state.get("averaging", {}).items()}',
        f"{TESTS['rounds']}::test_a_restart_within_a_round_gives_the_same_bits",
    ),
    Mutant(
        "any gain of time passes for a quarter of the time",
        "analysis/trends/methods.py",
        "1 / TIMES)",
        "1)",
        f"{TESTS['claims']}::test_a_claim_is_judged_right",
    ),
    Mutant(
        "any mean difference is a verdict",
        "analysis/trends/rule.py",
        "effects.std(ddof=1) / np.sqrt(n)\n",
        "0 * effects.std(ddof=1) / np.sqrt(n)\n",
        f"{TESTS['claims']}::test_the_rule",
    ),
    Mutant(
        "the power of the normal law decides how many seeds are enough",
        "analysis/trends/rule.py",
        "stats.nct.sf(limit, n - 1, abs(shift) * np.sqrt(n))",
        "stats.norm.sf(1.645 - abs(shift) * np.sqrt(n))",
        f"{TESTS['claims']}::test_so_many_seeds_decide_with_the_power_asked_for",
    ),
    Mutant(
        "a claim is decided on the runs of every sweep",
        "analysis/claims.py",
        "others = sweeps - {claim.sweep}",
        "others = set()",
        f"{TESTS['claims']}::test_a_claim_is_decided_on_the_runs_of_its_own_sweep",
    ),
    Mutant(
        "a run of many ranks does not wait until it is alone",
        "localavg/cli/sweep/launch.py",
        "min(waiting[0][1].ranks, self.at_once) <= room",
        "1 <= room",
        f"{TESTS['sweep']}::test_so_many_ranks_are_at_work_at_once_and_a_run_of_more_is_alone",
    ),
    Mutant(
        "a signal reaches one of the runs at work",
        "localavg/cli/sweep/launch.py",
        "for child in list(self._children):",
        "for child in list(self._children)[:1]:",
        f"{TESTS['sweep']}::test_a_signal_reaches_the_runs_at_work_and_no_other_starts",
    ),
    Mutant(
        "a run whose device was chosen is no like run",
        "localavg/cli/sweep/cost.py",
        'chosen = name in checks.FILLED_IN and want in (None, "auto")',
        "chosen = False",
        f"{TESTS['sweep']}::test_rates_of_runs_that_have_begun_count",
    ),
    Mutant(
        "doctor believes MPI and not srun",
        "localavg/cli/doctor/advice.py",
        "if f.srun_nodes is None or seen <= f.srun_nodes:",
        "if True:",
        f"{TESTS['doctor']}::test_advice_follows_from_the_facts",
    ),
    Mutant(
        "a signal to all processes of a job ends the one that has imported torch",
        "localavg/cli/sweep/preload.py",
        "signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)\n",
        "",
        f"{TESTS['sweep_warm']}::test_a_signal_to_all_processes_of_a_job_saves_its_runs_and_leaves_none",
    ),
    Mutant(
        "a forked run hears no signal",
        "localavg/cli/sweep/warm.py",
        "    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)\n",
        "",
        f"{TESTS['sweep_warm']}::test_a_signal_before_a_run_has_begun_ends_it",
    ),
    Mutant(
        "the time of messages shrinks with the bandwidth",
        "analysis/quantities.py",
        "return (averages.seconds - messages_s)",
        "return averages.seconds",
        f"{TESTS['methods']}::test_a_run_has_the_clock_of_the_same_run_at_another_rate_also_with_latency",
    ),
    Mutant(
        "the digits have none of the laptop's settings",
        "localavg/cli/sweep/file.py",
        '"digits": "laptop",',
        "",
        f"{TESTS['sweep']}::test_the_scale_of_the_digits_is_the_laptops_with_its_own_on_top",
    ),
    Mutant(
        "an advice whose claim fails is an open one",
        "analysis/conclusions.py",
        "return FAIL if FAIL in verdicts else PASS",
        "return PASS",
        f"{TESTS['conclusions']}::test_one_claim_that_does_not_pass_moves_its_advice_and_no_other",
    ),
    Mutant(
        "a link is modelled with the bytes of both hosts",
        "analysis/measured.py",
        "run.averages.bytes_cross.sum() / hosts / rate(run)",
        "run.averages.bytes_cross.sum() / rate(run)",
        f"{TESTS['measured']}::"
        "test_the_model_has_the_measured_computation_and_the_bytes_over_the_link",
    ),
    Mutant(
        "a period is drawn as a line between averages",
        "analysis/curves.py",
        'how = "steps-pre" if steps else "default"',
        'how = "default"',
        f"{TESTS['figures']}::test_periods_are_steps_that_end_at_their_average",
    ),
    Mutant(
        "the speed-up is asked for beyond the P of its bound",
        "analysis/trends/many_learners.py",
        "if 1 < P <= last}",
        "if P > 1}",
        f"{TESTS['claims']}::test_beyond_the_bound_no_linear_speed_up_is_asked_for",
    ),
    Mutant(
        "half of what bound (3.2) allows",
        "localavg/theory/kavg.py",
        "return 6 * K / (L *",
        "return 3 * K / (L *",
        "tests/theory/test_theory.py::"
        "test_the_speed_up_ends_where_both_terms_of_noise_are_equal[2]",
    ),
    Mutant(
        "the link of the headline has no latency",
        "analysis/quantities.py",
        "2 * np.log2(P) * latency_s + ",
        "",
        f"{TESTS['headline']}::test_the_modelled_clock_is_that_of_a_simulated_run",
    ),
    Mutant(
        "any loss of rare averages passes for a slight one",
        "analysis/trends/headline.py",
        "return all_of(rule.less(sync, rare, digits=4), rule.times(lost, most, SLIGHT))",
        "return rule.less(sync, rare, digits=4)",
        f"{TESTS['claims']}::test_what_is_neither_equal_nor_slight_fails",
    ),
    Mutant(
        "a loss far below that of sync passes for an equal one",
        "analysis/trends/headline.py",
        ", rule.less(sync, five, room, digits=4))",
        ")",
        f"{TESTS['claims']}::test_what_is_neither_equal_nor_slight_fails",
    ),
]


def copied(folder: Path) -> Path:
    """A copy of the checkout in `folder`, with the same virtual environment."""
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():  # a tracked file may be deleted
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    for name in (".venv", ".mpich"):
        if (ROOT / name).exists():
            (folder / name).symlink_to((ROOT / name).resolve())
    return folder


@contextmanager
def applied(mutant: Mutant, tree: Path) -> Iterator[None]:
    """Within it the mistake is in the tree."""
    path = tree / mutant.file
    text = path.read_text(encoding="utf-8")
    if (count := text.count(mutant.old)) != 1:
        raise ValueError(f"{mutant.name}: its old text is {count} times in {mutant.file}")
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(text, encoding="utf-8")


def tested(
    tree: Path, tests: Iterable[str], limit_s: float | None = None
) -> tuple[int | None, str]:
    """pytest's exit status for some tests of a tree, None if out of time, and what it printed."""
    # No bytecode: its time and size would not tell a mutant from the original.
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(tree)}
    words = [sys.executable, "-m", "pytest", "-q", "-x", "--tb=short", "-p", "no:cacheprovider"]
    running = subprocess.Popen([*words, *tests], cwd=tree, env=env, stdin=subprocess.DEVNULL,
                               text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    try:
        said, _ = running.communicate(timeout=limit_s or LIMIT_S)
    except subprocess.TimeoutExpired:
        for process in psutil.Process(running.pid).children(recursive=True):  # launches of MPI
            with suppress(psutil.NoSuchProcess):
                process.kill()
        running.kill()
        running.communicate()
        return None, f"still running after {limit_s or LIMIT_S} s"
    return running.returncode, said


def survived(mutant: Mutant, tree: Path) -> str:
    """Why a mutant counts as not caught; "" where its test fails as it should."""
    with applied(mutant, tree):
        status, said = tested(tree, [mutant.test])
    if status == 0:
        return f"{mutant.test} passes"
    if status != 1 or not re.search(r"^\d+ failed", said, re.MULTILINE):  # an error is none
        return f"{mutant.test} does not fail but ends with status {status}\n{said[-3000:]}"
    if wrong := re.search(rf"^E +({'|'.join(BROKEN)})\b.*", said, re.MULTILINE):
        return f"{mutant.test} fails because the mutant is broken: {wrong[0]}"
    return ""


def sound(tree: Path, mutants: Iterable[Mutant]) -> str:
    """What is wrong with the tests of a tree without a mutant; "" where they pass."""
    status, said = tested(tree, sorted({mutant.test for mutant in mutants}), ALL_S)
    return "" if status == 0 else said


def main(names: list[str]) -> int:
    """Try the mutants of these names, or all."""
    if unknown := set(names) - {mutant.name for mutant in MUTANTS}:
        known = "\n  ".join(mutant.name for mutant in MUTANTS)
        print(f"no mutant {sorted(unknown)[0]!r}; there are\n  {known}")
        return 2
    asked = [mutant for mutant in MUTANTS if not names or mutant.name in names]
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tree = copied(Path(folder))
        if why := sound(tree, asked):
            print(f"without a mutant these tests fail:\n{why}")
            return 1
        alive = 0
        for mutant in asked:
            started = time.monotonic()
            why = survived(mutant, tree)
            alive += bool(why)
            verdict = f"NOT CAUGHT: {why}" if why else "caught"
            print(f"{mutant.name}: {verdict} ({time.monotonic() - started:.1f} s)", flush=True)
    print(f"{len(asked) - alive} of {len(asked)} mutants caught")
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
