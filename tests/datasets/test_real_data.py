"""A real data set as LIBSVM text, from the file to a trained model."""

import numpy as np
from mpi import run
from sklearn.datasets import dump_svmlight_file, load_breast_cancer

from localavg.files.record import load


def test_a_real_libsvm_file_is_prepared_and_trained_on(tmp_path):
    """scikit-learn's breast-cancer set (569 × 30, labels 0 and 1): above 95 % right, as logistic
    regression gets on it.
    """
    x, y = load_breast_cancer(return_X_y=True)
    x = (x - x.mean(axis=0)) / x.std(axis=0)  # [n, d]
    order = np.random.default_rng(0).permutation(len(y))
    train, test = order[:456], order[456:]
    for name, rows in (("train.txt", train), ("test.txt", test)):
        dump_svmlight_file(x[rows], y[rows], str(tmp_path / name), zero_based=False)
    data, out = tmp_path / "cancer.h5", tmp_path / "run.h5"
    run(
        2,
        "-m",
        "localavg",
        "prepare",
        "libsvm",
        tmp_path / "train.txt",
        "--test",
        tmp_path / "test.txt",
        "--shuffle",
        "0",
        "--out",
        data,
        check=True,
    )
    run(
        2,
        "-m",
        "localavg",
        "train",
        "kavg",
        "--K",
        "4",
        "--learners",
        "4",
        "--data",
        data,
        "--sampling",
        "block",
        "--batch-size",
        "8",
        "--lr",
        "0.1",
        "--epochs",
        "20",
        "--out",
        out,
        check=True,
    )
    found = load(out)
    assert found.config["rows"] == 456 and found.config["d"] == 30
    assert found.eval.test_accuracy.iloc[-1] > 0.95
