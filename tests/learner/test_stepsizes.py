"""The step size γ_t of update t = 1, 2, …: the papers' schedules, worked out by hand."""

import pytest

from localavg.config import TrainConfig
from localavg.learner import stepsizes


def schedule(epoch, **settings):
    return stepsizes.make(TrainConfig(algorithm="kavg", **settings), epoch)


def at(gamma, values):
    """γ_t is these values at these t, to rounding."""
    assert {t: gamma(t) for t in values} == pytest.approx(values, rel=1e-12)


def test_constant():
    at(schedule(10, lr=0.05), {1: 0.05, 2: 0.05, 10**9: 0.05})


def test_kavg_halves_every_50_epochs():
    gamma = schedule(10, lr=1.0, lr_schedule="steps", decay_every=50, factor=0.5)
    at(
        gamma,
        {
            1: 1,
            500: 1,
            501: 0.5,
            1000: 0.5,
            1001: 0.25,
            1500: 0.25,
            1501: 0.125,
            5501: 2**-11,
            6000: 2**-11,
        },
    )


def test_adpsgd_on_cifar10():
    # 0.1 → 0.01 → 0.001 at 80 and 120 of 160 epochs, here of 7 updates
    gamma = schedule(7, lr=0.1, lr_schedule="steps", milestones=(80, 120))
    at(gamma, {1: 0.1, 560: 0.1, 561: 0.01, 840: 0.01, 841: 0.001, 1120: 0.001})


def test_adpsgd_on_imagenet():
    # warm-up from 0.1 to 0.8 over 8 epochs, 0.08 at 30, 0.008 at 60 of 90, here of 5 updates
    gamma = schedule(
        5, lr=0.8, lr_schedule="steps", milestones=(30, 60), warmup_epochs=8, warmup_from=0.1
    )
    at(gamma, {1: 0.1, 2: 0.1175, 21: 0.45, 40: 0.7825, 41: 0.8})
    at(gamma, {150: 0.8, 151: 0.08, 300: 0.08, 301: 0.008, 450: 0.008})


def test_hieravg():
    # 0.1 → 0.01 at 150 of 200 epochs, here of 3 updates
    at(
        schedule(3, lr=0.1, lr_schedule="steps", milestones=(150,)),
        {1: 0.1, 450: 0.1, 451: 0.01, 600: 0.01},
    )


def test_inverse_time():
    # γ_t = 4 / (μ (t + a)), a = ατ + 4 with α = 10, τ = 91 (lupa Theorem 1)
    gamma = schedule(10, lr_schedule="inverse", pl_constant=0.5, shift=914)
    at(gamma, {1: 8 / 915, 86: 8 / 1000, 9086: 8 / 10000})
    at(schedule(10, lr_schedule="inverse", pl_constant=2.0), {1: 2.0, 4: 0.5, 1000: 0.002})


def test_a_warm_up_starts_at_a_tenth_unless_told():
    at(schedule(10, lr=0.5, warmup_epochs=2), {1: 0.05, 11: 0.275, 20: 0.4775, 21: 0.5, 99: 0.5})


def test_milestones_inside_the_warm_up_hold_after_it():
    gamma = schedule(
        10,
        lr=1.0,
        lr_schedule="steps",
        milestones=(1, 3),
        factor=0.5,
        warmup_epochs=2,
        warmup_from=0.2,
    )
    at(gamma, {1: 0.2, 11: 0.6, 20: 0.96, 21: 0.5, 30: 0.5, 31: 0.25})


def test_milestones_in_any_order():
    gamma = schedule(2, lr=1.0, lr_schedule="steps", milestones=(6, 2, 4), factor=0.5)
    at(gamma, {4: 1, 5: 0.5, 8: 0.5, 9: 0.25, 12: 0.25, 13: 0.125})


def test_a_milestone_of_zero_holds_from_the_start():
    at(schedule(4, lr=1.0, lr_schedule="steps", milestones=(0,), factor=0.5), {1: 0.5, 2: 0.5})


def test_an_epoch_need_not_be_a_whole_number_of_updates():
    # 3.125 updates in an epoch: 250 after 80 of them
    at(schedule(3.125, lr=0.1, lr_schedule="steps", milestones=(80,)), {250: 0.1, 251: 0.01})
    at(
        schedule(3.125, lr=0.1, lr_schedule="steps", decay_every=80),
        {250: 0.1, 251: 0.01, 500: 0.01, 501: 0.001},
    )


@pytest.mark.parametrize("epochs", [0.5, 1.1, 2.2, 2.3, 4.1])
def test_every_so_many_epochs_is_a_milestone_at_each_of_them(epochs):
    # 1.1 epochs of 100 updates are 110 updates, not the 110.00000000000001 of floating point
    period = round(100 * epochs)
    gamma = schedule(100, lr=1.0, lr_schedule="steps", decay_every=epochs, factor=0.5)
    at(gamma, {t: 0.5 ** ((t - 1) // period) for t in range(1, 5 * period + 2)})


def test_a_step_size_is_a_function_of_t_alone():
    gamma = schedule(5, lr=0.8, lr_schedule="steps", milestones=(30, 60), warmup_epochs=8)
    assert [gamma(t) for t in (400, 1, 200, 17)] == [gamma(t) for t in (400, 1, 200, 17)]
