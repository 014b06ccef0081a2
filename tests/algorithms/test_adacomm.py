"""AdaComm's periods by hand, the losses that steer them, and the replay of a steered run."""

import math

import numpy as np
import pytest
from drive import command_lines
from mpi4py import MPI
from test_exchange import Stateless, averaging

from localavg import algorithms
from localavg.algorithms.adacomm import LossAndStep, adacomm
from localavg.algorithms.replayed import Replayed
from localavg.algorithms.switch import Switched
from localavg.cli import in_flags
from localavg.errors import UserError
from localavg.files.record import load
from localavg.learner.flat import Flat
from localavg.parallel.fleet import Fleet
from localavg.scope import Scope
from localavg.training.averaging import Averaging
from localavg.training.losses import Losses


def periods(schedule, T, loss=lambda t: 1.0, gamma=lambda t: 1.0, clock=lambda t: math.nan):
    """The periods of a schedule that begins at update 0, with these losses of the updates."""
    found, last = [], 0
    schedule.observe(0, math.nan, gamma(1), clock(0))
    for t in range(1, T + 1):
        if schedule.after(t) is Scope.WORLD:
            value = float(np.mean([loss(s) for s in range(last + 1, t + 1)]))
            schedule.observe(t, value, gamma(t), clock(t))
            found.append(t - last)
            last = t
    return found


