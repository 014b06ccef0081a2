"""Every setting of a training run.

The command line is made from the fields of `TrainConfig`, and the run file stores them, so every
setting has one name. This folder imports the standard library only.
"""

from localavg.config.rules import seconds
from localavg.config.samplings import PARTITIONS, SAMPLING
from localavg.config.settings import TrainConfig
from localavg.config.state import OPTIMIZERS, STATES

__all__ = ["OPTIMIZERS", "PARTITIONS", "SAMPLING", "STATES", "TrainConfig", "seconds"]
