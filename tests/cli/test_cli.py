"""The command line: every setting has an option with help, arrives in the run file, and is refused
by name if bad.
"""

import argparse
import contextlib
import io
import math
import re
import shutil
from dataclasses import FrozenInstanceError, fields

import pytest
from mpi import alone

from localavg import algorithms, config
from localavg.__main__ import parser
from localavg.algorithms import ALGORITHMS, options
from localavg.algorithms.common import COMMON
from localavg.cli import at_least_1, flag, in_flags, train
from localavg.config import TrainConfig
from localavg.config.settings import UNAVERAGED
from localavg.errors import UserError
from localavg.files.record import load
from localavg.training import checks

PAPERS = {
    "sgd",
    "sync",
    "kavg",
    "oneshot",
    "adalupa",
    "adpsgd",
    "piecewise",
    "qsgd",
    "mavg",
    "hieravg",
}


def helped(*words, cwd):
    done = alone(*words, "--help", cwd=cwd)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# --------------------------------------------------------------------------------------------------


def test_help_names_the_commands(tmp_path):
    text = helped(cwd=tmp_path)
    assert re.search(r"^ +train +\w", text, re.M) and re.search(r"^ +prepare +\w", text, re.M)
    text = helped("prepare", cwd=tmp_path)
    assert all(
        re.search(rf"^ +{name}\s+\w", text, re.M) for name in ("epsilon", "libsvm", "epsilon-like")
    )


def test_help_of_train_names_every_algorithm_and_every_setting(tmp_path):
    text = helped("train", cwd=tmp_path)
    assert set(ALGORITHMS) >= PAPERS
    for name in algorithms.BOTH:
        assert re.search(rf"^  {name} +\w", text, re.M)
    for f in fields(TrainConfig):
        assert f.metadata["help"]
        if f.name not in ("algorithm", "options"):
            assert flag(f.name) in text


@pytest.mark.parametrize("name", algorithms.BOTH)
def test_help_of_an_algorithm_shows_its_own_options_and_none_of_another(name):
    with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit) as end:
        parser().parse_args(["train", name, "--help"])
    assert end.value.code == 0
    shown = set(re.findall(r"^  (--[\w-]+)", out.getvalue(), re.M))
    own = {flag(option) for option in options(name)}
    others = {flag(option) for other in algorithms.BOTH for option in options(other)} - own
    assert own | {"--data", "--lr", "--out"} <= shown and not shown & others


def test_help_of_an_algorithm_leaves_out_what_means_nothing_to_it():
    def shown(name):
        return train.help_of("localavg train", name).format_help()

    assert "--optimizer" in shown("hieravg") and "--replay" not in shown("hieravg")
    assert "--optimizer" not in shown("downpour") and "--replay" in shown("downpour")


def test_an_option_of_an_algorithm_has_no_name_of_a_setting():
    own = {option for name in algorithms.BOTH for option in options(name)}
    assert own & {f.name for f in fields(TrainConfig)} == set()


def test_settings_know_which_algorithms_are_asynchronous():
    assert set(config.settings.ASYNCHRONOUS) == set(algorithms.ASYNCHRONOUS)
    assert list(config.settings.WITH_AUTO) == algorithms.with_auto()


@pytest.mark.parametrize("name", config.TrainConfig.__dataclass_fields__)
def test_a_rule_is_about_settings_that_exist_and_values_that_they_take(name):
    for rule in config.TrainConfig.__dataclass_fields__[name].metadata.get("rules", ()):
        other = config.TrainConfig.__dataclass_fields__[rule.setting]
        allowed = other.metadata.get("choices") or (*algorithms.BOTH, True)
        assert set(rule.values) <= set(allowed)


OLD = {"--schedule steps": "--lr-schedule steps", "--every 5": "--decay-every 5"}


@pytest.mark.parametrize("old", [*OLD, "--machine run.h5"])
def test_names_of_before_are_still_taken(old):
    new = {**OLD, "--machine run.h5": "--timing-from run.h5"}[old]
    lines = [["train", "kavg", *words.split()] for words in (old, new)]
    assert vars(parser().parse_args(lines[0])) == vars(parser().parse_args(lines[1]))
    assert old.split()[0] not in train.help_of("localavg train", "kavg").format_help().split()


