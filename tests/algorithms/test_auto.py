"""K = auto: the rule by hand, the times that it takes, and runs whose periods it chooses."""

import math
import time
from fractions import Fraction

import numpy as np
import pytest
from drive import command_lines
from mpi import call
from mpi4py import MPI

import localavg
from localavg import algorithms
from localavg.algorithms.auto import Auto, best_K, time_K
from localavg.algorithms.base import Costs
from localavg.algorithms.switch import Switched
from localavg.cli import in_flags
from localavg.errors import UserError
from localavg.files.record import load
from localavg.parallel.fleet import Fleet
from localavg.scope import Scope
from localavg.simulate.clock import Synchronous, averages
from localavg.simulate.timing import Timing
from localavg.training import pace as paces

NOT_KNOWN = math.nan, math.nan


def periods(schedule, T, a=lambda t: 1.0, c=lambda t: 2.0, f=lambda t: 1.0, l=lambda t: 1.0):
    """The periods of a schedule that begins at update 0; the first round's times are not known."""
    found, last, heard = [], 0, []
    for t in range(1, T + 1):
        if schedule.after(t) is Scope.WORLD:
            known = (a(t), c(t)) if last else NOT_KNOWN
            heard.append(Costs(t - last, *known, f(t), l(t)))
            if schedule.chooses:
                schedule.observe(t, math.nan, 1.0, costs=heard)
                heard = []
            found.append(t - last)
            last = t
    return found


def by_the_rule(T, a, c, f, l):
    """The same, from the rule in words and with nothing of the package."""
    K, ends, times, undone, ones = 4, [0], [], [], 0
    due, pause = 2, 1  # the average at which K is chosen, and how many come before the next choice
    while ends[-1] + K <= T:
        t = ends[-1] + K
        if len(ends) > 1:
            times.append((a(t), c(t)))
            before = ends[-1] - ends[-2]
            if before > 1:
                undone.append((f(t) - l(ends[-1]), (before - 1) * l(ends[-1])))
        ends.append(t)
        ones = ones + 1 if K == 1 else 0
        if len(ends) - 1 < due:
            continue
        A, C = (
            Fraction(float(np.median(x))).limit_denominator(10**6)
            for x in zip(*times[-5:], strict=True)
        )
        by_time = math.ceil(20 * A / C)
        x = max(0, sum(u for u, _ in undone[-16:]) / sum(s for _, s in undone[-16:]))
        cost = {
            k: float(1 + A / (k * C)) * math.sqrt(1 + (k - 1) * x) for k in range(1, by_time + 1)
        }
        best = min(cost, key=cost.get)
        look = K == best == 1 and ones >= 16 and by_time > 1
        best = 2 if look else best
        if look or best > 2 * K:
            due += 1
        else:
            due, pause = due + pause, min(8, 2 * pause)
        K = min(best, 2 * K)
    return np.diff(ends).tolist()


def test_the_period_is_that_of_averages_that_take_a_twentieth():
    assert [time_K(a, 2.0) for a in (0, 0.05, 0.1, 0.11, 1.0, 1.01)] == [1, 1, 1, 2, 10, 11]
    assert time_K(0.3, 2.0) == 3  # not 4, by the rounding of a product
    assert periods(Auto(), 16 + 3 * 10) == [4] * 2 + [8] + [10] * 3


def test_the_period_at_most_doubles():
    schedule = Auto()
    assert periods(schedule, 200, a=lambda t: 50.0) == [4] * 2 + [8, 16, 32, 64]
    assert schedule.decision["reason"] == "growth" and schedule.decision["time_K"] == 500


def test_the_times_are_medians_of_the_last_five_rounds():
    """K is chosen at 8, 16, 26, 46, 86 and then at every 8th average; 86 sees a of 56 to 86."""
    jump = periods(Auto(), 400, a=lambda t: 1.0 if t < 60 else 2.0)
    assert jump[:10] == [4] * 2 + [8] + [10] * 7 and set(jump[10:]) == {20}
    late = periods(Auto(), 400, a=lambda t: 1.0 if t < 70 else 2.0)
    assert late[:18] == [4] * 2 + [8] + [10] * 15 and late[18] == 20
    once = periods(Auto(), 400, a=lambda t: 50.0 if t == 86 else 1.0)
    assert once[:3] == [4] * 2 + [8] and set(once[3:]) == {10}


