"""In a real kernel of Jupyter, in IPython, under a debugger: where a process has threads of its own."""

from __future__ import annotations

import doctest
import pathlib
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import LIMIT, ROOT, until

from speval import count_evals, load_evals

README = (ROOT / "README.rst").read_text(encoding="utf-8")


class Notebook:
    """Cells that run in one kernel."""

    def __init__(self, path: pathlib.Path) -> None:
        from jupyter_client.manager import start_new_kernel  # takes long, and most processes need it not

        self.path = path
        self._manager, self._client = start_new_kernel(kernel_name="python3", cwd=str(path))

    def run(self, cell: str) -> str:
        """Run a cell; return all that it shows, to the end of a traceback."""
        shown: list[str] = []

        def show(message: dict[str, Any]) -> None:
            content = message["content"]
            shown.append(content.get("text") or content.get("data", {}).get("text/plain") or "")
            shown.extend(content.get("traceback", ()))

        self._client.execute_interactive(cell, output_hook=show, timeout=LIMIT)
        return "".join(shown)

    def start(self, cell: str) -> str:
        return str(self._client.execute(cell, stop_on_error=False))

    def end(self, started: str) -> str:
        """Wait until a cell has ended; return the name of the exception that it raised."""
        while True:
            reply = self._client.get_shell_msg(timeout=LIMIT)
            if reply["parent_header"]["msg_id"] == started:
                return str(reply["content"].get("ename", ""))

    def interrupt(self) -> None:
        """What the button with the square does."""
        self._manager.interrupt_kernel()

    def close(self) -> None:
        self._client.stop_channels()
        self._manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    notebook = Notebook(tmp_path_factory.mktemp("notebook"))
    try:
        yield notebook
    finally:
        notebook.close()


def test_processes_evaluate_a_function_of_a_cell(notebook: Notebook) -> None:
    notebook.run(
        "from speval import load_evals, speval\nimport os\ndef square(x):\n    return x**2, os.getpid()"
    )
    shown = notebook.run("speval(square, range(20), 'squares.db', n_jobs=4)")
    assert shown == "{'pending': 0, 'in_progress': 0, 'completed': 20, 'failed': 0}"
    assert [e["result"][0] for e in load_evals(notebook.path / "squares.db")] == [x**2 for x in range(20)]


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_progress_is_rewritten_in_place(notebook: Notebook, n_jobs: int) -> None:
    notebook.run("import time\nfrom speval import speval")
    shown = notebook.run(
        f"speval(lambda x: time.sleep(0.1), range(12), 'slow_{n_jobs}.db', n_jobs={n_jobs}, progress=True);"
    )
    assert shown.startswith("\r")
    assert shown.count("\r[") >= 2
    assert shown.count("\n") == 1


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_an_interrupted_cell_gives_the_evaluations_back_and_the_kernel_lives_on(
    notebook: Notebook, n_jobs: int
) -> None:
    path = notebook.path / f"interrupted_{n_jobs}.db"
    notebook.run("import os, time\nfrom speval import speval\ndef func(x):\n    time.sleep(1000)")
    cell = notebook.start(f"speval(func, range(9), {str(path)!r}, n_jobs={n_jobs})")
    until(lambda: path.exists() and count_evals(path)["in_progress"] == n_jobs)
    notebook.interrupt()
    assert notebook.end(cell) == "KeyboardInterrupt"
    assert [(row["status"], row["losses"]) for row in load_evals(path)] == [("pending", 0)] * 9
    assert notebook.run("import psutil\npsutil.Process().children()") == "[]"


def test_the_cells_of_the_readme_show_what_stands_there(notebook: Notebook) -> None:
    (block,) = re.findall(r"^\.\. code-block:: ipython\n\n((?:   .*\n|\n)+)", README, re.MULTILINE)
    cells = re.split(r"^In \[\d+\]: ", textwrap.dedent(block), flags=re.MULTILINE)[1:]
    assert len(cells) == 5
    for cell in cells:
        code, *more = re.split(r"\n(?! *\.\.\.: )", cell.rstrip() + "\n", maxsplit=1)
        shown = notebook.run(re.sub(r"^ *\.\.\.: ", "", code, flags=re.MULTILINE)).rpartition("\r")[2]
        expected = re.sub(r"Out\[\d+\]: ", "", "".join(more).strip())
        assert doctest.OutputChecker().check_output(expected, shown.strip(), doctest.ELLIPSIS), cell + shown


def printed(folder: pathlib.Path, command: list[str]) -> str:
    """Run Python so to its good end; return what it printed."""
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        check=True,
        timeout=LIMIT,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    ).stdout


SWEEP = "from speval import speval; print(speval(lambda x: x, range(20), 'evals.db', n_jobs=2)['completed'])"


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "IPython", "--no-banner", "-c", SWEEP],
        ["-Xfrozen_modules=off", "-m", "debugpy", "--listen", "127.0.0.1:0", "-c", SWEEP],
        ["-c", f"import tqdm\nfor _ in tqdm.tqdm(range(1)):\n    {SWEEP}"],
    ],
    ids=["IPython", "a debugger", "a bar of tqdm"],
)
def test_processes_are_forked_beside_the_threads_of(command: list[str], tmp_path: pathlib.Path) -> None:
    """The thread that saves the history; that of the debugger; that which watches over bars."""
    assert printed(tmp_path, command) == "20\n"


def test_processes_are_forked_beside_the_thread_of_pytest_timeout(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("pytest_timeout")
    (tmp_path / "test_sweep.py").write_text(
        f"def test_sweep():\n    {SWEEP.replace('print', 'assert 20 == ')}\n"
    )
    command = ["-m", "pytest", "-p", "no:cacheprovider", "--timeout=100", "--timeout-method=thread", "-q"]
    assert "1 passed" in printed(tmp_path, command)
