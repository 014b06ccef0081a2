"""The figure of `bench average`."""

import numpy as np
from figures import check_labels

from localavg.files import record

COLUMNS = ("ours_s", "allreduce_s", "torch_s", "floor_s")


def write(path, ranks=2, nodes=1, torch_s=3e-3, status="finished", sizes=(2000, 200_000)):
    file = record.Record.create(path, {"bench": "average"}, {})
    for n in sizes:
        file.append(
            "average",
            elements=n,
            ranks=ranks,
            nodes=nodes,
            learners=ranks,
            transport="shared",
            ours_s=1e-9 * n,
            allreduce_s=3e-9 * n,
            torch_s=torch_s,
            floor_s=5e-10 * n,
        )
    file.finish(status)


def test_the_figure_is_drawn_from_what_the_benchmark_writes(draw, tmp_path):
    write(tmp_path / "a.h5")
    status, out, err, (figure,) = draw("bench_average", tmp_path / "a.h5", save="as the script")
    assert (status, err) == (0, "")
    check_labels(figure)
    (axes,) = figure.axes
    assert axes.get_xlabel() == "floats in a row" and axes.get_ylabel() == "one average (s)"
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert axes.get_title() == "a: 2 learners, 2 ranks, 1 node"
    rows = record.load(tmp_path / "a.h5", bench="average").rows
    for line, name in zip(axes.lines, COLUMNS, strict=True):
        np.testing.assert_array_equal(line.get_xydata(), rows[["elements", name]])
    written = [line for line in out.splitlines() if "/figures/bench_average." in line]
    assert [line.rpartition(".")[2] for line in written] == ["txt", "pdf", "png"]
    assert f"{rows.allreduce_s[0] / rows.ours_s[0]:.2f}" in out


def test_the_figure_has_a_panel_a_file_and_layout(draw, tmp_path):
    write(tmp_path / "b.h5", sizes=(200_000, 2000, 2000))
    write(tmp_path / "a.h5", 1, torch_s=np.nan)
    write(tmp_path / "c.h5", 4, 2, status="interrupted")
    record.Record.create(tmp_path / "run.h5", {"algorithm": "kavg"}, {}).finish("finished")
    status, out, err, (figure,) = draw("bench_average", tmp_path)
    assert (status, err) == (0, "") and f"unfinished: {tmp_path / 'c.h5'} is interrupted" in out
    assert [axes.get_title() for axes in figure.axes] == [
        "(a) a: 1 learner, 1 rank, 1 node",
        "(b) b: 2 learners, 2 ranks, 1 node",
        "(c) c: 4 learners, 4 ranks, 2 nodes",
    ]
    assert [len(axes.lines) for axes in figure.axes] == [3, 4, 4]
    np.testing.assert_allclose(
        figure.axes[1].lines[0].get_xydata(), [[2000, 2e-6], [200_000, 2e-4]]
    )


def test_nothing_to_draw_is_one_line_and_exit_2(draw, tmp_path):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "begun" / "a.h5", sizes=())
    says = {
        "empty": "bench average --out FILE.h5",
        "begun": "no size was measured",
        "nowhere": "cannot read",
    }
    for folder, said in says.items():
        status, _, err, figures = draw("bench_average", tmp_path / folder)
        assert status == 2 and not figures and err.count("\n") == 1 and said in err