def test_the_command_line_writes_settings_as_flags_and_nothing_else():
    assert in_flags("`batch_size = 5`: at most `K`") == "--batch-size 5: at most --K"
    assert in_flags("`data = epsilon like.h5` is no file") == "--data epsilon like.h5 is no file"
    assert in_flags("`prepare cifar10` wrote 2 * 3 = 6") == "`prepare cifar10` wrote 2 * 3 = 6"


def test_the_papers_symbols_are_the_options():
    symbols = {
        "kavg": {"K"},
        "mavg": {"K", "mu"},
        "diloco": {"K", "outer_lr", "mu"},
        "slowmo": {"K", "outer_lr", "mu"},
        "postlocal": {"K", "switch"},
        "fedavg": {"K", "participants"},
        "hieravg": {"K1", "K2", "S", "levels"},
        "adalupa": {"tau0", "alpha"},
        "adpsgd": {"p_init", "Ks"},
        "qsgd": {"bits", "bucket"},
        "piecewise": {"pieces"},
        "adacomm": {"tau0", "block"},
        "qsr": {"alpha", "K"},
        "gossip": {"K", "graph", "mix", "budget"},
    }
    for name, own in symbols.items():
        assert own <= set(options(name))
    assert [options(name) for name in ("sgd", "sync", "oneshot")] == [{}, {}, {}]


@pytest.mark.parametrize("name", algorithms.BOTH)
def test_every_option_of_an_algorithm_has_its_help(name):
    assert all(option.help for option in algorithms.declared(name).values())


def test_the_papers_settings_are_the_defaults():
    own = {"p_init": 4, "Ks": 0.25, "low": 0.7, "high": 1.3, "warmup": 1.0}
    assert options("adpsgd") == own | dict.fromkeys(COMMON)
    others = dict.fromkeys(set(COMMON) - {"outer"})
    assert options("diloco") == others | {"K": 500, "outer_lr": 0.7, "mu": 0.9}
    assert options("slowmo") | {"K": 0} == others | {"K": 0, "outer_lr": 1, "mu": 0.5}
    assert (options("adalupa")["tau0"], options("adalupa")["alpha"]) == (91, 1.09)
    assert options("qsgd") == {"bits": 8, "bucket": 512}


# --------------------------------------------------------------------------------------------------


def test_tau_is_lupas_name_of_k():
    for word in ("--K", "--tau"):
        assert vars(parser().parse_args(["train", "kavg", word, "7"]))["K"] == 7


def test_only_what_is_given_is_passed_on():
    given = vars(parser().parse_args(["train", "kavg", "--lr", "0.5"]))
    assert {name: given[name] for name in given if name not in ("call", "command")} == {
        "algorithm": "kavg",
        "lr": 0.5,
    }


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "COMMAND"),
        ("fly", "'fly'"),
        ("train", "ALGORITHM"),
        ("train kavg --K many", "--K 'many': must be a whole number"),
        ("train kavg --lr much", "--lr 'much': must be a number"),
        ("train kavg --optimizer lion", "--optimizer: invalid choice: 'lion'"),
        ("train kavg --K 2.5", "--K '2.5': must be a whole number"),
        ("bench average --repeats 0", "--repeats '0': must be a whole number of at least 1"),
        ("train kavg --wings 2", "--wings 2"),
        ("prepare", "SET"),
        ("prepare libsvm", "TRAIN"),
        ("prepare libsvm a.txt", "--out"),
    ],
)
def test_a_line_that_does_not_parse_is_a_users_mistake_that_points_to_help(line, words):
    with pytest.raises(UserError) as e:
        parser().parse_args(line.split())
    assert words in str(e.value) and str(e.value).endswith("--help)") and "\n" not in str(e.value)


HUGE = str(2**63)  # which no integer of HDF5 holds


def all_options():
    """(parser, option) of every option that takes a value, of every command."""
    parsers = [((), parser())]
    for words, p in parsers:
        for action in p._actions:
            if isinstance(action, argparse._SubParsersAction):
                parsers += [((*words, name), sub) for name, sub in action.choices.items()]
            elif action.option_strings and action.nargs != 0:
                yield p, action


def test_no_option_takes_an_empty_word():
    found = list(all_options())
    assert len(found) > 100
    for p, action in found:
        with pytest.raises(UserError) as e:
            p.parse_args([action.option_strings[0], ""])
        assert action.option_strings[0] in str(e.value)


