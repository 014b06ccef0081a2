"""What decides the papers' claims: the rule, its power, and every claim on runs made for it."""

import claims
import h5py
import numpy as np
import pandas as pd
import pytest
from claimed import LINKS, MAKERS, by_period, made, maker_of, pairs, speedup
from figures import FIGURES, SCRIPTS, SWEEPS, planned, write
from scipy import stats
from trends import methods, rule
from trends.rule import MOST, seeds_needed
from trends.select import always

from localavg.files.record import load_many


def of(text):
    """The claim whose text has these words."""
    (found,) = [claim for name, claim in claims.CLAIMS.items() if text in name]
    return found


def test_every_claim_has_a_maker_and_a_sweep():
    assert {maker_of(text) for text in claims.CLAIMS} == MAKERS.keys()
    assert len(MAKERS) == len(claims.CLAIMS)
    assert {claim.sweep for claim in claims.CLAIMS.values()} == {*FIGURES} - {"theory"}


@pytest.mark.parametrize("text", claims.CLAIMS)
@pytest.mark.parametrize(
    "difference, noise, seeds, verdict",
    [
        (0.5, 0.05, 3, "pass"),
        (-0.5, 0.05, 3, "fail"),
        (0.05, 0.4, 3, "inconclusive"),
        pytest.param(-0.5, 0.05, 5, "fail", marks=pytest.mark.long),
        pytest.param(0.5, 0.05, 2, "inconclusive", marks=pytest.mark.long),
        pytest.param(-0.5, 0.05, 1, "inconclusive", marks=pytest.mark.long),
    ],
)
def test_a_claim_is_judged_right(text, difference, noise, seeds, verdict):
    found = list(claims.CLAIMS[text].check(pairs(MAKERS[maker_of(text)], difference, noise, seeds)))
    assert {finding.verdict for finding in found} == {verdict}
    assert f"({seeds})" in found[0].numbers and f"({seeds})" in found[0].decision.seen
    assert "<" in found[0].decision.asked
    wanted = claims.would_decide(text, found[0])
    assert ("seeds" in wanted) == (verdict == "inconclusive"), wanted


@pytest.mark.parametrize("words", ["than FULLSGD at equal loss", "Post-local", "QSR"])
def test_more_averages_fail_a_claim_of_fewer_whatever_else(words):
    better = pairs(MAKERS[words], 3.0, 0.0, 3)
    assert [f.verdict for f in of(words).check(better)] == ["pass"]
    ours = better[0].config["algorithm"]
    for run in better:
        if run.config["algorithm"] == ours:
            object.__setattr__(run, "averages", pd.concat([run.averages] * 5))
    assert [f.verdict for f in of(words).check(better)] == ["fail"]


@pytest.mark.parametrize(
    "words, losses",
    [
        ("every 5 updates", {"five": 0.09}),
        ("every 91 updates", {"rare": 0.16}),
        ("every 91 updates", {"once": 0.11}),
    ],
)
def test_what_is_neither_equal_nor_slight_fails(words, losses):
    found = [run for seed in range(3) for run in by_period(seed, **losses)]
    assert [f.verdict for f in of(words).check(found)] == ["fail"]


def test_beyond_the_bound_no_linear_speed_up_is_asked_for():
    """With K = 8 bound (3.2) ends the speed-up of the problem at P = 5.3, and LUPA at 8192."""
    found = [run for s in range(3) for P, x in ((4, 0.5), (64, -1.0)) for run in speedup(x, s, P=P)]
    verdicts = {
        words: [f.verdict for f in of(words).check(found)]
        for words in ("sync up to the P of bound", "speed-up ends", "up to LUPA's p")
    }
    assert [*verdicts.values()] == [["pass"], ["pass"], ["fail"]]


def test_a_clock_with_latency_does_not_count_at_other_rates():
    found = [
        made(name, seed, loss=0.0, K=K, **LINKS | {"latency_s": 5e-6})
        for seed in range(3)
        for name, K in (("kavg", 16), ("sync", None))
    ]
    assert list(methods.much_sooner(found)) == []


def test_runs_of_other_settings_or_unfinished_are_not_compared():
    check = of("than K-AVG (Fig. 1-6)").check
    found = [
        run
        for seed in range(3)
        for run in (made("mavg", seed, K=4, mu=0.7), made("kavg", seed, K=4, lr=0.2))
    ]
    assert list(check(found)) == []
    found = [made("mavg", 0, K=4, mu=0.7), made("kavg", 0, K=8)]
    assert list(check(found)) == []


@pytest.mark.parametrize(
    "a, b, margin, verdict",
    [
        ([1, 1, 1], [2, 2, 2], 0, "pass"),
        ([2, 2, 2], [1, 1, 1], 0, "fail"),
        ([1, 1, 1], [1, 1, 1], 0, "inconclusive"),
        ([1, 1, 1], [1, 1, 1], 0.1, "pass"),
        ([1, 2, 3], [1.5, 2.4, 3.6], 0, "pass"),
        ([1, 2, 9], [1.5, 2.4, 3.6], 0, "inconclusive"),
        ([1, np.nan, 1], [2, 2, 2], 0, "inconclusive"),
    ],
)
def test_the_rule(a, b, margin, verdict):
    assert rule.less(dict(enumerate(a)), dict(enumerate(b)), margin).verdict == verdict


