"""The figure of `localavg plan`."""

from itertools import product

import numpy as np
from figures import check_labels

from localavg.__main__ import parser


def test_the_figure_is_drawn_from_what_plan_writes(draw, tmp_path, capsys):
    path = tmp_path / "plan.json"
    line = "plan --step-s 0.5 --step-cv 0 --latency-s 0 --floats 100 --steps 64 --K 1 4 16"
    args = parser().parse_args(f"{line} --nodes 2 4 --bandwidth 800 8000 --json {path}".split())
    args.call(args)
    capsys.readouterr()
    status, out, err, (figure,) = draw("plan", path, save="as the script")
    assert (status, err) == (0, "")
    check_labels(figure)
    assert [axes.get_title() for axes in figure.axes] == [
        f"({letter}) {n} nodes, {g} Gbit/s"
        for letter, (n, g) in zip("abcd", product((2, 4), ("6.4e-06", "6.4e-05")), strict=True)
    ]
    at_once, delayed, alone = figure.axes[0].lines
    np.testing.assert_allclose(at_once.get_xydata(), [[K, 0.5 + 0.5 / K] for K in (1, 4, 16)])
    assert (delayed.get_ydata() < at_once.get_ydata()).all()
    assert set(alone.get_ydata()) == {0.5}
    assert "after K" in out


def test_another_file_is_one_line_and_exit_2(draw, tmp_path):
    (tmp_path / "rows.json").write_text("[{}]")
    (tmp_path / "text.json").write_text("text")
    for name, said in {
        "rows": "is no plan",
        "text": "cannot be read",
        "no": "cannot be read",
    }.items():
        status, _, err, figures = draw("plan", tmp_path / f"{name}.json")
        assert status == 2 and not figures and err.count("\n") == 1 and said in err
