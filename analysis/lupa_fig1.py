"""LUPA Fig. 1: training loss of synchronous SGD with mini-batches of different size, at the same
step size.

One line a mini-batch of all learners together, P·B: 512 and 1024 in the paper, where the larger one
is worse. Per epoch the larger mini-batch makes fewer updates; the right panel counts updates
instead.

Cost: about 2 s for 2 runs.

    python analysis/lupa_fig1.py runs/lupa-fig1-laptop --out figures
"""

import results
import style


def batch(run: results.Run) -> int | None:
    """The mini-batch of all learners together."""
    return (
        run.config["learners"] * run.config["batch_size"]
        if run.config.get("algorithm") == "sync"
        else None
    )


def main() -> None:
    args = results.arguments(__doc__)
    groups = results.gather(
        args.folder, batch, expected={512: "mini-batch 512", 1024: "mini-batch 1024"}
    )
    figure, panels = style.panels(2, rows=len(groups), sharey=True)
    rows = []
    for i, (panel, lines) in enumerate(groups.items()):
        for axes, x in zip(panels[2 * i :], ("epoch", "t"), strict=False):
            for number, (size, repeats) in enumerate(lines.items()):
                style.curve(axes, repeats, x, "train_loss", f"mini-batch {size}", number)
            axes.set(xlabel=style.X_LABELS[x], title=style.short(panel))
        panels[2 * i].set_ylabel(style.Y_LABELS["train_loss"])
        rows += [
            (
                panel,
                str(size),
                results.over(repeats, lambda run: run.eval.t.max(), 0),
                results.over(repeats, "train_loss", 4),
            )
            for size, repeats in lines.items()
        ]
    style.legend(figure)
    header = ("problem", "mini-batch", "updates", "final training loss")
    results.finish(
        args, "lupa_fig1", figure, "Synchronous SGD; mini-batch = P·B.", groups, header, rows
    )


if __name__ == "__main__":
    style.run(main)