def test_ranks_meet_for_a_choice_after_more_and_more_averages():
    schedule, found = Auto(), []
    real = schedule.observe
    schedule.observe = lambda t, *x, **y: (found.append((t, len(y["costs"]))), real(t, *x, **y))
    periods(schedule, 400)
    assert found == [(8, 2), (16, 1), (26, 1), (46, 2), (86, 4), (166, 8), (246, 8), (326, 8)]


def test_a_mean_on_its_way_arrives_before_the_next_begins():
    """Averages that cost nothing would be at every update, and no more than one is on its way."""
    made = localavg.kavg(K="auto", delay=6).schedule
    assert periods(made, 60, a=lambda t: 0.0) == [6] * 10 and made.decision["K"] == 6


def test_times_that_are_not_known_do_not_count():
    schedule = Auto()
    for t in (8, 12, 16, 20):
        schedule.observe(t, math.nan, 1.0, costs=[Costs(4), Costs(4)])
        assert schedule.left == 1
    assert (schedule.K, schedule.reason) == (
        4,
        "start",
    ) and "K was 4 all along" in schedule.unsteered
    assert math.isnan(schedule.decision["time_K"]) and math.isnan(schedule.decision["x"])


def test_what_averages_undo_bounds_the_period():
    """a = 10 c, f = (1 + 0.2 (K − 1)) l: (1 + 10/K) √(0.8 + K/5) is least at 5 + √105 = 15.2."""
    schedule, last = Auto(), {0: 0}

    def f(t):  # the round before has the period K
        K = last.get(t - schedule.K, 0)
        last[t] = schedule.K
        return 1 + 0.2 * (K - 1) if K else 1.0

    found = periods(schedule, 400, a=lambda t: 20.0, f=f)
    assert found[:4] == [4] * 2 + [8, 15] and set(found[3:]) == {15}
    assert schedule.decision["x"] == pytest.approx(0.2)
    assert schedule.decision["reason"] == "losses" and schedule.decision["time_K"] == 200
    assert "every 200 updates for their time, and every 15 for what they undo" in schedule.unsteered


@pytest.mark.parametrize(
    ("ratio", "x", "most"),
    [
        (r, x, m)
        for r in (0.01, 0.7, 5, 90)
        for x in (-1, 0, 1e-6, 0.01, 0.3, 1, 1.5, 40, math.inf)
        for m in (1, 7, 300)
    ],
)
def test_the_best_period_is_the_best_of_all(ratio, x, most):
    if x <= 0:
        assert best_K(ratio, x, most) == most
        return
    cost = [
        (1 + ratio / K) * math.sqrt(1 + (K - 1) * x if K > 1 else 1) for K in range(1, most + 1)
    ]
    assert cost[best_K(ratio, x, most) - 1] <= min(cost) * (1 + 1e-12)


def test_learners_that_lose_all_at_an_average_average_always_and_look_again():
    """With K = 1 nothing shows, so after 16 rounds one has 2; where nothing is lost K grows."""
    schedule = Auto()
    found = periods(schedule, 500, f=lambda t: 50.0 if t < 90 else 1.0)
    ones = found[2:].index(2)
    assert found[:2] == [4] * 2 and 16 <= ones < 24 and found[3 + ones] == 1
    assert found[-1] == 10 and schedule.decision["reason"] == "time"


def test_it_is_the_rule_in_words():
    draw = np.random.default_rng(0)
    for _ in range(30):
        a, c = draw.lognormal(0, 1, 600).round(2) + 0.01, draw.lognormal(0, 0.3, 600).round(2) + 0.1
        l = draw.lognormal(0, 0.5, 600)
        f = l * draw.lognormal(draw.uniform(0.2, 1.5), 0.3, 600)
        of = [lambda t, x=x: float(x[t - 1]) for x in (a, c, f, l)]
        assert periods(Auto(), 600, *of) == by_the_rule(600, *of)


