"""Run a command in a child process with a time limit, and read what it printed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress

from localavg.interfaces import Settings


def run_child(
    command: Sequence[str], env: Mapping[str, str], limit_s: float
) -> tuple[int | None, str, str]:
    """Run a command; return its exit status and what it wrote to stdout and stderr.

    The status is None if the child ran longer than limit_s seconds and was killed.
    """
    status = None
    # files, not pipes: a rank that outlives its launcher would hold a pipe open
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
        try:
            status = child.wait(limit_s)
        except subprocess.TimeoutExpired:
            child.terminate()  # a launcher then ends its ranks
            with suppress(subprocess.TimeoutExpired):
                child.wait(2)
        finally:
            if status is None:
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        texts = [os.pread(file.fileno(), 1 << 20, 0) for file in (out, err)]
    return status, texts[0].decode(errors="replace"), texts[1].decode(errors="replace")


def answer(out: str) -> Settings | None:
    """Return the last line of JSON that a child printed, or None."""
    lines = [line for line in out.splitlines() if line.startswith("{")]
    with suppress(ValueError, IndexError):
        return json.loads(lines[-1])
    return None


def ended(status: int | None, err: str, limit_s: float) -> str:
    """Describe how a child ended, with the most useful line of its stderr."""
    if status is None:
        return f"no answer within {limit_s:g} s"
    lines = [line.strip() for line in err.splitlines() if any(map(str.isalnum, line))]
    errors = [line for line in lines if "rror" in line or "signal" in line]
    last = (errors or lines or ["it printed nothing"])[-1]
    return f"the child ended with status {status}: {last[:200]}"
