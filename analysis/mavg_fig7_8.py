"""M-AVG Fig. 7 and 8: training and test accuracy of K-AVG and M-AVG over epochs.

The paper trains ResNet-50 on ImageNet.

Cost: about 2 s for 2 runs.

    python analysis/mavg_fig7_8.py runs/mavg-fig7-8-laptop --out figures
"""

import mavg_fig1_6
import results
import style


def main() -> None:
    caption = "Training and test accuracy of the averaged model."
    mavg_fig1_6.draw(results.arguments(__doc__), "mavg_fig7_8", caption)


if __name__ == "__main__":
    style.run(main)