def by_block(*values, length=20):
    return lambda t: values[min((t - 1) // length, len(values) - 1)]


def test_constant_losses_and_step_sizes_halve_each_block_down_to_one():
    assert (
        periods(LossAndStep(20, 20), 107)
        == [20] + [10] * 2 + [5] * 4 + [3] * 7 + [2] * 10 + [1] * 6
    )
    assert periods(LossAndStep(1, 4), 9) == [1] * 9


def test_a_period_is_the_rules_where_that_is_shorter():
    """Blocks of 20: after F₀ = 1 the first decision halves; then r = ⌈20 √0.16⌉ = 8 < 10, then
    ⌈20 √0.05⌉ = 5; r = 5 is not below 5, so half of that.
    """
    loss = by_block(1.0, 0.16, 0.05, 0.05)
    expected = [20, 10, 10, 8, 8, 8, 5, 5, 5, 5, 3]
    assert periods(LossAndStep(20, 20), 87, loss) == expected
    # blocks begin with the averages after updates 20, 40, 64 (60) and 84 (80)


def test_a_step_size_that_falls_raises_r_and_so_halves_the_period():
    """r = ⌈20 √(0.16 · γ₀/γ)⌉: 8 for equal step sizes, 16 for a quarter, which is not below 10."""
    loss = by_block(1.0, 0.16)
    assert periods(LossAndStep(20, 20), 48, loss) == [20, 10, 10, 8]
    assert periods(LossAndStep(20, 20), 48, loss, by_block(1, 0.25)) == [20, 10, 10, 5]
    assert periods(LossAndStep(20, 20), 48, loss, by_block(1, 4.0)) == [20, 10, 10, 4, 4]
    assert periods(LossAndStep(20, 20), 48, loss, by_block(1, 0.0)) == [20, 10, 10, 5]  # γ = 0


def test_a_period_never_grows():
    draw = np.random.default_rng(0)
    for _ in range(50):
        losses, gammas = draw.lognormal(0, 2, 40), draw.lognormal(0, 2, 40)
        found = periods(LossAndStep(50, 10), 400, by_block(*losses), by_block(*gammas))
        assert found == sorted(found, reverse=True) and found[-1] >= 1
    assert periods(LossAndStep(4, 4), 20, by_block(1.0, 0.0, length=4))[-1] == 1  # r is at least 1


def test_the_mean_is_over_the_updates_of_the_block():
    """An average that begins a block ends the one before: F₀ = (20 · 1 + 10 · 4) / 30 = 2."""
    schedule = LossAndStep(20, 25)
    schedule.observe(20, 1.0, 1.0)
    schedule.due = 30
    schedule.observe(30, 4.0, 1.0)
    assert (schedule.F0, schedule.tau, schedule.due) == (2.0, 10, 40)
    schedule.observe(40, 0.5, 1.0)
    assert schedule.tau == 10  # the second block ends with update 50
    schedule.observe(50, 0.22, 1.0)  # F = 0.36, r = ⌈20 √0.18⌉ = 9
    assert schedule.tau == 9


def test_blocks_of_seconds_follow_the_clock_from_where_the_schedule_begins():
    slow = periods(LossAndStep(8, None, 10.0), 40, clock=lambda t: 100 + t)
    assert slow == periods(LossAndStep(8, 10), 40) == [8] * 2 + [4] * 1 + [2] * 5 + [1] * 10
    # one average passes several ends: the next block begins at the next end
    jump = periods(LossAndStep(8, None, 10.0), 44, clock=lambda t: 3 * t + 25 * (t > 8))
    assert jump == [8, 4, 2, 2] + [1] * 28


def test_a_schedule_resumes_where_it_was():
    told = by_block(1.0, 0.16, 0.05, 0.05)
    whole, cut = LossAndStep(20, 20), LossAndStep(20, 20)
    expected = periods(whole, 100, told)
    made = periods(cut, 50, told)
    other = LossAndStep(20, 20)
    other.load_state_dict({name: np.array(x)[()] for name, x in cut.state_dict().items()})
    last = sum(made)
    for t in range(51, 101):
        if other.after(t) is Scope.WORLD:
            other.observe(t, np.mean([told(s) for s in range(last + 1, t + 1)]), 1.0)
            made.append(t - last)
            last = t
    assert made == expected
    assert other.state_dict() == whole.state_dict()


def test_it_counts_from_the_switch():
    plain, switched = LossAndStep(6, 10), Switched(LossAndStep(6, 10), 5)
    assert switched.needs == "losses"
    expected = periods(plain, 40)
    switched.observe(5, math.nan, 1.0, 3.0)
    found = []
    for t in range(1, 46):
        if switched.after(t):
            switched.observe(t, 1.0, 1.0, 3.0)
            found.append(t - 5)
    assert np.diff([0, *found]).tolist() == expected


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: adacomm(tau0=0), "--tau0 0: a period must be at least 1"),
        (lambda: adacomm(tau0=2.5), "--tau0 2.5: must be a whole number"),
        (lambda: adacomm(block=0), "--block 0: must be at least 1 update"),
        (lambda: adacomm(block="0"), "--block 0: must be at least 1 update"),
        (lambda: adacomm(block=-3), "--block -3: must be at least 1 update"),
        (
            lambda: adacomm(block=2**63),
            "--block 9223372036854775808: must be at least 1 update, and",
        ),
        (lambda: adacomm(block=2.5), "--block 2.5: must be a number of updates, or a time"),
        (lambda: adacomm(block=True), "--block True: must be a number of updates, or a time"),
        (lambda: adacomm(block="soon"), "--block soon: must be a number of updates, or a time"),
        (lambda: adacomm(block="0s"), "--block 0s: must be a number of updates, or a time"),
        (
            lambda: periods(LossAndStep(4, 4), 8, lambda t: -1.0),
            "adacomm: the mean loss of the block",
        ),
        (
            lambda: periods(LossAndStep(4, 4), 8, lambda t: 0.0),
            "adacomm: the mean loss of the block",
        ),
    ],
)
def test_a_bad_value_is_refused_by_name(made, words):
    with pytest.raises(UserError) as e:
        made()
    assert in_flags(str(e.value)).replace("`", "").startswith(words)