def test_times_are_compared_by_their_ratio():
    theirs = {0: 1.0, 1: 10.0, 2: 100.0}
    ours = {seed: 0.4 * s for seed, s in theirs.items()}
    assert rule.times(ours, theirs, 0.5).verdict == "pass"
    assert rule.times(ours, theirs, 0.3).verdict == "fail"
    assert rule.times(ours, theirs, 0.5).seen == "0.4 times ± 0 % (3)"


@pytest.mark.parametrize("shift", [0.45, 0.8, 1.5, 4.0])
@pytest.mark.parametrize("risk", [0.05, 0.005])
def test_so_many_seeds_decide_with_the_power_asked_for(shift, risk):
    """By simulation: draws of the effect, and the t-bounds of their means."""
    n = seeds_needed(-2.0 * shift, 2.0, risk)
    draws = np.random.default_rng(0).normal(-shift, 1, (20_000, MOST + 1))

    def decided(k):
        x = draws[:, :k]
        bounds = x.mean(1) + stats.t.ppf(1 - risk, k - 1) * x.std(1, ddof=1) / np.sqrt(k)
        return np.mean(bounds < 0)

    error = 3 * np.sqrt(0.16 / len(draws))
    assert (n > MOST or decided(n) > 0.8 - error) and (n == 3 or decided(n - 1) < 0.8 + error)


def test_for_many_seeds_their_number_is_that_of_the_normal_law():
    """(z_0.95 + z_0.8)² / shift² pairs, and the z² / 2 that t costs more (Guenther 1981)."""
    for shift in (0.38, 0.5, 0.7):
        normal = ((1.6449 + 0.8416) / shift) ** 2 + 1.6449**2 / 2
        assert abs(seeds_needed(shift, 1.0) - normal) <= 1.5
    assert seeds_needed(0.3, 1.0) == MOST + 1 and seeds_needed(0.0, 0.0) == MOST + 1


def test_an_open_claim_says_how_many_seeds_or_which_scale_would_decide():
    effect = {0: -0.5, 1: -0.2, 2: 0.1}
    decision = rule.less(effect, always(effect, 0))
    spread, seen = 0.3, -0.2
    assert decision.verdict == "inconclusive" and decision.seeds == seeds_needed(seen, spread)
    words = "than K-AVG (Fig. 1-6)"
    (finding,) = of(words).check(pairs(MAKERS[words], 0.001, 0.5, 3))
    said = claims.would_decide(of(words).text, finding)
    assert said == "over 50 seeds; --scale gpu, with ResNet-18 and 200 epochs"


def test_claims_prints_a_table_and_says_what_is_missing(draw, tmp_path):
    for name, config in planned("hieravg_fig3_4").items():
        write(tmp_path / f"{name}.h5", config)
    status, out, err, _ = draw("claims", tmp_path)
    assert (status, err) == (0, "")
    lines = [line for line in out.splitlines() if line.startswith("| ")]
    assert len(lines) >= 1 + len(claims.CLAIMS)
    assert any("smaller K₁" in line and "| pass" in line for line in lines)
    missing = len(claims.CLAIMS) - 2
    assert f" {missing} missing" in out
    assert "no runs to compare: .venv/bin/localavg sweep jobs/sweeps/lupa-fig2.toml" in out
    assert (tmp_path / "figures" / "claims.md").read_text() in out


@pytest.mark.parametrize("planted, verdict", [(0.0, "pass"), (0.02, "fail")])
def test_a_wrong_claim_planted_in_run_files_is_caught(planted, verdict, draw, tmp_path):
    """The files of a whole sweep, in which larger K₁ ends at less loss than smaller K₁."""
    folder = tmp_path / "hieravg-fig3-4-laptop"
    for name, config in planned("hieravg_fig3_4").items():
        write(folder / f"{name}.h5", config)
        if config["K1"] == 4:
            with h5py.File(folder / f"{name}.h5", "r+") as file:
                file["eval/train_loss"][-1] += planted
    status, out, err, _ = draw("claims", tmp_path)
    assert (status, err) == (0, "")
    (line,) = [line for line in out.splitlines() if "smaller K₁" in line][:1]
    assert f"| {verdict} " in line


def test_a_claim_is_decided_on_the_runs_of_its_own_sweep(tmp_path):
    for sweep in ("mavg-fig1-6", "mavg-fig7-8"):
        for run in pairs(MAKERS["than K-AVG (Fig. 1-6)"], 0.5, 0.05, 3):
            for folder in (f"{sweep}-laptop", f"{sweep}-root/1gbit"):
                data = {"data_name": f"{sweep} {folder[-5:]}"}
                write(tmp_path / folder / run.path.name, {**run.config, **data})
    found = claims.findings(load_many(tmp_path))
    places = [f.where for text, f in found if text == "than K-AVG (Fig. 1-6)" or "(Fig. 7)" in text]
    assert any("mavg-fig7-8" in where for where in places)
    assert not any("mavg-fig1-6" in where for where in places)


@pytest.mark.long
def test_every_claim_finds_the_runs_that_its_sweep_makes(tmp_path):
    for script, sweep in SWEEPS.items():
        for name, config in planned(script, seeds=1).items() if script in SCRIPTS else ():
            # LUPA's bound on P grows as T², and made-up runs have few updates
            long = {"steps": 2048} if script == "many_learners" else {}
            write(tmp_path / f"{sweep}-laptop" / f"{name}.h5", {**config, **long})
    found = list(claims.findings(load_many(tmp_path)))
    assert [text for text, finding in found if finding.verdict == "missing"] == []
