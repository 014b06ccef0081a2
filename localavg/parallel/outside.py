"""Start a job of its own from a rank of a job: by which words, and in which environment."""

from __future__ import annotations

from collections.abc import Mapping
from shutil import which

# Prefixes of the environment variables that describe a rank's job; a child that is a job of its own
# must not inherit them.
LAUNCHED = ("OMPI_", "PRTE_", "PMI", "HYDI_", "MPI_LOCAL", "JSM_", "LSB_", "SLURM_", "SRUN_")
# Prefixes among these of the user's own settings, which the child does inherit, ...
SETTINGS = ("OMPI_ALLOW_", "OMPI_MCA_", "PRTE_MCA_", "SLURM_CONF")
# ... and prefixes among the settings that belong to the job after all.
JOB = (
    "OMPI_MCA_orte_",
    "OMPI_MCA_ess",
    "OMPI_MCA_pmix",
    "OMPI_MCA_initial_wdir",
    "OMPI_MCA_num_procs",
)
ALLOCATED = ("LSB_", "SLURM_")  # prefixes of variables that say which nodes an allocation has
ALONE = ("OMPI_MCA_btl", "self")  # set by `__main__` for one process; two could not talk
ROOMY = {  # allow the child more ranks than cores, not bound
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_hwloc_base_binding_policy": "none",
}
# variables with the ranks of a job that mpirun started, and with those on this node
SIZES = {"OMPI_COMM_WORLD_SIZE": "OMPI_COMM_WORLD_LOCAL_SIZE", "PMI_SIZE": "MPI_LOCALNRANKS"}


def on_two_nodes(env: Mapping[str, str], library: str) -> list[str]:
    """Return the words that start two ranks on each of two nodes; none in a job on one node.

    env: the variables of a rank, by which its launcher tells how and on how many nodes it started
    the job. library: MPI's version. An mpirun finds the nodes of a batch system's allocation, and
    no others; it may refuse.
    """
    ranks = {there: env.get(size, "") for size, there in SIZES.items() if there in env}
    if not ranks and int(env.get("SLURM_STEP_NUM_NODES", 1)) > 1:  # srun started the ranks
        kind = [f"--mpi={env['SLURM_MPI_TYPE']}"] if "SLURM_MPI_TYPE" in env else []
        # beside the ranks of this job, on the same cores
        where = [f"--jobid={env.get('SLURM_JOB_ID', '')}", "--overlap", "--overcommit"]
        return ["srun", *where, "--nodes=2", "--ntasks=4", "--ntasks-per-node=2", *kind]
    if all(env[here] == size for here, size in ranks.items()) or not (mpirun := which("mpirun")):
        return []
    each = ["--map-by", "ppr:2:node"] if library.startswith("Open MPI") else ["-ppn", "2"]
    return [mpirun, "-n", "4", *each]


def outside(env: Mapping[str, str], allocated: bool = False) -> dict[str, str]:
    """Return the environment of a job of its own: without what describes this rank's job.

    allocated: keep the batch system's allocation, in which an mpirun finds the nodes.
    """
    job = tuple(prefix for prefix in LAUNCHED if not (allocated and prefix in ALLOCATED))
    own = {
        name: value
        for name, value in env.items()
        if not name.startswith(JOB)
        and (name.startswith(SETTINGS) or not name.startswith(job))
        and (name, value) != ALONE
    }
    # without it an mpirun that starts by srun waits until this job's step has ended
    return ROOMY | own | ({"SLURM_OVERLAP": "1"} if allocated else {})