def test_no_option_takes_an_integer_that_a_run_file_cannot_hold():
    for p, action in all_options():
        if action.type in (int, at_least_1):
            with pytest.raises(UserError) as e:
                p.parse_args([action.option_strings[0], HUGE])
            assert f"{action.option_strings[0]} {HUGE}: must be below 2^63" in str(e.value)


def test_an_argument_of_the_library_is_below_2_63_too():
    with pytest.raises(UserError, match="must be below"):
        algorithms.ALGORITHMS["kavg"](K=2**63)
    assert algorithms.ALGORITHMS["kavg"](K=2**63 - 1)


# --------------------------------------------------------------------------------------------------


def test_every_setting_arrives_in_the_run_file(tmp_path):
    given = {
        "data": "epsilon-like:60x5",
        "problem": "logistic",
        "l2": 0.01,
        "sampling": "shard",
        "learners": 3,
        "ranks_per_node": 1,
        "transport": "mpi",
        "device": "cpu",
        "engine": "loop",
        "steps": 12,
        "batch_size": 4,
        "optimizer": "nesterov",
        "momentum": 0.5,
        "state": "average",
        "seed": 3,
        "lr": 0.2,
        "lr_schedule": "steps",
        "factor": 0.25,
        "milestones": [1.0, 2.0],
        "warmup_epochs": 0.5,
        "warmup_from": 0.1,
        "out": "run.h5",
        "variance": "averages",
        "log_every": 2,
        "eval_every": 6,
        "eval_examples": 30,
        "checkpoint_every": "5",
        "time_limit": "1h",
        "on_failure": "end",
        "recovery_state": "policy",
    }
    flags = ["save_weights", "grad_norm", "force_block", "resume"]
    words = [f"--{flag.replace('_', '-')}" for flag in flags]
    for name, value in given.items():
        words += [f"--{name.replace('_', '-')}", *(value if isinstance(value, list) else [value])]
    done = alone("train", "mavg", "--K", 4, "--mu", 0.25, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "run.h5\n"
    assert "Traceback" not in done.stderr and "localavg:" not in done.stderr
    run = load(tmp_path / "run.h5")
    given |= {"algorithm": "mavg", "K": 4, "mu": 0.25, "outer": "momentum", "outer_lr": 1.0}
    assert {name: run.config[name] for name in given} == given
    assert all(run.config[flag] is True for flag in flags)
    unset = {"epochs", "weight_decay", "decay_every", "pl_constant", "shift", "replay"}
    other = {
        f.name for f in fields(TrainConfig) if f.metadata["group"] in ("network", "simulated time")
    }
    assert {f.name for f in fields(TrainConfig)} - {"options"} - set(given) - set(
        flags
    ) - other == unset
    assert {run.config[name] for name in unset} == {None}

    # and they took effect
    assert run.status == "finished"
    assert run.averages.t.tolist() == [4, 8, 12]
    assert run.train.t.tolist() == [2, 4, 6, 8, 10, 12] and run.eval.t.tolist() == [0, 6, 12]
    # 5 updates an epoch of a shard of 20 rows: a warm-up of round(2.5) = 2, ×0.25 after 5 and 10
    assert run.train.step_size.tolist() == pytest.approx([0.15, 0.2, 0.05, 0.05, 0.05, 0.0125])
    assert run.train.samples.tolist() == [24, 48, 72, 96, 120, 144]
    assert len(run.weights) == len(run.initial_weights) == 5
    assert run.averages.variance.notna().all() and run.eval.grad_norm_sq.notna().all()


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_every_setting_of_networks_arrives_in_the_run_file(tmp_path):
    given = {
        "data": "digits",
        "model": "mlp",
        "statistics": "keep",
        "calibrate": 2,
        "precision": "bf16",
    }
    words = [word for name, value in given.items() for word in (f"--{name}", value)]
    done = alone(
        "train",
        "kavg",
        *words,
        "--no-augment",
        "--compile",
        "--steps",
        1,
        "--out",
        "run.h5",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    found = load(tmp_path / "run.h5").config
    assert {name: found[name] for name in given} == given
    assert found["no_augment"] and found["compile"] and found["problem"] == "network"
    own = {f.name for f in fields(TrainConfig) if f.metadata["group"] == "network"}
    assert own == {*given, "no_augment", "compile", "deterministic"} - {"data"}


def test_without_settings_it_is_one_epoch_in_the_default_place(tmp_path):
    done = alone("train", "kavg", "--data", "epsilon-like:64x8", "--batch-size", 4, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "runs/kavg-s0.h5\n")
    run = load(tmp_path / "runs" / "kavg-s0.h5")
    assert run.status == "finished" and run.config["steps"] == 16 == run.eval.t.iloc[-1]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["kavg-s0.h5"]  # no partial


def test_epochs_are_rounded_up_to_whole_updates(tmp_path):
    # 6.4 updates an epoch
    words = "--data epsilon-like:64x8 --batch-size 5 --learners 2 --epochs 1.5 --seed 4"
    assert alone("train", "oneshot", *words.split(), cwd=tmp_path).returncode == 0
    run = load(tmp_path / "runs" / "oneshot-s4.h5")
    assert run.config["steps"] == 10 and run.averages.t.tolist() == [10]


# ----------------------------------------------------------------------------------------------- ba

NAN, INF = math.nan, math.inf
BAD = [
    ({"learners": 0}, "--learners 0: must be at least 1"),
    ({"ranks_per_node": 0}, "--ranks-per-node 0: must be at least 1"),
    ({"steps": 0}, "--steps 0: must be at least 1"),
    ({"steps": -5}, "--steps -5: must be at least 1"),
    ({"batch_size": 0}, "--batch-size 0: must be at least 1"),
    ({"log_every": 0}, "--log-every 0: must be at least 1"),
    ({"eval_every": -1}, "--eval-every -1: must be at least 1"),
    ({"seed": -1}, "--seed -1: must be at least 0"),
    ({"seed": 2**63}, f"--seed {2**63}: must be below 2^63"),
    *[
        ({name: x}, f"--{name.replace('_', '-')} {x}: must be a finite number above 0")
        for name in ("lr", "epochs", "factor", "warmup_from")
        for x in (0.0, -0.5, NAN, INF, -INF)
    ],
    *[
        ({name: x}, f"--{name.replace('_', '-')} {x}: must be a finite number of at least 0")
        for name in ("l2", "warmup_epochs")
        for x in (-0.5, NAN, INF)
    ],
    *[({"momentum": x}, f"--momentum {x}: must lie in [0, 1)") for x in (1.0, -0.1, NAN, INF)],
    *[
        ({"lr_schedule": "steps", "milestones": (5.0, x)}, f"--milestones {x}: must be")
        for x in (-1.0, NAN, INF)
    ],
    *[
        ({"lr_schedule": "steps", "decay_every": x}, f"--decay-every {x}: must be")
        for x in (0.0, -1.0, NAN, INF)
    ],
    *[
        ({"lr_schedule": "inverse", "pl_constant": x}, f"--pl-constant {x}: must be")
        for x in (0.0, -1.0, NAN, INF)
    ],
    *[
        ({"lr_schedule": "inverse", "pl_constant": 1.0, "shift": x}, f"--shift {x}: must be")
        for x in (-1.0, NAN, INF)
    ],
    *[
        (settings, f"--{name} 1e+308: must be")
        for name, settings in (  # more updates than a number can count
            ("epochs", {"epochs": 1e308}),
            ("warmup-epochs", {"warmup_epochs": 1e308}),
            ("milestones", {"lr_schedule": "steps", "milestones": (1e308,)}),
        )
    ],
    ({"lr_schedule": "cosine"}, "--lr-schedule cosine: must be one of constant, steps, inverse"),
    (
        {"optimizer": "lion"},
        "--optimizer lion: must be one of sgd, momentum, nesterov, adam, adamw",
    ),
    ({"state": "forget"}, "--state forget: must be one of keep, average, reset"),
    *[
        ({"state": state, "optimizer": "adam"}, f"--state {state}: must be one of keep, average")
        for state in ("m=forget", "m", "m=keep,", "=keep", "m=keep,m=reset", "m=keep=v", "")
    ],
    ({"state": "m=reset"}, "--state m=reset means nothing to --optimizer sgd, which has no state"),
    (
        {"state": "average"},
        "--state average means nothing to --optimizer sgd, which has no state; use",
    ),
    (
        {"state": "m=reset,u=keep", "optimizer": "adam"},
        "--state m=reset,u=keep: --optimizer adam has no moment u; it has m and v",
    ),
    (
        {"state": "m=reset,v=keep", "optimizer": "momentum"},
        "--state m=reset,v=keep: --optimizer momentum has no moment m; it has v",
    ),
    ({"sampling": "some"}, "--sampling some: must be one of iid, shuffle, shard, block"),
    ({"variance": "yes"}, "--variance yes: must be one of no, averages, steps"),
    (
        {"steps": 10, "epochs": 2.0},
        "--steps 10 and --epochs 2 both set the length: give one of them",
    ),
    (
        {"milestones": (5.0,)},
        "--milestones 5.0 means nothing to --lr-schedule constant; use --lr-schedule steps, or leave it out",
    ),
    (
        {"decay_every": 5.0},
        "--decay-every 5.0 means nothing to --lr-schedule constant; use --lr-schedule steps",
    ),
    (
        {"pl_constant": 1.0},
        "--pl-constant 1.0 means nothing to --lr-schedule constant; use --lr-schedule inverse",
    ),
    ({"lr_schedule": "steps"}, "--lr-schedule steps needs one of --milestones and --decay-every"),
    (
        {"lr_schedule": "steps", "decay_every": 5.0, "milestones": (5.0,)},
        "--lr-schedule steps needs one of --milestones and",
    ),
    (
        {"lr_schedule": "steps", "decay_every": 5.0, "shift": 1.0},
        "--shift 1.0 means nothing to --lr-schedule steps",
    ),
    ({"lr_schedule": "inverse"}, "--lr-schedule inverse needs --pl-constant"),
    (
        {"lr_schedule": "inverse", "pl_constant": 1.0, "decay_every": 5.0},
        "--decay-every 5.0 means nothing to --lr-schedule inverse",
    ),
]


@pytest.mark.parametrize(("settings", "words"), BAD, ids=[f"{words}" for _, words in BAD])
def test_a_bad_setting_is_refused_by_name_value_and_rule(settings, words):
    with pytest.raises(UserError) as e:
        TrainConfig(algorithm="kavg", **settings)
    assert in_flags(str(e.value)).startswith(words) and "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["sgd", "sync", "qsgd"])
def test_a_policy_of_the_state_means_nothing_where_no_weights_are_averaged(name):
    assert not algorithms.make(name, {}, T=10, epoch=5).schedule.final
    with pytest.raises(UserError) as e:
        TrainConfig(algorithm=name, optimizer="momentum", state="reset")
    assert in_flags(str(e.value)).startswith(
        f"--state reset means nothing to {name}, which averages no weights; leave it out"
    )
    TrainConfig(algorithm=name, optimizer="momentum", state="keep")


def test_fedavg_takes_its_own_policy_without_a_state_and_no_average_of_it():
    TrainConfig(algorithm="fedavg", state="reset")
    with pytest.raises(UserError, match="`state = average` means nothing to `optimizer = sgd`"):
        TrainConfig(algorithm="fedavg", state="average")


def test_the_rows_that_average_no_weights_are_known():
    needed = {"qsr": {"alpha": 0.2}, "postlocal": {"switch": 0.5}}
    finals = {
        name: algorithms.make(
            name, needed.get(name, {}), T=1000, epoch=100, step_size=lambda t: 0.1
        ).schedule.final
        for name in ALGORITHMS
    }
    assert tuple(name for name, final in finals.items() if not final) == UNAVERAGED


def test_limits_are_taken():
    TrainConfig(
        algorithm="kavg",
        learners=1,
        steps=1,
        batch_size=1,
        seed=2**63 - 1,
        optimizer="momentum",
        momentum=0.0,
        l2=0.0,
        lr=5e-324,
    )
    TrainConfig(algorithm="kavg", lr_schedule="steps", milestones=(0.0,), warmup_epochs=0.0)
    TrainConfig(algorithm="kavg", lr_schedule="inverse", pl_constant=1.0, shift=0.0)


def test_settings_do_not_change():
    c = TrainConfig(algorithm="kavg")
    with pytest.raises(FrozenInstanceError):
        c.lr = 0.5
    with pytest.raises(TypeError):
        TrainConfig("kavg")  # by name only


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("kavg", {"K": 0}, "--K 0: a period must be at least 1"),
        ("mavg", {"K": -1}, "--K -1: a period must be at least 1"),
        *[("mavg", {"mu": x}, f"--mu {x}: must lie in [0, 1)") for x in (1.0, -0.1, NAN, INF)],
        ("hieravg", {"mu": NAN}, "--mu nan: must lie in"),
        *[
            (name, {"outer_lr": x}, f"--outer-lr {x}: must be a finite number above 0")
            for name in ("mavg", "diloco", "slowmo")
            for x in (0.0, -1.0, NAN, INF)
        ],
        ("kavg", {"outer": "lion"}, "--outer lion: must be one of none, momentum, nesterov"),
        ("mavg", {"outer": "adam"}, "--outer adam: must be one of momentum, nesterov"),
        ("kavg", {"outer_lr": 0.5}, "--outer-lr 0.5 means nothing to a run without --outer; add"),
        ("kavg", {"outer": "none", "mu": 0.5}, "--mu 0.5 means nothing to a run without --outer"),
        ("hieravg", {"outer": "yogi", "mu": 1.0}, "--mu 1.0: must lie in [0, 1)"),
        *[
            (name, {"outer": "nesterov"}, f"--outer means nothing to {name}, which takes")
            for name in ("sgd", "sync", "qsgd", "oneshot", "downpour", "eamsgd", "diloco")
        ],
        ("hieravg", {"K1": 5, "K2": 4}, "--K1 5 exceeds --K2 4"),
        ("gossip", {"K": 0}, "--K 0: a period"),
        (
            "gossip",
            {"graph": "star"},
            "--graph star: must be one of ring, torus, exp, one-peer-exp",
        ),
        ("gossip", {"mix": "last"}, "--mix last: must be one of after, first"),
        ("gossip", {"graph": "matching", "base": "exp"}, "--base exp: must be one of ring, torus"),
        *[
            ("gossip", {"graph": "matching", "budget": x}, f"--budget {x}: the part of the edges")
            for x in (0.0, -0.5, 1.5, NAN)
        ],
        ("gossip", {"budget": 0.5}, "--budget 0.5: --graph ring does not use it; leave it out"),
        (
            "gossip",
            {"graph": "exp", "probabilities": "equal"},
            "--probabilities equal: --graph exp does not use it",
        ),
        (
            "gossip",
            {"outer": "nesterov"},
            "--outer means nothing to gossip, which takes --K, --graph",
        ),
        ("hieravg", {"K1": 0}, "--K1 0: a period"),
        ("adpsgd", {"p_init": 0}, "--p-init 0: a period"),
        *[
            ("adpsgd", {"Ks": x}, f"--Ks {x}: must be a finite number above 0")
            for x in (0.0, -1.0, NAN, INF)
        ],
        ("adpsgd", {"Ks": 0.001}, "--Ks of 1 updates ends before the first average at p_init = 4"),
        *[
            ("adpsgd", {"warmup": x}, f"--warmup {x}: must be a number of epochs")
            for x in (-1.0, NAN, INF)
        ],
        ("adpsgd", {"low": 2.0}, "--low 2 and --high 1.3"),
        ("adalupa", {"tau0": 0}, "--tau0 0: a period"),
        ("adalupa", {"alpha": NAN}, "--alpha nan: must be"),
        ("adalupa", {"rule": "loss", "tau0": 0}, "--tau0 0: a period"),
        ("adalupa", {"rule": "guess"}, "--rule guess: must be linear"),
        *[
            ("piecewise", {"pieces": x}, f"--pieces {x}: must read FROM_EPOCH:K")
            for x in ("", "4", "0:4,8", "0:x", "nan:4", "inf:4", "0:4:8", "0:2.5")
        ],
        ("piecewise", {"pieces": "1:4"}, "--pieces 1:4: the first stage must begin at epoch 0"),
        ("piecewise", {"pieces": "0:4,-3:8"}, "--pieces 0:4,-3:8: must read FROM_EPOCH:K"),
        ("piecewise", {"pieces": "0:4,1e300:8"}, "--pieces 0:4,1e300:8: must read FROM_EPOCH:K"),
        ("piecewise", {"pieces": "0:4,5:8,5:9"}, "--pieces 0:4,5:8,5:9: the first stage must"),
        ("adpsgd", {"Ks": 1000.5}, "--Ks 1000.5: must be a whole number of updates"),
        ("adpsgd", {"Ks": 1e300}, "--Ks 1e+300: must be a whole number of updates"),
        ("adpsgd", {"warmup": 1e308}, "--warmup 1e+308: must be a number of epochs"),
        ("piecewise", {"pieces": "0:4,0.001:8"}, "--pieces with starts [0, 0]"),
        ("qsgd", {"bits": 1}, "--bits 1: must lie in 2 … 8"),
        ("qsgd", {"bucket": 0}, "--bucket 0: must be at least 1"),
        ("sync", {"K": 4}, "--K means nothing to sync, which takes no options of its own"),
        ("oneshot", {"mu": 0.5}, "--mu means nothing to oneshot, which takes no options"),
        ("kavg", {"p_init": 5}, "--p-init means nothing to kavg"),
        ("flyavg", {}, "algorithm flyavg: must be one of sgd, sync, qsgd, kavg, "),
    ],
)
def test_a_bad_option_of_an_algorithm_is_refused_by_name(name, given, words):
    with pytest.raises(UserError) as e:
        algorithms.make(name, given, T=1000, epoch=100)
    assert in_flags(str(e.value)).startswith(words) and "\n" not in str(e.value)
    assert name in algorithms.BOTH or all(known in str(e.value) for known in ALGORITHMS)


