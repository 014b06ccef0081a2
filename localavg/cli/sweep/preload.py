"""What the server of `warm` imports before it forks for runs of networks; nobody else imports it.

No MPI and no CUDA starts here: a fork would break them.
"""

import contextlib
import gc
import signal

from localavg.cli.sweep.warm import STOPS

# One to all processes of a job, the server among them, must not end it. A run unblocks them, and
# gets those that came before.
signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
with contextlib.suppress(Exception):  # of which the runs tell
    import h5py  # noqa: F401
    import torch
    import torch.fx.experimental.symbolic_shapes  # noqa: F401  (`torch.func`'s)
gc.freeze()  # memory that runs share stays shared
