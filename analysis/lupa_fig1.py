"""LUPA Fig. 1: training loss of synchronous SGD with mini-batches of different size.

All have the same step size. One line a mini-batch of all learners together, P·B: 512 and 1024 in
the paper, where the larger one is worse. The larger mini-batch makes fewer updates an epoch; the
right panel counts updates, not epochs.

Cost: about 2 s for 2 runs.

    python analysis/lupa_fig1.py runs/lupa-fig1-laptop --out figures
"""

import curves
import output
import results
import style


def batch(run: results.Run) -> int | None:
    """Return the mini-batch of all learners together."""
    if run.config.get("algorithm") != "sync":
        return None
    return run.config["learners"] * run.config["batch_size"]


def main() -> None:
    args = results.arguments(__doc__)
    expected = {512: "mini-batch 512", 1024: "mini-batch 1024"}
    groups = results.gather(args.folder, batch, expected=expected)
    figure, panels = style.panels(2, rows=len(groups), sharey=True)
    rows = []
    for i, (panel, lines) in enumerate(groups.items()):
        for axes, x in zip(panels[2 * i :], ("epoch", "t"), strict=False):
            for number, (size, repeats) in enumerate(lines.items()):
                curves.curve(axes, repeats, x, "train_loss", f"mini-batch {size}", number)
            axes.set(xlabel=curves.X_LABELS[x], title=style.short(panel))
        panels[2 * i].set_ylabel(curves.Y_LABELS["train_loss"])
        for size, repeats in lines.items():
            updates = output.over(repeats, lambda run: run.eval.t.max(), 0)
            rows.append((panel, str(size), updates, output.over(repeats, "train_loss", 4)))
    style.legend(figure)
    header = ("problem", "mini-batch", "updates", "final training loss")
    caption = "Synchronous SGD; mini-batch = P·B."
    output.finish(args, "lupa_fig1", figure, caption, groups, header, rows)


if __name__ == "__main__":
    style.run(main)
