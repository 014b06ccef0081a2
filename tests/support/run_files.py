"""Run files that no run wrote."""

from localavg.files import record

CONFIG = {"algorithm": "kavg", "d": 1000, "simulate": False, "state": "keep"}
ORIGIN = {"ranks": 2, "learners_per_rank": 1}


def run_file(
    path, config=(), provenance=(), rows=4, averages=range(8, 33, 8), status="finished", waits=True
):
    """The run file of 8 updates a row on ranks that take 0.5 s an update, a tenth of it for data,
    1 s an average and wait 0.5 s for it, and lose 0.25 s elsewhere. waits=False: as an earlier
    version wrote it, which did not know how long each average waited.
    """
    file = record.Record.create(path, {**CONFIG, **dict(config)}, {**ORIGIN, **dict(provenance)})
    for i in range(1, rows + 1):
        file.append(
            "train",
            t=8 * i,
            samples=16 * i,
            wall_s=5.75 * i,
            compute_s=3.6 * i,
            data_s=0.4 * i,
            communicate_s=1.0 * i,
            wait_s=0.5 * i,
        )
    for t in averages:
        file.append(
            "averages",
            t=t,
            begun=t,
            scope=record.WORLD,
            level=1,
            period=8,
            bytes_node=8000,
            bytes_cross=0,
            seconds=1.0,
            **({"wait_s": 0.5} if waits else {}),
        )
    file.finish(status)
    return path
