"""What starts instances, as the README says it: its lines and scripts, with fewer instances."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile

import pytest
from conftest import LIMIT, PYTHON, until
from test_readme import ROOT, blocks

from speval import load_evals

LINES = {line.split()[3]: line for block in blocks("bash") for line in block.splitlines() if " | " in line}
SCRIPTS = {block[2:].partition("\n")[0]: block for block in blocks("python") if block.startswith("# ")}
DONE = {"pending": 0, "in_progress": 0, "completed": 20, "failed": 0}
# In place of work: until two evaluations are in progress, and so two instances take part.
TOGETHER = f"""\
def together():
    from speval import iter_evals
    for _ in range({int(LIMIT * 10)}):
        if sum(e["worker"] is not None for e in iter_evals("sweep.db")) > 1:
            return
        time.sleep(0.1)
    raise TimeoutError

def square"""

# One of its evaluations is not over before the time limit, at which submitit sends SIGUSR2.
AGAIN = f"""\
import os, pathlib, time
from speval import current_eval, speval

def func(x):
    if x == 1 and current_eval()["attempt"] == 1:
        pathlib.Path("pid").write_text(str(os.getpid()))
        time.sleep({LIMIT})

def sweep():
    return speval(func, range(2), "sweep.db")
"""

# One process dies of it, once.
CRASH = """\
together()
    if x == 1 and current_eval()["attempt"] == 1:
        os.kill(os.getpid(), 9)"""


def needs(*names: str) -> pytest.MarkDecorator:
    lacking = [name for name in names if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(lacking), reason=f"{', '.join(lacking)} is not installed")


def is_gnu_parallel() -> bool:
    try:
        asked = subprocess.run(["parallel", "--version"], capture_output=True, text=True, check=False)
    except OSError:
        return False
    return asked.stdout.startswith("GNU parallel")


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """A directory with the scripts of the README, in which two instances are enough."""
    for name, text in SCRIPTS.items():
        fewer = re.sub(r"(?<=[(=])4\b", "2", text)
        fewer = fewer.replace("time.sleep(0.1)", "together()").replace("def square", TOGETHER)
        (tmp_path / name).write_text(fewer.replace("squares.db", "sweep.db"))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(f'#!/bin/sh\nexec "{PYTHON[0]}" -S "$@"\n')
    (tmp_path / "bin" / "python").chmod(0o755)
    return tmp_path


def start(folder: pathlib.Path, *command: str, path: str = "") -> subprocess.Popen[str]:
    """Start a command that finds, beside what is in `path`, only Python."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("COVERAGE_", "SLURM_"))}
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**env, "PATH": f"{folder}/bin:{path}"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def end(launcher: subprocess.Popen[str]) -> str:
    """Wait until it ends well; return what it printed."""
    try:
        printed, errors = launcher.communicate(timeout=LIMIT)
    finally:
        if launcher.poll() is None:
            os.killpg(launcher.pid, signal.SIGKILL)
    assert launcher.returncode == 0, errors
    return printed


def run(folder: pathlib.Path, script: str) -> str:
    return end(start(folder, sys.executable, script))


@pytest.mark.parametrize("program", ["xargs", "parallel"])
def test_a_line_of_shell_starts_instances_that_share_the_work(folder: pathlib.Path, program: str) -> None:
    if program == "parallel" and not is_gnu_parallel():
        pytest.skip("GNU parallel is not installed")
    printed = end(start(folder, "bash", "-c", LINES[program], path=os.environ["PATH"]))
    assert printed.count(str(DONE)) == printed.count(str([x**2 for x in range(20)])) == 4


@pytest.mark.parametrize(
    "script",
    [
        "with_pool.py",
        pytest.param("with_joblib.py", marks=needs("joblib")),
        pytest.param("with_dask.py", marks=needs("distributed")),
        pytest.param("with_submitit.py", marks=needs("submitit")),
    ],
)
def test_instances_in_processes_of_a_pool_share_the_work(folder: pathlib.Path, script: str) -> None:
    assert run(folder, script) == f"{[DONE] * 2}\n"


@needs("joblib")
def test_a_process_of_joblib_may_have_processes_of_its_own(folder: pathlib.Path) -> None:
    script = folder / "sweep.py"
    script.write_text(script.read_text().replace('"sweep.db")  #', '"sweep.db", n_jobs=2)  #'))
    assert run(folder, "with_joblib.py") == f"{[DONE] * 2}\n"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("08_dask.py", marks=needs("distributed")),
        pytest.param("09_ray.py", marks=needs("ray")),
    ],
)
def test_a_cluster_starts_instances_on_a_server_and_one_again_that_died(
    folder: pathlib.Path, table: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = (ROOT / "examples" / name).read_text().replace("time.sleep(0.1)", CRASH)
    example = example.replace("import speval\n", "import current_eval, speval\n")
    example = example.replace("num_cpus=2", "num_cpus=2, include_dashboard=False")
    (folder / name).write_text(example.replace("def square", TOGETHER.replace('"sweep.db"', "URL")))
    monkeypatch.setenv("SPEVAL_URL", table)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    with tempfile.TemporaryDirectory(dir="/tmp") as short:  # as names of sockets have to be
        monkeypatch.setenv("RAY_TMPDIR", short)
        printed = end(start(folder, sys.executable, name, path=os.environ["PATH"]))
    assert printed.count("20 evaluations are completed\n") == 2
    evals = load_evals(table)
    assert [e["result"] for e in evals] == [x**2 for x in range(20)]
    assert evals[1]["losses"] == 1


@needs("submitit")
def test_at_the_time_limit_of_submitit_the_evaluation_is_given_back(folder: pathlib.Path) -> None:
    (folder / "sweep.py").write_text(AGAIN)
    script = (folder / "with_submitit.py").read_text()
    (folder / "with_submitit.py").write_text(script.replace("=240", "=5").replace("range(2)", "range(1)"))
    launcher = start(folder, sys.executable, "with_submitit.py")
    os.kill(int(until(lambda: (folder / "pid").exists() and (folder / "pid").read_text())), signal.SIGUSR2)
    assert end(launcher) == "[{'pending': 0, 'in_progress': 0, 'completed': 2, 'failed': 0}]\n"
    assert [(e["attempt"], e["losses"]) for e in load_evals(folder / "sweep.db")] == [(1, 0), (2, 0)]
