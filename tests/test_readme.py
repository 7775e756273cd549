"""What the README shows is run, in its order, in a copy of the checkout, and prints what stands there."""

from __future__ import annotations

import argparse
import doctest
import inspect
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from typing import NamedTuple

import pytest

import speval
from speval import cli, search

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.rst").read_text(encoding="utf-8")
BLOCK = re.compile(r"^\.\. code-block:: (\w+)\n\n((?:   .*\n|\n)+)", re.MULTILINE)
COMMAND = re.compile(r"^\$ (.+)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)
LEAVE_OUT = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "build", "dist", "*.db*")
LIMIT = 300.0  # seconds, reached only when something is broken


class Command(NamedTuple):
    line: str
    shown: str


def blocks(language: str) -> list[str]:
    return [textwrap.dedent(m[2]).strip("\n") + "\n" for m in BLOCK.finditer(README) if m[1] == language]


def commands() -> list[Command]:
    return [Command(m[1], m[2]) for block in blocks("console") for m in COMMAND.finditer(block)]


SET_UP, RUN_TESTS = [command for command in commands() if "-m venv" in command.line]


class Checkout:
    """A copy of the checkout, as somebody has it who has only just got it, and a shell in it.

    The scripts that the README shows, blocks that begin with the name of the file, are in it.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path / "checkout"
        shutil.copytree(ROOT, self.path, ignore=LEAVE_OUT)
        for block in blocks("python"):
            if block.startswith("# "):
                name = block.partition("\n")[0][2:]
                (self.path / name).write_text(block)
        for folder in "tmp", "bin":
            (path / folder).mkdir()
        for name, module in ("python", ""), ("python3", ""), ("speval", "-m speval"):
            script = path / "bin" / name
            start = f'PYTHONPATH="{self.path}" exec "{sys.executable}" -S'  # it has speval, and nothing else
            script.write_text(f'#!/bin/sh\n{start} {module} "$@"\n')
            script.chmod(0o755)
        self.env = {**os.environ, "PATH": f"{path}/bin:{os.environ['PATH']}", "TMPDIR": f"{path}/tmp"}
        self.env.update(PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_NO_COMPILE="1")  # not what is never imported
        for name in [name for name in self.env if name.startswith(("COVERAGE_", "PYTHONPATH"))]:
            del self.env[name]  # coverage's warnings nobody shows

    def run(self, line: str) -> str:
        """Run a line in a shell; return what is seen on the terminal."""
        shell = self.start("bash", "-c", line)
        try:
            printed, _ = shell.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            os.killpg(shell.pid, signal.SIGKILL)  # a group of its own, with all that it started
            shell.communicate()
            raise
        assert shell.returncode == 0, printed
        return printed

    def start(self, *command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            cwd=self.path,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def check(self, command: Command) -> None:
        """Run a command and compare as doctest does: `...` stands for anything."""
        printed = self.run(command.line)
        if not doctest.OutputChecker().check_output(command.shown, printed, doctest.ELLIPSIS):
            pytest.fail(f"$ {command.line}\n{printed}instead of\n{command.shown}", pytrace=False)


@pytest.fixture
def checkout(tmp_path: pathlib.Path) -> Checkout:
    return Checkout(tmp_path)


def test_each_command_prints_what_the_readme_shows(checkout: Checkout) -> None:
    shown = [command for command in commands() if command not in (SET_UP, RUN_TESTS)]
    assert len(shown) > 10
    for command in shown:
        checkout.check(command)


def test_each_interactive_line_prints_what_the_readme_shows(checkout: Checkout) -> None:
    lines = [block for block in blocks("python") if block.startswith(">>>")]
    assert len(lines) >= 2
    (checkout.path / "session.txt").write_text("\n".join(lines))
    checkout.run("python -m doctest -o ELLIPSIS session.txt")


def test_one_command_sets_up_and_runs_where_there_is_only_python(checkout: Checkout) -> None:
    checkout.check(SET_UP)
    where = checkout.run("cd / && $OLDPWD/.venv/bin/python -c 'import speval; print(speval.__file__)'")
    assert where.startswith(str(checkout.path / ".venv"))


def test_the_command_for_the_tests_is_the_one_that_ci_runs() -> None:
    assert RUN_TESTS.line in (ROOT / ".ci" / "run").read_text()


def test_the_folder_copied_alone_is_the_whole_package(tmp_path: pathlib.Path) -> None:
    shutil.copytree(ROOT / "speval", tmp_path / "speval")
    code = "import speval as s; print(s.__file__, s.speval(abs, [-1], 'a.db', n_jobs=2)['completed'])"
    command = [sys.executable, "-c", code]
    printed = subprocess.run(
        command, cwd=tmp_path, check=True, timeout=LIMIT, text=True, stdout=subprocess.PIPE
    )
    assert printed.stdout.split() == [str(tmp_path / "speval" / "__init__.py"), "1"]


@pytest.mark.parametrize("name", speval.__all__)
def test_every_public_name_is_explained_with_its_arguments(name: str) -> None:
    thing = getattr(speval, name)
    if inspect.isclass(thing):
        assert f"``{name}``" in README
    else:
        signature = inspect.signature(thing)
        bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
        signature = signature.replace(parameters=bare, return_annotation=signature.empty)
        assert f"\n``{name}{signature}``\n".replace("'", '"') in README


@pytest.mark.parametrize("name", search.__all__)
def test_every_name_of_search_is_explained_with_its_arguments(name: str) -> None:
    signature = inspect.signature(getattr(search, name))
    bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    signature = signature.replace(parameters=bare, return_annotation=signature.empty)
    assert re.search(rf"^``.*\b{re.escape(f'{name}{signature}')}``", README, re.MULTILINE)


def parsers() -> list[argparse.ArgumentParser]:
    (commands,) = [a for a in cli.parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return list(commands.choices.values())


@pytest.mark.parametrize("parser", parsers(), ids=lambda parser: parser.prog)
def test_every_command_and_option_is_explained_and_shown(parser: argparse.ArgumentParser) -> None:
    (usage,) = re.findall(rf"^``({parser.prog} .*)``$", README, re.MULTILINE)
    for action in parser._actions:
        if not isinstance(action, argparse._HelpAction):
            assert (action.option_strings or [action.metavar or action.dest])[-1] in usage
    assert re.search(rf"^   \$ {parser.prog} ", README, re.MULTILINE)


def test_every_key_and_status_of_an_evaluation_is_explained(tmp_path: pathlib.Path) -> None:
    counts = speval.speval(abs, [-1], tmp_path / "evals.db")
    (evaluation,) = speval.load_evals(tmp_path / "evals.db")
    for word in [*counts, *evaluation]:
        assert f'``"{word}"``' in README


def test_the_changes_of_this_version_are_listed() -> None:
    changes = (ROOT / "CHANGELOG.rst").read_text(encoding="utf-8")
    assert re.search(rf"^{re.escape(speval.__version__)} \(\d{{4}}-\d\d-\d\d\)$", changes, re.MULTILINE)