def test_it_resumes_where_it_was():
    """What the ranks have not agreed on is lost with a stop, so it stops where they do."""
    draw = np.random.default_rng(1)
    f, l, a = (draw.lognormal(of, 0.6, 700) for of in (0.1, 0, 2))
    of = {name: lambda t, x=x: float(x[t]) for name, x in (("f", f), ("l", l), ("a", a))}
    expected = periods(Auto(), 600, **of)
    assert len(set(expected)) > 4
    schedule, last, heard, found = Auto(), 0, [], []
    for t in range(1, 601):
        if t % 7 == 0 and not heard:
            state = schedule.state_dict()
            schedule = Auto()
            schedule.load_state_dict({name: np.array(x) for name, x in state.items()})
            assert schedule.state_dict() == state
        if schedule.after(t):
            known = (of["a"](t), 2.0) if last else NOT_KNOWN
            heard.append(Costs(t - last, *known, of["f"](t), of["l"](t)))
            if schedule.chooses:
                schedule.observe(t, math.nan, 1.0, costs=heard)
                heard = []
            found.append(t - last)
            last = t
    assert found == expected


def test_it_counts_from_the_switch():
    switched = Switched(Auto(), 5)
    assert switched.needs == "pace" and switched.hears and not switched.spread
    found = [t for t in range(1, 14) if switched.after(t)]
    assert found == [9, 13] and switched.chooses and switched.rest.chooses
    switched.observe(13, math.nan, 1.0, costs=[Costs(4), Costs(4, 9.0, 2.0, 1.5, 1.0)])
    assert switched.decision == switched.rest.decision and switched.decision["K"] == 8


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: localavg.kavg(K="atuo"), "--K atuo: must be a whole number of at least 1, or"),
        (lambda: localavg.diloco(K=2.5), "--K 2.5: must be a whole number"),
        (lambda: localavg.mavg(K=0), "--K 0: a period must be at least 1"),
        (lambda: localavg.gossip(K="auto"), "--K 'auto': must be a whole number"),
        (
            lambda: algorithms.check("gossip", {"K": "auto"}),
            "--K auto means nothing to gossip: it chooses the period of averages of everyone",
        ),
        (lambda: algorithms.check("downpour", {"K": "auto"}), "--K auto means nothing to downpour"),
    ],
)
def test_what_cannot_be_chosen_is_refused(made, words):
    with pytest.raises(UserError) as e:
        made()
    assert in_flags(str(e.value)).replace("`", "").startswith(words)


def test_every_row_with_a_fixed_period_takes_it():
    assert algorithms.with_auto() == ["kavg", "mavg", "diloco", "slowmo", "postlocal", "fedavg"]
    for name in algorithms.with_auto():
        given = {"K": "auto"} | ({"switch": 1} if name == "postlocal" else {})
        made = algorithms.make(name, given, T=100, epoch=10)
        assert made.schedule.needs == "pace" and made.options["K"] == "auto"


# ------------------------------------------------------------------------------------- the times


class Laps:
    def computed(self):
        pass

    def met(self):
        pass


def paced(monkeypatch, **how):
    """A clock whose clock is what `now` says, and what its hooks were told."""
    now = {"s": 0.0, "outside": 0.0}
    monkeypatch.setattr("localavg.training.pace.perf_counter", lambda: now["s"])
    pace = paces.Pace(
        Fleet(MPI.COMM_SELF), lambda: None, Laps(), lambda: now["outside"], None, **how
    )
    told = []
    before, after = pace.timed(
        lambda *x: told.append(("before", x)), lambda *x: told.append(("after", x))
    )
    return pace, now, before, after, told


def test_losses_from_before_the_switch_do_not_count(monkeypatch, tmp_path, hooks):
    """The first round after it, of 4 updates, has the losses of its first and last update."""
    heard, take = [], paces.Pace.take
    monkeypatch.setattr(paces.Pace, "take", lambda self: (heard.append(take(self)), heard[-1])[1])
    run = trained(f"postlocal --K auto --switch 1 {LINK}", tmp_path, "run", log_every=1)
    first, _ = heard[0]
    losses = run.train.set_index("t").loss
    assert run.averages.t.tolist()[:4] == [1, 2, 3, 7]  # an epoch has 3 updates
    assert first.updates == 4 and math.isnan(first.update_s)
    assert first[3:] == pytest.approx((losses[4], losses[7]))