def test_a_block_is_given_as_updates_or_as_a_time():
    for given, updates, seconds in ((200, 200, None), ("200", 200, None), ("2min", None, 120.0)):
        schedule = adacomm(block=given).schedule
        assert (schedule.updates, schedule.seconds) == (updates, seconds)
    made = algorithms.make("adacomm", {"block": "30"}, T=100, epoch=10)
    assert (made.schedule.updates, made.options["block"]) == (30, 30)
    assert adacomm().schedule.seconds == 60


def test_a_run_that_diverges_keeps_its_schedule_going():
    """Whoever watches the losses ends it: the schedule raises nothing of its own."""
    assert periods(LossAndStep(4, 4), 12, lambda t: math.nan)[:2] == [4, 2]
    assert periods(LossAndStep(4, 4), 12, lambda t: math.inf)[:2] == [4, 2]


# ----------------------------------------------------------------------------------- the losses


class Laps:
    def __init__(self):
        self.told = []

    def computed(self):
        self.told.append("computed")

    def met(self):
        self.told.append("met")


def losses_of(P, now_s=lambda: 7.0):
    laps = Laps()
    return Losses(Fleet(MPI.COMM_SELF, P), now_s, laps), laps


def test_the_mean_of_the_losses_is_over_learners_and_updates_since_the_last_call():
    losses, laps = losses_of(3)
    assert math.isnan(losses.take()[0])
    losses.add([1.0, 2.0, 6.0])
    losses.add([np.float32(0.5), 0.5, 2.0])
    assert losses.take() == (2.0, 7.0)
    losses.add([1.0, 1.0, 1.0])
    assert losses.take() == (1.0, 7.0)
    assert laps.told == ["computed", "met"] * 3


def test_losses_are_saved_by_learner():
    losses, _ = losses_of(2)
    losses.add([1.0, 2.0])
    losses.add([3.0, 5.0])
    state = losses.state_dict()
    assert state["losses"].tolist() == [[1, 3], [2, 5]]
    other, _ = losses_of(2)
    other.load_state_dict(state)
    assert other.take() == losses.take() == (2.75, 7.0)
    other.load_state_dict({})
    assert math.isnan(other.take()[0])


def test_the_losses_before_the_switch_do_not_count():
    losses, _ = losses_of(2)
    transport = averaging(algorithms.kavg.kavg(), 2).transport
    flat = Flat({"w": (3,)}, 2, None, transport.zeros)
    nothing = dict.fromkeys(("before", "after", "objective"), lambda *a: None)
    algorithm = adacomm(tau0=4, block=4, switch=3)
    made = Averaging(algorithm, transport, flat, Stateless(), losses=losses, **nothing)
    made.begin(0, 0.1)
    for t in range(1, 8):
        made.learn([100.0, 100.0] if t <= 3 else [1.0, 3.0])
        made.average_(t, 0.1)
    schedule = algorithm.schedule.rest
    assert (schedule.F0, schedule.tau, schedule.due) == (2.0, 2, 6)


# ---------------------------------------------------------------------------------------- replay

LINE = (
    "--learners 4 --batch-size 5 --steps 60 --lr 0.3 --save-weights --data epsilon-like:60x5 "
    "--log-every 60 --eval-every 60"
)


def trained(line, folder, name, status=0):
    words = ["train", *line.split(), *LINE.split(), "--out", str(folder / f"{name}.h5")]
    assert command_lines(MPI.COMM_WORLD, [words]) == [status]
    return load(folder / f"{name}.h5") if status == 0 else None


@pytest.mark.parametrize(
    "line",
    [
        "adacomm --tau0 9 --block 0.004s",
        "adacomm --tau0 9 --block 10 --switch 2 --outer nesterov",
        "adpsgd --p-init 2 --Ks 8 --warmup 0",
        "adalupa --rule loss --tau0 5",
        "adacomm --tau0 9 --block 10 --delay 1",
        "adpsgd --p-init 4 --Ks 12 --warmup 0 --delay 3 --merge lerp --switch 1",
    ],
)
def test_a_replay_has_the_bits_of_the_run(line, tmp_path, hooks):
    first = trained(line, tmp_path, "first")
    again = trained(f"{line} --replay {tmp_path}/first.h5", tmp_path, "again")
    for column in ("t", "begun", "period"):
        assert first.averages[column].tolist() == again.averages[column].tolist()
    assert (first.weights == again.weights).all()
    assert again.averages.variance.isna().all()  # nothing steers it


