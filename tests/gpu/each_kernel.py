"""Runs every kernel once, for a tool that looks at what they do to memory: no test."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent / "support"), str(HERE)]


def main():
    from gpus import Failed
    from mpi4py import MPI
    from test_gpu_rows import kernels_alone

    failed = [
        answer for answer in kernels_alone(MPI.COMM_SELF).values() if isinstance(answer, Failed)
    ]
    sys.exit("\n".join(failed) or 0)


if __name__ == "__main__":
    main()
