"""The examples do, run as a user runs them, what the README says of them."""

from __future__ import annotations

import os
import pathlib
import platform
import re
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
from conftest import PYTHON
from test_launchers import needs
from test_readme import blocks

from speval import load_evals

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"
LIMIT = 120.0  # seconds, reached only when something is broken


def start(folder: pathlib.Path, name: str, *args: str, python: list[str] = PYTHON) -> subprocess.Popen[str]:
    """Start an example whose databases are in `folder`."""
    return subprocess.Popen(
        [*python, str(EXAMPLES / name), *args],
        env={**os.environ, "TMPDIR": str(folder)},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(instance: subprocess.Popen[str], stderr: str = "") -> list[str]:
    """Wait until an example ends well; return the lines that it printed."""
    try:
        printed, errors = instance.communicate(timeout=LIMIT)
    finally:
        instance.kill()
    assert instance.returncode == 0, errors
    assert re.fullmatch(stderr, errors), errors
    return printed.splitlines()


def run(folder: pathlib.Path, name: str, *args: str) -> list[str]:
    return end(start(folder, name, *args))


def test_instances_of_hello_world_share_the_greetings_out(tmp_path: pathlib.Path) -> None:
    instances = [start(tmp_path, "01_hello_world.py") for _ in range(5)]
    printed = Counter(line for instance in instances for line in end(instance))
    assert printed.pop("20 evaluations are completed") == 5
    assert printed == {f"Hello world: {arg}": 1 for arg in range(20)}


def test_hello_world_run_again_has_nothing_left_to_do(tmp_path: pathlib.Path) -> None:
    assert len(run(tmp_path, "01_hello_world.py")) == 21
    assert run(tmp_path, "01_hello_world.py") == ["20 evaluations are completed"]


def test_every_result_that_was_stored_is_retrieved(tmp_path: pathlib.Path) -> None:
    returned = run(tmp_path, "02_store_results.py")
    *retrieved, mean = run(tmp_path, "02_retrieve_results.py")
    assert [line.split()[-1].rstrip(".") for line in retrieved] == [line.split()[1] for line in returned]
    assert len(retrieved) == 20
    assert float(mean.removeprefix("Mean: ")) == pytest.approx(3.14, abs=0.01)


@pytest.mark.parametrize(("method", "error"), [("rand", 5935.42), ("grid", 1.781e06)])
def test_the_best_line_is_the_one_with_the_least_error(
    tmp_path: pathlib.Path, method: str, error: float
) -> None:
    assert run(tmp_path, "03_fit_line.py", method) == []
    evals = load_evals(tmp_path / f"03_fit_line_{method}.db", "completed")
    assert len(evals) == 400
    assert min(e["result"] for e in evals) == pytest.approx(error, rel=1e-5)
    assert run(tmp_path, "03_get_best_fit.py", method)[-1].split() == [
        "Mean",
        "square",
        "error:",
        f"{error:g}",
    ]


def test_a_second_instance_of_the_random_search_has_the_same_space(tmp_path: pathlib.Path) -> None:
    instances = [start(tmp_path, "03_fit_line.py") for _ in range(3)]
    assert [end(instance) for instance in instances] == [[]] * 3
    assert len(load_evals(tmp_path / "03_fit_line_rand.db", "completed")) == 400


def test_the_evaluation_of_a_killed_instance_is_the_only_one_repeated(tmp_path: pathlib.Path) -> None:
    instance = start(tmp_path, "04_survive_crash.py")
    printed = end(instance, r"reclaimed evaluation 0: process \d+ on .+ died\n")
    assert printed[:4] == [
        "killed an instance in the middle of evaluation 0",
        "an instance ended with -9",
        *["an instance ended with 0"] * 2,
    ]
    repeated, *others = printed[4:]
    assert repeated == "0: completed, result 0, attempt 2, losses 1"
    assert others == [f"{x}: completed, result {x * x}, attempt 1, losses 0" for x in range(1, 6)]


def test_a_crash_among_local_processes_costs_no_evaluation(tmp_path: pathlib.Path) -> None:
    died = r"worker process \d+ died of SIGABRT; another one takes its place\n"
    reclaimed = r"(reclaimed evaluations? .*7.*: process \d+ on .+ died\n)?"
    instance = start(tmp_path, "05_local_processes.py")
    assert end(instance, f"(?s).*{died}{reclaimed}.*100/100, 0 workers.*") == [
        "100 evaluations, pi is about 3.143"
    ]
    evals = load_evals(tmp_path / "05_local_processes.db")
    assert evals[7]["losses"] == 1


def test_both_levels_find_their_best(tmp_path: pathlib.Path) -> None:
    assert run(tmp_path, "06_two_levels.py") == ["best line: 10 x + -15, error 858"]
    assert len(list((tmp_path / "06_two_levels").glob("*.db"))) == 9


def test_a_network_is_tuned_and_the_poor_ones_are_stopped(tmp_path: pathlib.Path) -> None:
    stopped, best = run(tmp_path, "10_tune_network.py")
    evals = load_evals(tmp_path / "10_tune_network.db", reports=True)
    assert len(evals) == 60
    early = [e for e in evals if e["stopped"] is not None]
    assert stopped == f"{len(early)} of 60 were stopped early"
    assert all(e["stopped"] == max(e["reports"]) for e in early)
    assert all(len(e["reports"]) == 50 for e in evals if e["stopped"] is None)
    assert float(best.rpartition(" ")[2]) < 0.02


@needs("cmaes")
def test_the_sampler_of_another_library_suggests(tmp_path: pathlib.Path) -> None:
    (printed,) = end(start(tmp_path, "11_optuna_sampler.py", python=[sys.executable]))
    assert printed.startswith("least of 200: ")
    assert float(printed.rpartition(" ")[2]) < 0.1
    assert len(load_evals(tmp_path / "11_optuna_sampler.db", "completed")) == 200


def test_many_optimizers_find_the_deepest_valley(tmp_path: pathlib.Path) -> None:
    searches, lowest = run(tmp_path, "12_many_optimizers.py")
    outer = load_evals(tmp_path / "12_many_optimizers" / "outer.db", "completed")
    assert searches == f"{sum(e['stopped'] is not None for e in outer)} of 6 searches were stopped"
    assert lowest.endswith(("at (0.0, 0.0)", "at (-0.0, 0.0)", "at (0.0, -0.0)", "at (-0.0, -0.0)"))


def test_lines_of_shell_start_instances_that_share_a_server(tmp_path: pathlib.Path, table: str) -> None:
    (lines,) = [block for block in blocks("bash") if "07_postgres.py" in block and "SPEVAL_URL=" in block]
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    printed = subprocess.run(
        ["bash", "-c", re.sub(r"postgresql://[^\"]+", table, lines)],
        cwd=EXAMPLES.parent,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=LIMIT,
    )
    assert printed.stdout.count("20 evaluations are completed") == 3
    done = [(e["result"], e["attempt"]) for e in load_evals(table, "completed")]
    assert done == [(platform.node(), 1)] * 20


@pytest.mark.parametrize("script", ["01_hello_world.py", "07_postgres.py"])
def test_elements_of_an_array_job_share_the_work_out(tmp_path: pathlib.Path, table: str, script: str) -> None:
    """Each is the script in a shell; the scheduler itself is not here."""
    array = EXAMPLES / "slurm_array.sh"
    env = {**os.environ, "TMPDIR": str(tmp_path), "PYTHON": sys.executable, "SPEVAL_URL": table}
    env.pop("SLURM_JOB_ID", None)
    elements = [
        subprocess.Popen(
            ["bash", str(array), str(EXAMPLES / script)],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    printed = Counter(line for element in elements for line in end(element))
    assert printed.pop("20 evaluations are completed") == 3
    assert printed == {f"Hello world: {arg}": 1 for arg in range(20)}


@pytest.fixture
def job() -> str:
    return (EXAMPLES / "kubernetes_job.yaml").read_text()


def checked(job: str, version: str) -> Any:
    """Return what is said in YAML, if Kubernetes of that version knows all of it."""
    import kubernetes_validate
    import yaml

    said = yaml.safe_load(job)
    kubernetes_validate.validate(said, version, strict=True)
    return said


@needs("kubernetes_validate")
@pytest.mark.parametrize("version", ["1.26", "1.37"])
def test_kubernetes_takes_the_job_that_starts_an_example(job: str, version: str) -> None:
    (container,) = checked(job, version)["spec"]["template"]["spec"]["containers"]
    _, script = container["command"]
    url, password = container["env"]
    assert url["name"] in (EXAMPLES.parent / script).read_text()
    assert password == {
        "name": "PGPASSWORD",
        "valueFrom": {"secretKeyRef": {"name": "speval", "key": "password"}},
    }


@needs("kubernetes_validate")
@pytest.mark.parametrize("field", ["parallelism", "onPodConditions", "restartPolicy", "secretKeyRef"])
def test_a_field_that_kubernetes_does_not_know_is_noticed(job: str, field: str) -> None:
    from kubernetes_validate import ValidationError

    with pytest.raises(ValidationError, match=field):
        checked(job.replace(f"{field}:", f"{field}s:"), "1.37")


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.*")), ids=lambda path: path.name)
def test_every_example_is_short_and_stands_in_the_readme(example: pathlib.Path) -> None:
    assert len(example.read_text().splitlines()) <= 40
    assert f"examples/{example.name}" in (EXAMPLES.parent / "README.rst").read_text(encoding="utf-8")