def test_a_replay_takes_the_periods_and_not_what_steered_them(tmp_path, hooks):
    """With another seed, τ₀ and step size, the averages come after the same updates."""
    first = trained("adacomm --tau0 9 --block 10", tmp_path, "first")
    line = f"adacomm --tau0 4 --block 10 --replay {tmp_path}/first.h5 --seed 4"
    again = trained(f"{line} --lr-schedule steps --decay-every 1", tmp_path, "again")
    assert first.averages.t.tolist() == again.averages.t.tolist()
    assert not (first.weights == again.weights).all()


def test_a_replay_that_does_not_fit_is_one_line(tmp_path, hooks, capsys):
    trained("adacomm --tau0 9 --block 10", tmp_path, "first")
    path, long = f"{tmp_path}/first.h5", LINE.replace("60 --lr", "61 --lr")
    for line, words in (
        (
            f"adpsgd --replay {path} {LINE}",
            "is a run of adacomm, not of adpsgd; give one of adpsgd",
        ),
        (
            f"adacomm --replay {path} {long}",
            "is finished, with averages up to update 60 of 61; give",
        ),
    ):
        out = tmp_path / "again.h5"
        words_ = ["train", *line.split(), "--out", str(out)]
        assert command_lines(MPI.COMM_WORLD, [words_]) == [2]
        assert f"--replay {path}: {words}" in capsys.readouterr().err


def test_a_replay_with_another_switch_is_refused_and_other_settings_are_told(
    tmp_path, hooks, capsys
):
    line, path = "adacomm --tau0 4 --block 10", tmp_path / "first.h5"
    trained(f"{line} --switch 2", tmp_path, "first")
    for other in ("", "--switch 3"):
        trained(f"{line} {other} --replay {path}", tmp_path, f"no{other}", status=2)
        assert "its averages begin with --switch 2" in capsys.readouterr().err
    trained(f"{line} --switch 2 --momentum 0.5 --optimizer momentum --replay {path}", tmp_path, "x")
    assert f"replay {path}: " in capsys.readouterr().err


def test_what_is_replayed_is_a_schedule_without_feedback():
    schedule = Replayed([3, 7])
    assert [t for t in range(1, 9) if schedule.after(t)] == [3, 7]
    assert schedule.needs is None and schedule.state_dict() == {}


def test_modelled_seconds_steer_a_simulated_run(tmp_path, hooks):
    """One update takes 1 s and an average nothing to speak of, so 10 s are 10 updates."""
    fast = "--bandwidth-bytes-per-s 1e15 --latency-s 1e-12"
    seconds = trained(
        f"adacomm --tau0 9 --block 10s --simulate --step-s 1 --step-cv 0 {fast}",
        tmp_path,
        "seconds",
    )
    updates = trained("adacomm --tau0 9 --block 10", tmp_path, "updates")
    assert seconds.averages.t.tolist() == updates.averages.t.tolist()
    assert seconds.averages.period.max() == 9 > seconds.averages.period.min()


def test_a_run_shorter_than_its_first_block_says_so():
    for schedule in (
        LossAndStep(4, 20),
        LossAndStep(4, None, 60.0),
        Switched(LossAndStep(4, 20), 3),
    ):
        periods(schedule, 12, clock=lambda t: 0.1 * t)
        assert "the period was 4 all along; take a shorter block" in schedule.unsteered
    steered = LossAndStep(4, 8)
    periods(steered, 12)
    assert steered.unsteered == ""