@pytest.mark.parametrize(
    ("name", "like"),
    [
        ("kvag", "kavg"),
        ("hieraavg", "hieravg"),
        ("BMUF", "mavg"),
        ("local-sgd", "kavg"),
        ("FedAdam", "fedavg --outer adam"),
        ("fedavgm", "fedavg --outer momentum"),
    ],
)
def test_a_misspelt_algorithm_names_the_nearest(name, like):
    for refuse in (lambda: algorithms.check(name, {}), lambda: train.help_of("", name)):
        with pytest.raises(UserError, match=f"did you mean {like}"):
            refuse()


def test_an_algorithm_that_is_like_none_is_told_where_ones_own_belong():
    """`coin` is that of jobs/examples/own_algorithm.py, which no command line knows."""
    with pytest.raises(UserError, match=r"coin: must be one of sgd, .*; localavg.train takes a f"):
        checks.read({"algorithm": "coin"})


@pytest.mark.parametrize(
    ("given", "now"),
    [
        ({"algorithm": "mavg", "nesterov": True}, ("nesterov", 1.0, 0.7)),
        ({"algorithm": "mavg", "nesterov": False, "mu": 0.0}, ("momentum", 1.0, 0.0)),
        ({"algorithm": "hieravg", "mu": 0.4, "nesterov": True}, ("nesterov", 1.0, 0.4)),
        ({"algorithm": "hieravg", "mu": 0.4, "nesterov": False}, ("momentum", 1.0, 0.4)),
        ({"algorithm": "hieravg", "mu": 0.0, "nesterov": True}, (None, None, None)),
        ({"algorithm": "hieravg", "nesterov": True}, (None, None, None)),
        ({"algorithm": "kavg"}, (None, None, None)),
    ],
)
def test_block_momentum_of_earlier_run_files_and_commands_is_the_same_setting_today(given, now):
    names = ("outer", "outer_lr", "mu")
    here = checks.all_settings(checks.read(given))
    assert tuple(here[name] for name in names) == now and "nesterov" not in here
    old = {name: value for name, value in here.items() if name not in names}
    if given["algorithm"] != "kavg":
        old |= {"mu": 0.7 if given["algorithm"] == "mavg" else 0.0, **given}
    assert tuple(checks.recorded(old)[name] for name in names) == now
    assert checks.difference(here, old) is None


def test_a_finished_run_without_an_outer_optimiser_is_not_one_with_it():
    here = checks.all_settings(checks.read({"algorithm": "kavg", "outer": "adam"}))
    there = {name: x for name, x in here.items() if name not in ("outer", "outer_lr", "mu")}
    assert checks.difference(here, there) is not None


def test_the_earlier_flag_of_nesterovs_form_still_works():
    config = checks.read(train.given(parser().parse_args(["train", "mavg", "--nesterov"])))
    assert config.options == {"outer": "nesterov", "outer_lr": 1.0, "mu": 0.7}
    with pytest.raises(UserError, match="means nothing to sync"):
        checks.read(train.given(parser().parse_args(["train", "sync", "--nesterov"])))
