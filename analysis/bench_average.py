"""Time of one average against its size: ours, Allreduce + scale, torch's averager, and the floor.

One panel a file and a layout of learners, ranks and nodes; both axes are logarithmic. The floor is
the time that memory needs, or between nodes their link. The table has the times of the others
divided by ours.

Cost: about 2 s; the first benchmark below takes half a minute on two cores.

    python analysis/bench_average.py runs/bench-average --out figures

    jobs/local/mpirun -n 2 localavg bench average \\
        --out runs/bench-average/ranks2.h5
    jobs/local/mpirun -n 2 localavg bench average \\
        --sizes 2000 cifar10 --out runs/bench-average/cifar10.h5
"""

from pathlib import Path

import curves
import output
import pandas as pd
import results
import style

from localavg.files.record import UserError, load_many

NAMES = {
    "ours_s": "localavg",
    "allreduce_s": "Allreduce + scale",
    "torch_s": "torch PeriodicModelAverager",
    "floor_s": "floor",
}
LAYOUT = ("learner", "rank", "node")


def places_of(folder: Path) -> list[tuple[str, pd.DataFrame]]:
    """Read the files of a folder: (file and layout, rows by size) for every panel."""
    places = []
    for bench in load_many(folder, bench="average"):
        if bench.status != "finished":
            print(f"unfinished: {bench.path} is {bench.status}")
        by_size = bench.rows.sort_values("elements")
        for counts, rows in by_size.groupby([f"{name}s" for name in LAYOUT]):
            layout = (f"{n} {name}{'s' * (n > 1)}" for n, name in zip(counts, LAYOUT, strict=True))
            places.append((f"{bench.path.stem}: {', '.join(layout)}", rows))
    if not places:
        raise UserError(
            f"{folder}: no size was measured to its end yet: wait, or run bench average once more"
        )
    return places


def main() -> None:
    about = "folder of files of bench average --out, or one file (default: runs/bench-average)"
    args = results.arguments(__doc__, about)
    places = places_of(args.folder or Path("runs/bench-average"))
    figure, panels = style.grid(len(places), across=2)
    table = []
    for axes, (place, rows) in zip(panels, places, strict=True):
        for number, (column, name) in enumerate(NAMES.items()):
            known = rows.dropna(subset=column).groupby("elements")
            curves.points(axes, {n: list(same[column]) for n, same in known}, name, number)
        axes.set(
            xlabel="floats in a row",
            ylabel="one average (s)",
            xscale="log",
            yscale="log",
            title=style.short(place),
        )
        table += [
            (
                place,
                f"{row.elements}",
                row.transport,
                *(f"{getattr(row, column):.3g}" for column in NAMES),
                *(f"{getattr(row, column) / row.ours_s:.2f}" for column in list(NAMES)[1:]),
            )
            for row in rows.itertuples()
        ]
    style.legend(figure)
    others = [name.split()[0] for name in list(NAMES.values())[1:]]
    seconds = [f"{name} (s)" for name in ("ours", *others)]
    ratios = [f"{name} / ours" for name in others]
    print(style.table(("benchmark", "floats", "transport", *seconds, *ratios), table))
    caption = "Time of one average, of the slowest rank, the median of its repeats."
    output.finish(args, "bench_average", figure, caption, {})


if __name__ == "__main__":
    style.run(main)