def test_updates_and_averages_are_timed_apart_and_what_is_outside_is_left_out(monkeypatch):
    pace, now, before, after, told = paced(monkeypatch)

    def lasts(updates_s, average_s, t, outside_s=0.0):
        now["s"] += updates_s + outside_s
        now["outside"] += outside_s
        before(t, Scope.WORLD)
        now["s"] += average_s
        after(t, Scope.WORLD, 0.5)
        pace.end(t, np.zeros((pace.fleet.L, 2)))
        return pace.take()[0][1:3]

    assert math.isnan(lasts(9.0, 7.0, 4)[0])  # the first round does not count
    assert lasts(2.0, 0.5, 8) == (0.5, 0.5)
    assert lasts(6.0, 0.25, 10, outside_s=100.0) == (0.25, 3.0)
    pace.begin(20)  # as after a restart
    assert math.isnan(lasts(1.0, 1.0, 23)[1])
    assert lasts(1.0, 2.0, 27) == (2.0, 0.25)
    assert told[:2] == [("before", (4, Scope.WORLD)), ("after", (4, Scope.WORLD, 0.5))]


def test_both_parts_of_a_delayed_average_count(monkeypatch):
    pace, now, before, after, _ = paced(monkeypatch)
    begun = pace.timed_after(lambda *x: None)
    pace.whole = True
    for t, hook, took_s in ((1, begun, 0.125), (3, after, 0.5)):
        now["s"] += 2.0
        before(t, Scope.WORLD)
        now["s"] += took_s
        hook(t, Scope.WORLD)
    pace.end(4, np.array([[3.0, 5.0]]))
    assert pace.take() == [Costs(4, 0.625, 1.0, 3.0, 5.0)] and pace.take() == []


def test_after_a_recovery_a_round_begins_where_the_run_goes_on(monkeypatch):
    pace, *_ = paced(monkeypatch)
    pace.end(40, np.zeros((1, 2)))
    pace.end(48, np.zeros((1, 2)))
    other, *_ = paced(monkeypatch)
    other.load_state_dict(pace.present())
    other.end(60, np.array([[2.0, 1.0]]))
    (found,) = other.take()
    assert (found.updates, found.first, found.last) == (12, 2.0, 1.0)
    assert math.isnan(found.update_s)


def test_modelled_times_are_those_of_the_clock():
    timing = Timing(step_s=0.5, step_cv=0, latency_s=0, bandwidth_bytes_per_s=100)
    clock = Synchronous(timing, 4, 0, averages(timing, 4, 100))
    pace = paces.Pace(Fleet(MPI.COMM_SELF), lambda: None, Laps(), lambda: 0.0, None, modelled=clock)
    for t in (4, 8, 13):
        clock.meet(Scope.WORLD, t, t)
        pace.end(t, np.zeros((pace.fleet.L, 2)))
    found = [each[1:3] for each in pace.take()]
    assert math.isnan(found[0][0]) and found[1:] == [pytest.approx((1.5, 0.5))] * 2


# ---------------------------------------------------------------------------------------- runs

LINE = (
    "--learners 4 --batch-size 5 --steps 90 --lr 0.3 --save-weights --data epsilon-like:60x5 "
    "--eval-every 90"
)


def trained(line, folder, name, status=0, log_every=90):
    words = ["train", *line.split(), *LINE.split(), "--out", str(folder / f"{name}.h5")]
    words += ["--log-every", str(log_every)]
    assert command_lines(MPI.COMM_WORLD, [words]) == [status]
    return load(folder / f"{name}.h5") if status == 0 else None


LINK = "--simulate --step-s 0.05 --step-cv 0 --latency-s 0 --bandwidth-bytes-per-s 1e3"


def test_modelled_time_chooses_the_period_of_the_rule(tmp_path, hooks):
    """20 bytes in 20 ms, 6/4 of it for 4 learners, and updates of 50 ms: K = ⌈30/2.5⌉ = 12."""
    run = trained(f"mavg --K auto {LINK}", tmp_path, "run")
    assert run.averages.t.tolist() == [4, 8, 16, *range(28, 90, 12), 90]
    assert run.periods.t.tolist() == [8, 16, 28, 52] and run.config["K"] == "auto"
    assert run.periods.reason.tolist() == ["growth", *["time"] * 3]
    late = run.periods[run.periods.t >= 16]
    assert set(late.K) == set(late.time_K) == {12}
    assert late.average_s.tolist() == pytest.approx([0.03] * len(late))
    assert late.update_s.tolist() == pytest.approx([0.05] * len(late))


