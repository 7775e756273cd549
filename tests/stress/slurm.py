"""What the README says of Slurm, by a Slurm of one node that is started for it and ended after it.

As root, where ``slurm-wlm`` and ``munge`` are installed and their own services need not run::

    apt-get install -y --no-install-recommends slurm-wlm munge
    python tests/stress/slurm.py

Takes some two minutes. Prints a line for each thing that was tried, and ends with 1 if one is not so.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from speval import load_evals

ROOT = pathlib.Path(__file__).resolve().parents[2]
LIMIT = 240.0  # seconds that one thing may take
CONFIG = """\
ClusterName=speval
SlurmctldHost={host}
SlurmUser=root
AuthInfo=socket={folder}/munge.socket
SlurmctldPort=16817
SlurmdPort=16818
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1
NodeName={host} CPUs=4 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP
"""
SCRIPT = """\
import sys, time
from speval import speval

def func(x):
    open(f"began-{x}", "w").close()
    time.sleep(float(sys.argv[1]))
    return x**2

print(speval(func, range(8), "evals.db"))
"""


@contextlib.contextmanager
def slurm(folder: pathlib.Path) -> Iterator[None]:
    """Run the daemons in the block."""
    host = socket.gethostname().partition(".")[0]
    (folder / "slurm.conf").write_text(CONFIG.format(folder=folder, host=host))
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    for name in "state", "spool":
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    names = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    munge = [f"--{option}={folder}/munge.{name}" for option, name in names.items()]
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        for command in ["munged", "--foreground", "--force", *munge], ["slurmctld", "-D"], ["slurmd", "-D"]:
            with (folder / f"{command[0]}.out").open("wb") as out:
                daemons.append(subprocess.Popen(command, stdout=out, stderr=out))
            time.sleep(1)
        until(lambda: "idle" in said("sinfo -h"))
        yield
    finally:
        subprocess.run(["scancel", "--user=root"], check=False)
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(30)


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.2)


def said(line: str) -> str:
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=LIMIT, check=False)
    return done.stdout + done.stderr


def submit(options: str, command: str) -> str:
    """Submit a line of the README's kind; return the number of the job."""
    job = said(f"sbatch --parsable {options} --wrap {shlex.quote(command)}").strip()
    assert job.isdigit(), job
    return job


def ends(job: str) -> list[str]:
    """Return state and exit code of each element of a job that has ended."""
    until(lambda: not said(f"squeue -h -j {job}").strip() or "Invalid" in said(f"squeue -h -j {job}"))
    shown = said(f"scontrol show job {job}")
    return [" ".join(pair) for pair in re.findall(r"JobState=(\w+).*?ExitCode=(\d+:\d+)", shown, re.DOTALL)]


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="speval-slurm-") as name, slurm(folder := pathlib.Path(name)):
        os.chdir(folder)
        os.environ["PYTHONPATH"] = str(ROOT)
        pathlib.Path("script.py").write_text(SCRIPT)
        run = f"exec srun {sys.executable} script.py"
        status = f"{sys.executable} -m speval status evals.db --exit-code > status.txt; echo $?"
        good = True

        def tell(what: str, found: Any, wanted: Any) -> None:
            nonlocal good
            good = good and found == wanted
            print("ok" if found == wanted else f"NOT {wanted}:", what, found, flush=True)

        first = submit("--array=1-2 --time=00:02:00 --signal=TERM@100", f"{run} 60")
        until(lambda: len(list(folder.glob("began-*"))) == 2)
        after = submit(f"--array=1-3 --dependency=afterany:{first}", f"{run} 0.5")
        tell("what is left, by the exit code:", said(status).strip(), "3")
        tell("elements that a signal has reached:", ends(first), ["FAILED 143:0"] * 2)
        tell("elements that come after them:", ends(after), ["COMPLETED 0:0"] * 3)
        rows = load_evals("evals.db")
        tell("results:", [row["result"] for row in rows], [x**2 for x in range(8)])
        tell("attempts of what was released:", max(row["attempt"] for row in rows), 2)
        tell("losses:", [row["losses"] for row in rows], [0] * 8)
        tell("what is left, by the exit code:", said(status).strip(), "0")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
