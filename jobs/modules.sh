# shellcheck shell=bash
# What this cluster needs before a run: sourced by every template in jobs/slurm and jobs/lsf. Fill it in once.

if [ "$0" = "${BASH_SOURCE[0]}" ]; then # not sourced: `stage` and `unstage` start this file once on every node
    folder=$1 && shift
    [ $# -gt 0 ] || exec rm -rf "$folder"
    mkdir -p "$folder" && for file; do # under another name first, so that no run reads a part of a file
        copy=$folder/${file##*/} part=$folder/part-$$
        [ "$copy" -nt "$file" ] || { cp "$file" "$part" && mv "$part" "$copy"; } || exit
    done
    exit
fi

# module load gcc cuda openmpi        # the modules with which mpi4py was built

requeues=${REQUEUES:-20} # an interrupted job is put back into the queue at most so many times
export CUPY_CACHE_DIR=${CUPY_CACHE_DIR:-/tmp/cupy-$(id -u)} # compiled kernels: on the node, not in a shared home

# InfiniBand, where the defaults of MPI and NCCL are not right (ibv_devinfo and ip link show the names):
# export UCX_NET_DEVICES=mlx5_0:1 NCCL_SOCKET_IFNAME==ib0 # the second = asks for this very name
# PyPI's Open MPI under srun prints "find-available:not-valid"; this line stops it:
# export PMIX_MCA_gds=hash PMIX_MCA_psec=native

srun_mpi() { # srun's --mpi: the first that mpi4py's library prefers and this Slurm has. SRUN_MPI=pmi2 chooses by hand
    local order list mpi
    case $("$python" -m mpi4py --mpi-lib-version 2>/dev/null | tr -d '\0') in
    *CRAY*) order='cray_shasta pmi2 pmix' ;;
    *MPICH* | *Intel*) order='pmi2 pmix' ;;
    *) order='pmix pmi2' ;; # Open MPI and its kin
    esac
    list=$(srun --mpi=list 2>&1)
    for mpi in ${SRUN_MPI:-$order}; do
        if grep -qw -- "$mpi" <<<"$list"; then
            echo "$mpi"
            return
        fi
    done
    echo "modules.sh: srun --mpi=list has none of ${SRUN_MPI:-$order}; start the ranks by mpirun instead, or set" \
        "SRUN_MPI to one of: $(tr -s '[:space:]' ' ' <<<"$list")" >&2
    return 2
}

stage() { # copy the files in STAGE to a folder on every node of the job, where --data looks first
    # $1: what starts a command on the nodes, srun (the default), jsrun or blaunch
    [ -n "${STAGE:-}" ] || return 0
    local disk=${TMPDIR:-/tmp}
    [ "${1:-srun}" = srun ] || disk=/tmp # on the other hosts LSF removes TMPDIR when the copy has ended
    export LOCALAVG_DATA=${LOCAL:-$disk}/localavg-${SLURM_JOB_ID:-$LSB_JOBID-${LSB_JOBINDEX:-0}}
    # shellcheck disable=SC2046,SC2086 # STAGE may be several files
    on_nodes "${1:-srun}" "$LOCALAVG_DATA" $(realpath -m -- $STAGE) && return
    echo "modules.sh: cannot copy $STAGE to $LOCALAVG_DATA on every node: set LOCAL to a disk with room, or leave STAGE out" >&2
    return 2
}

unstage() { # remove the copies; $1 as for stage
    [ -z "${STAGE:-}" ] || on_nodes "${1:-srun}" "$LOCALAVG_DATA"
}

on_nodes() { # start this file once on every node of the job, with the words after $1
    local me host task tasks=() status=0
    me=$(realpath -- "${BASH_SOURCE[0]}")
    case $1 in
    srun) srun --ntasks="$SLURM_NNODES" --ntasks-per-node=1 bash "$me" "${@:2}" ;;
    jsrun) # the first host of the list is the one on which this shell runs, and is no node of the job
        jsrun --nrs "$(tail -n +2 "$LSB_DJOB_HOSTFILE" | sort -u | wc -l)" --rs_per_host 1 --tasks_per_rs 1 \
            --cpu_per_rs 1 --gpu_per_rs 0 --bind none bash "$me" "${@:2}" </dev/null
        ;;
    blaunch)
        for host in $(sort -u "$LSB_DJOB_HOSTFILE"); do
            blaunch -n "$host" bash "$me" "${@:2}" &
            tasks+=($!)
        done
        for task in "${tasks[@]}"; do
            wait "$task" || status=$?
        done
        return "$status"
        ;;
    esac
}

lsf_mpirun() { # mpirun under LSF: alone where it knows LSF, else with LSF's hosts and with blaunch for ssh
    local staged=${LOCALAVG_DATA:+ -x LOCALAVG_DATA} # Open MPI passes on what it is told to
    case $(mpirun --version 2>/dev/null) in
    *'Open MPI'*) ;;
    *) # MPICH's and Intel's Hydra ask LSF by themselves
        echo mpirun
        return
        ;;
    esac
    if { prte_info || ompi_info; } 2>/dev/null | grep -q 'MCA ras: lsf'; then
        echo "mpirun$staged"
    elif mpirun --version | grep -q ' 4\.'; then
        echo "mpirun$staged --hostfile $LSB_DJOB_HOSTFILE --mca plm_rsh_agent blaunch"
    else
        echo "mpirun$staged --hostfile $LSB_DJOB_HOSTFILE --prtemca plm_ssh_agent blaunch"
    fi
}

lsf_status() { # the status of an LSF job that ended with $1: 75, on which LSF requeues it, at most $requeues times
    local count=.requeued-$LSB_JOBID-${LSB_JOBINDEX:-0} n=0
    [ ! -s "$count" ] || read -r n <"$count"
    if [ "$1" = 75 ] && [ "$n" -lt "$requeues" ]; then
        echo $((n + 1)) >"$count"
        echo 75
        return
    fi
    rm -f "$count"
    if [ "$1" = 75 ]; then
        echo "interrupted and saved, and requeued $requeues times already: submit it again to resume" >&2
        echo 1
    else
        echo "$1"
    fi
}