@pytest.mark.parametrize(
    "line",
    [
        "kavg --K auto",
        "diloco --K auto --delay 3 --switch 2",
        "postlocal --K auto --lr-schedule steps --milestones 1",
    ],
)
def test_a_replay_has_the_bits_of_the_run(line, tmp_path, hooks):
    first = trained(line, tmp_path, "first")
    again = trained(f"{line} --replay {tmp_path}/first.h5", tmp_path, "again")
    for column in ("t", "begun", "period"):
        assert first.averages[column].tolist() == again.averages[column].tolist()
    assert (first.weights == again.weights).all()
    assert len(first.periods) and again.periods.empty


def test_a_replay_with_a_fixed_period_is_one_line(tmp_path, hooks, capsys):
    trained(f"kavg --K 4 --replay {tmp_path}/first.h5", tmp_path, "no", status=2)
    assert "means nothing to kavg with a fixed K" in capsys.readouterr().err


def on_ranks(world, folder):
    """What ranks of different speeds choose in a user's own loop, and a run and its replay."""
    import torch
    from torch.nn.functional import mse_loss

    torch.manual_seed(world.rank)
    model = torch.nn.Linear(5, 1)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    averager = localavg.attach(
        model,
        localavg.Fleet(world),
        localavg.kavg(K="auto"),
        optimiser,
        log=f"{folder}/attached.h5",
    )
    found = []
    for t in range(1, 61):
        time.sleep(2e-3 * world.rank)
        optimiser.zero_grad()
        loss = mse_loss(model(torch.randn(4, 5)), torch.zeros(4, 1))
        loss.backward()
        optimiser.step()
        if averager.step(loss):
            found.append((t, averager.algorithm.schedule.K))
        if t == 40:
            averager.load_state_dict(averager.state_dict())
    averager.finish()
    lines = [
        f"train kavg --K auto {LINE} --out {folder}/trained.h5".split(),
        f"train kavg --K auto {LINE} --replay {folder}/trained.h5 --out {folder}/again.h5".split(),
        f"train mavg --K auto {LINK} {LINE} --out {folder}/modelled.h5".split(),
    ]
    statuses = command_lines(world, lines)
    return statuses, found


def test_ranks_of_different_speeds_choose_alike(tmp_path):
    """A replay on several ranks has the bits of the run, and modelled time is alike on them too."""
    folder, found = tmp_path, call(2, on_ranks, str(tmp_path))
    assert [statuses for statuses, _ in found] == [[0, 0, 0]] * 2
    ranks = [chosen for _, chosen in found]
    assert ranks[0] == ranks[1] and len(ranks[0]) > 4
    run = load(folder / "attached.h5")
    chosen = [(t, K) for t, K in run.periods[["t", "K"]].to_numpy().tolist() if t < 60]
    assert len(chosen) > 2 and set(chosen) <= set(ranks[0])
    last = run.periods.iloc[-1]
    assert last.update_s > 2e-3  # that of the slowest rank
    assert last.time_K == max(1, math.ceil(round(last.average_s / (0.05 * last.update_s), 9)))
    first, again = (load(folder / f"{name}.h5") for name in ("trained", "again"))
    assert (first.weights == again.weights).all()
    assert first.averages.t.tolist() == again.averages.t.tolist()
    modelled = load(folder / "modelled.h5")
    assert modelled.averages.t.tolist() == [4, 8, 16, *range(28, 90, 12), 90]


@pytest.mark.parametrize("logged", [True, False])
def test_an_evaluation_of_the_averaged_model_is_no_update(logged, tmp_path):
    """In a user's own loop, with a log and without."""
    import torch

    model, fleet = torch.nn.Linear(5, 1), localavg.Fleet(MPI.COMM_SELF)
    log = str(tmp_path / "run.h5") if logged else None
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    averager = localavg.attach(model, fleet, localavg.kavg(K="auto"), optimiser, log=log)
    pace = averager._averaging.pace
    for t in range(1, 7):
        time.sleep(0.01)
        averager.step(1.0)
        if t == 6:
            with averager.averaged():
                time.sleep(0.5)
    time.sleep(0.01)
    pace.pause()
    assert 0.02 < pace.update_s < 0.3 and pace.average_s < 0.2
    averager.finish()
