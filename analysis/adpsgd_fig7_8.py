"""ADPSGD Fig. 7 and 8: as Fig. 4 and 5 for ImageNet, with a warm-up.

In the warm-up every algorithm averages at each step; CPSGD has p = 8 after it. Dotted: the accuracy
of small batches on ImageNet in the paper, 75.458 % (ResNet-50) and 57.08 % (AlexNet), drawn if the
runs are of ImageNet. The paper: ADPSGD is 1.27 times as fast as FULLSGD at 100 Gbit/s and 1.95
times at 10, with a mean period of 10.55.

Cost: about 3 s for 4 runs.

    python analysis/adpsgd_fig7_8.py runs/adpsgd-fig7-8-laptop --out figures
"""

import adpsgd_fig4_5
import results
import style

SMALL_BATCHES = {"ResNet-50": 75.458, "AlexNet": 57.08}


def main() -> None:
    args = results.arguments(__doc__)
    expected = {key: name for key, name in adpsgd_fig4_5.NAMES.items() if key != "kavg"}
    groups = results.gather(
        args.folder,
        lambda run: a if (a := run.config.get("algorithm")) in expected else None,
        expected=expected,
    )
    levels = {
        f"{network}, B = 256 or 128 alone": percent
        for network, percent in SMALL_BATCHES.items()
        if any(network in panel and "imagenet" in panel.lower() for panel in groups)
    }
    adpsgd_fig4_5.draw(args, "adpsgd_fig7_8", groups, levels)


if __name__ == "__main__":
    style.run(main)
