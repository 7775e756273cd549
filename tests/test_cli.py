"""The command line, as a user sees it: what it prints, how it ends, and what it leaves alone."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import json
import os
import pathlib
import pty
import re
import shlex
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence

import pytest
from conftest import LIMIT, PYTHON, SAYS, Sandbox, fill, has_signal, state, until
from test_jobs import is_alive, is_full

from speval import __version__, count_evals, load_evals, reset_evals, speval
from speval.cli import main
from speval.database import locks
from speval.process import launcher
from speval.process.instances import Instance
from speval.process.machine import Mount
from speval.process.output import Output
from speval.view import doctor, survey

BAD = [3, 7]
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


def command(sandbox: Sandbox, *words: str, code: int = 0) -> str:
    """Run a command here to the end that it should have; return what it printed, errors after the rest."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    before = os.getcwd()
    os.chdir(sandbox.path)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            ended = main(list(words))
    except SystemExit as exc:  # of argparse
        ended = exc.code
    finally:
        os.chdir(before)
    printed = [stream.buffer.getvalue().decode() for stream in (out, err)]
    assert "Traceback" not in printed[1]
    assert ended == code, printed[1]
    return "".join(printed)


def on_terminal(sandbox: Sandbox, columns: int, *words: str, **environment: str) -> str:
    """Run a command on a terminal of so many columns; return all that it shows."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    env = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR", "TERM")}
    run = subprocess.Popen(
        [*PYTHON, "-m", "speval", *words],
        cwd=sandbox.path,
        env={**env, "TERM": "xterm", **environment},
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    sandbox.instances.append(run)  # type: ignore[arg-type]
    shown = b""
    while True:
        try:
            shown += os.read(ours, 10_000)
        except OSError:  # what Linux says at the end
            break
    os.close(ours)
    run.wait(LIMIT)
    return shown.decode()


def func(args: dict[str, int]) -> dict[str, object]:
    if args["x"] in BAD:
        raise ValueError(f"bad x\nfor {args['x'] // 10}")
    return {"loss": (args["x"] - 5) ** 2, "note": "=1+1"}


@pytest.fixture
def evaluated(sandbox: Sandbox) -> Sandbox:
    speval(func, [{"x": x, "deep": {"a": [x]}} for x in range(10)], sandbox.db)
    return sandbox


class TestErrorsOfUse:
    @pytest.mark.parametrize(
        "words",
        [
            ("status", "none.db"),
            ("results", "none.db"),
            ("errors", "none.db"),
            ("retry", "none.db"),
            ("doctor", "nowhere/none.db"),
            ("run", "none.py"),
        ],
    )
    def test_what_is_not_there_is_one_line_and_no_file_is_made(
        self, sandbox: Sandbox, words: tuple[str, ...]
    ) -> None:
        assert re.fullmatch(r"speval: .*none?.*\n", command(sandbox, *words, code=2)) or "nowhere" in words[1]
        assert list(sandbox.path.iterdir()) == []

    @pytest.mark.parametrize("word", ["status", "results", "errors", "retry"])
    def test_what_is_no_database_of_evaluations_is_left_alone(self, sandbox: Sandbox, word: str) -> None:
        (sandbox.path / "text.db").write_text("no database, but a text that is long enough to be none" * 50)
        before = (sandbox.path / "text.db").read_bytes()
        assert "is not a database" in command(sandbox, word, "text.db", code=2)
        assert (sandbox.path / "text.db").read_bytes() == before

    @pytest.mark.parametrize(
        "words",
        [
            (),
            ("unknown",),
            ("results", "evals.db", "--sort", "nothing"),
            ("results", "evals.db", "--limit", "0"),
            ("results", "evals.db", "--spreadsheet"),
            ("results", "evals.db", "--reverse"),
            ("errors", "evals.db", "99"),
            ("retry", "evals.db", "99"),
            ("run", "-n", "0", "evals.db"),
        ],
    )
    def test_a_wrong_command_ends_with_2(self, evaluated: Sandbox, words: tuple[str, ...]) -> None:
        assert "speval" in command(evaluated, *words, code=2)

    @pytest.mark.parametrize("word", ["run", "status", "results", "errors", "retry", "doctor"])
    def test_the_help_of_each_command_has_an_example(self, sandbox: Sandbox, word: str) -> None:
        assert f"example:\n  speval {word} " in command(sandbox, word, "--help")

    def test_the_version_is_that_of_the_package(self, sandbox: Sandbox) -> None:
        assert command(sandbox, "--version") == f"speval {__version__}\n"

    def test_without_a_stdout_the_answer_is_the_code(self, evaluated: Sandbox) -> None:
        line = f"{shlex.join(PYTHON)} -m speval status evals.db >&-"
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=evaluated.path,
            stderr=subprocess.PIPE,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        assert (done.returncode, done.stderr) == (1, "")

    def test_a_closed_pipe_is_quiet(self, sandbox: Sandbox) -> None:
        speval(lambda x: x, range(20_000), sandbox.db)
        line = f"{shlex.join(PYTHON)} -m speval results evals.db --format csv | head -1"
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=sandbox.path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT,
            check=True,
        )
        assert done.stdout.split() == [
            "name,status,args,result,duration,attempt,losses,stopped,started,updated,host,process,error"
        ]

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (("run", "-n", "two", "x.py"), "argument -n: 'two' is no whole number from 1 on"),
            (("run",), "are required: script"),
            (("retry", "evals.db", "--stauts=completed"), "unrecognized arguments: --stauts=completed"),
            (("results", "evals.db", "more"), "unrecognized arguments: more"),
            (("status", "evals.db", "--max"), "--max goes with --best"),
        ],
    )
    def test_what_is_wanted_is_said(
        self, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
    ) -> None:
        try:
            code: object = main(list(words))
        except SystemExit as exc:
            code = exc.code
        assert code == 2
        assert capsys.readouterr().err.endswith(f"{said}\n")


class TestResults:
    def test_csv_has_a_column_for_each_argument_and_each_key_of_a_result(self, evaluated: Sandbox) -> None:
        rows = list(csv.DictReader(io.StringIO(command(evaluated, "results", "evals.db", "--format", "csv"))))
        keys = "name status args.x args.deep result.loss result.note duration attempt losses stopped"
        assert list(rows[0]) == [*keys.split(), "started", "updated", "host", "process", "error"]
        assert [row["args.x"] for row in rows] == [str(x) for x in range(10)]
        assert [row["result.loss"] for row in rows] == [
            "" if x in BAD else str((x - 5) ** 2) for x in range(10)
        ]
        assert json.loads(rows[4]["args.deep"]) == {"a": [4]}

    def test_jsonl_keeps_what_is_nested(self, evaluated: Sandbox) -> None:
        lines = command(evaluated, "results", "evals.db", "--format", "jsonl", "--status", "completed")
        rows = [json.loads(line) for line in lines.splitlines()]
        assert [row["args.deep"]["a"][0] for row in rows] == [x for x in range(10) if x not in BAD]

    def test_a_short_key_sorts_and_what_has_none_comes_last(self, evaluated: Sandbox) -> None:
        words = ["results", "evals.db", "--sort", "loss", "--format", "jsonl"]
        names = [json.loads(line)["name"] for line in command(evaluated, *words).splitlines()]
        assert names == ["5", "4", "6", "2", "8", "1", "9", "0", "3", "7"]
        reverse = [json.loads(line)["name"] for line in command(evaluated, *words, "--reverse").splitlines()]
        assert reverse[0] == "0"
        assert set(reverse[-2:]) == {"3", "7"}

    def test_a_spreadsheet_gets_no_formula(self, evaluated: Sandbox) -> None:
        printed = command(evaluated, "results", "evals.db", "--format", "csv", "--spreadsheet")
        assert printed.startswith('\ufeff"name",')
        assert printed.count(""","'=1+1",""") == 8
        assert printed.count("=1+1") == 8

    def test_odd_characters_are_shown_and_break_no_row(self, sandbox: Sandbox) -> None:
        speval(lambda text: text, ["a\rb", "\ud800", "c\nd"], sandbox.db)
        for more in [], ["--sort", "result"]:
            printed = subprocess.run(
                [*PYTHON, "-m", "speval", "results", "evals.db", "--format", "csv", *more],
                cwd=sandbox.path,
                stdout=subprocess.PIPE,
                timeout=LIMIT,
                check=True,
            ).stdout.decode()
            rows = list(csv.DictReader(io.StringIO(printed, newline="")))
            assert sorted(row["result"] for row in rows) == ["\\ud800", "a\rb", "c\nd"]

    def test_a_table_shows_little_and_the_rest_to_who_names_it(self, evaluated: Sandbox) -> None:
        head = command(evaluated, "results", "evals.db").splitlines()[0]
        assert " ".join(head.split()) == "name status args.x args.deep result.loss result.note duration"
        words = ["results", "evals.db", "--status", "failed", "--limit", "1"]
        printed = command(evaluated, *words, "--columns", "error, attempt,losses,started,host,process,deep")
        head, row = (re.split(r"\s{2,}", line) for line in printed.splitlines())
        assert head == ["error", "attempt", "losses", "started", "host", "process", "args.deep"]
        assert row[:3] == ["for 0", "1", "0"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", row[3])
        assert row[4:] == [os.uname().nodename, str(os.getpid()), '{"a": [3]}']

    def test_named_columns_are_all_that_is_printed_also_those_of_late_rows(self, sandbox: Sandbox) -> None:
        space = [{"a b": 1}, {"a b": 2}, {"a b": 3, "x,y": 7}]
        speval(lambda args: sum(args.values()), space, sandbox.db)
        words = ["results", "evals.db", "--columns", ' a b , "x,y",result,a b', "--format"]
        assert command(sandbox, *words, "csv").splitlines() == [
            'args.a b,"args.x,y",result',
            "1,,1",
            "2,,2",
            "3,7,10",
        ]
        lines = command(sandbox, *words, "jsonl", "--limit", "1").splitlines()
        assert list(map(json.loads, lines)) == [{"args.a b": 1, "args.x,y": None, "result": 1}]

    @pytest.mark.parametrize("option", ["--columns", "--sort"])
    def test_a_key_that_is_unknown_or_of_two_columns_is_told_what_there_is(
        self, sandbox: Sandbox, option: str
    ) -> None:
        speval(lambda args: {"x": 1}, [{"x": 1}], sandbox.db)
        for key, told in [
            ("x", "'x' may be args.x or result.x: which?"),
            ("z", "there is no column 'z', but name, status, args.x, result.x, duration, attempt, "),
            ("", "there is no column '', but name, "),
            ("a\nb", "is no list of columns: "),
        ]:
            assert told in command(sandbox, "results", "evals.db", option, key, code=2)

    def test_several_keys_sort_whatever_is_there(self, sandbox: Sandbox) -> None:
        values = [
            ["b", 2],
            ["a", 1],
            [None, 1],
            [2, 1],
            ["a", "x"],
            [1.5, 3],
            [10**30, 0],
            [[1], 0],
            ["b", 1],
        ]
        speval(lambda args: args, values, sandbox.db)
        words = ["results", "evals.db", "--sort", "0, 1", "--columns", "name", "--format", "csv"]
        names = command(sandbox, *words).split()[1:]
        assert names == ["5", "3", "6", "7", "1", "4", "8", "0", "2"]
        assert command(sandbox, *words, "--reverse").split()[1:] == [*names[-2::-1], "2"]

    def test_a_late_and_long_value_is_whole_in_a_pipe(self, sandbox: Sandbox) -> None:
        speval(lambda x: "longest" * (x == 1000), range(1001), sandbox.db)
        last = command(sandbox, "results", "evals.db", "--columns", "result,status").splitlines()[-1]
        assert last.split() == ["longest", "completed"]

    def test_a_limit_shows_the_first(self, evaluated: Sandbox) -> None:
        lines = command(evaluated, "results", "evals.db", "--limit", "3").splitlines()
        assert [line.split()[0] for line in lines] == ["name", "0", "1", "2"]

    def test_a_database_of_0_1_1_is_shown_too(self, sandbox: Sandbox) -> None:
        conn = sqlite3.connect(sandbox.db)
        conn.execute("CREATE TABLE evals (name, status, updated, result, args)")
        conn.execute("INSERT INTO evals VALUES ('a', 'completed', 1.0, '7', '[1, 2]')")
        conn.commit()
        conn.close()
        assert command(sandbox, "results", "evals.db", "--format", "csv").splitlines() == [
            "name,status,args.0,args.1,result,duration,attempt,losses,stopped,started,updated,host,process,error",
            "a,completed,1,2,7,,0,0,,,1.0,,,",
        ]
        assert "1 completed" in command(sandbox, "status", "evals.db")

    def test_names_cannot_write_on_the_terminal(self, sandbox: Sandbox) -> None:
        speval(abs, {"\x1b[2Jname\n": -1}, sandbox.db)
        assert "\x1b" not in command(sandbox, "results", "evals.db")


class TestTerminal:
    @pytest.mark.parametrize("columns", [30, 60, 200])
    def test_tables_fit_it(self, evaluated: Sandbox, columns: int) -> None:
        for words in ["results"], ["errors"], ["status"]:
            lines = ESCAPE.sub("", on_terminal(evaluated, columns, *words, "evals.db")).splitlines()
            assert max(map(len, lines)) <= columns
            assert len(lines) > 1

    def test_long_heads_stay_apart(self, sandbox: Sandbox) -> None:
        ends = [f"{which}_learning_rate{more}" for which in ("encoder", "decoder") for more in ("", "_decay")]
        middles = [f"dropout_{where}_probability" for where in ("before", "within")]
        speval(lambda args: 0, [dict.fromkeys([*ends, *middles], 0.1)], sandbox.db)
        for columns in 70, 80, 100, 120:
            head = on_terminal(sandbox, columns, "results", "evals.db").splitlines()[0]
            heads = head.removesuffix(" ..").split()
            assert len(heads) >= 8
            assert len(set(heads)) == len(heads)

    def test_it_is_coloured_unless_the_user_says_no(self, evaluated: Sandbox) -> None:
        assert ESCAPE.search(on_terminal(evaluated, 80, "status", "evals.db"))
        assert not ESCAPE.search(on_terminal(evaluated, 80, "status", "evals.db", NO_COLOR="1"))
        assert not ESCAPE.search(command(evaluated, "status", "evals.db", code=1))


class TestErrors:
    def test_failures_are_grouped_by_their_last_line(self, evaluated: Sandbox) -> None:
        head, line = command(evaluated, "errors", "evals.db", code=1).splitlines()
        assert head.split() == ["times", "error", "evaluations"]
        assert re.split(r"\s{2,}", line) == ["2", "for 0", "3, 7"]

    def test_lines_that_differ_in_numbers_are_one(self, sandbox: Sandbox) -> None:
        def func(x: int) -> None:
            what = "float32" if x == 9 else "float64"
            raise RuntimeError(f"no GPU {x} at 0x7f{x}c, {what}, {-x / 3}, 1e-{x}")

        speval(func, range(10), sandbox.db, max_failures=None)
        _, *lines = command(sandbox, "errors", "evals.db", code=1).splitlines()
        groups = [re.split(r"\s{2,}", line) for line in lines]
        assert [(number, names) for number, _, names in groups] == [("9", "0, 1, 2, ..."), ("1", "9")]
        assert groups[0][1] == "RuntimeError: no GPU 0 at 0x7f0c, float64, 0.0, 1e-0"
        assert "9      RuntimeError: no GPU 0" in command(sandbox, "status", "evals.db", code=1)

    def test_a_whole_traceback_is_shown(self, evaluated: Sandbox) -> None:
        printed = command(evaluated, "errors", "evals.db", "3", code=1)
        assert printed == load_evals(evaluated.db)[3]["error"]
        assert command(evaluated, "errors", "evals.db", "4") == "evaluation 4 is completed\n"

    def test_the_losses_of_what_was_completed_are_shown(self, sandbox: Sandbox) -> None:
        script = """
def func(x):
    if x == 1 and current_eval()["attempt"] == 1:
        os._exit(5)
    return x

speval(func, range(3), "evals.db", n_jobs=2)
"""
        sandbox.run(script)
        assert command(sandbox, "errors", "evals.db") == "nothing has failed\n"
        printed = command(sandbox, "errors", "evals.db", "1")
        assert re.match(r"evaluation 1 is completed\n.* process \d+ on .* ended with exit code 5", printed)
        head, *lines = command(sandbox, "results", "evals.db", "--format", "csv").splitlines()
        assert [row["error"] != "" for row in csv.DictReader([head, *lines])] == [False, True, False]
        assert " 0 failed" in command(sandbox, "status", "evals.db")

    def test_an_error_that_somebody_stored_as_bytes_is_shown_as_text(self, evaluated: Sandbox) -> None:
        with contextlib.closing(sqlite3.connect(evaluated.db, isolation_level=None)) as conn:
            conn.execute("UPDATE evals SET error = x'0a' || x'6f6f7073ff' WHERE status = 'failed'")
            conn.execute("UPDATE evals SET error = CAST(error AS BLOB)")
        assert "oops\\xff  3, 7" in command(evaluated, "errors", "evals.db", code=1)
        assert command(evaluated, "errors", "evals.db", "3", code=1) == "\noops\\xff\n"

    def test_nothing_failed_is_fine(self, sandbox: Sandbox) -> None:
        speval(abs, [1], sandbox.db)
        assert command(sandbox, "errors", "evals.db") == "nothing has failed\n"


class TestRetry:
    def test_what_failed_is_pending_again(self, evaluated: Sandbox) -> None:
        assert command(evaluated, "retry", "evals.db") == "2 evaluations are pending again\n"
        assert count_evals(evaluated.db)["pending"] == 2

    def test_of_what_is_left_alone_it_is_said_why(self, evaluated: Sandbox) -> None:
        assert command(evaluated, "retry", "evals.db", "5", "6") == (
            "0 evaluations are pending again\n"
            "evaluations 5, 6 are completed: --status completed would reset them\n"
        )

    def test_names_may_stand_behind_the_option(self, evaluated: Sandbox) -> None:
        words = ["retry", "evals.db", "1", "--status", "completed", "2", "4"]
        assert command(evaluated, *words) == "3 evaluations are pending again\n"
        assert [e["name"] for e in load_evals(evaluated.db, "pending")] == ["1", "2", "4"]

    def test_some_by_name_and_of_another_status(self, evaluated: Sandbox) -> None:
        assert command(evaluated, "retry", "evals.db", "3", "4") == (
            "1 evaluation is pending again\nevaluation 4 is completed: --status completed would reset it\n"
        )
        words = ["retry", "evals.db", "4", "5", "--status", "completed"]
        assert command(evaluated, *words) == "2 evaluations are pending again\n"
        assert [e["name"] for e in load_evals(evaluated.db, "pending")] == ["3", "4", "5"]


class TestStatus:
    def test_it_counts_and_names_who_runs_what_and_who_is_dead(self, sandbox: Sandbox) -> None:
        script = """
def func(x):
    if x == 1:
        raise ValueError("one")
    note(x)
    if x >= 2:
        wait_for("go")

speval(func, range(5), "evals.db")
"""
        killed, living = sandbox.start(script), sandbox.start(script)
        until(lambda: {"2", "3"} <= set(sandbox.calls()))
        stored = {"pending": 1, "in_progress": 2, "completed": 1, "failed": 1}
        until(lambda: count_evals(sandbox.db) == stored)
        killed.kill()
        killed.wait(LIMIT)
        printed = command(sandbox, "status", "evals.db", code=1)
        assert re.search(r"\[#+\.+\] 2/5\n", printed)
        for words in "1 pending", "2 in_progress", "1 completed", "1 failed", "ValueError: one":
            assert words in printed
        assert re.search(rf"\S+ +{killed.pid} +dead +\d{{4}}-", printed)
        assert re.search(rf"\S+ +{living.pid} +alive +\d{{4}}-", printed)
        assert re.search(rf"[23] +\d+ s +\S+ +{living.pid}\n", printed)
        sandbox.touch("go")
        sandbox.end(living)

    def test_it_is_told_how_fast_it_goes_and_how_long_it_takes(self, sandbox: Sandbox) -> None:
        script = """
def func(x):
    note(x)
    if x == 30:
        wait_for("go")
    time.sleep(0.01)

speval(func, range(40), "evals.db")
"""
        instance = sandbox.start(script)
        until(lambda: len(sandbox.calls()) == 31)
        until(lambda: count_evals(sandbox.db)["completed"] >= 30)
        assert re.search(r"rate [\d.]+/s, \d+ \S+.* left\n", command(sandbox, "status", "evals.db"))
        sandbox.touch("go")
        sandbox.end(instance)

    def test_watching_ends_when_all_is_finished(self, sandbox: Sandbox) -> None:
        script = """
def func(x):
    note(x)
    wait_for("go")

speval(func, range(2), "evals.db")
"""
        instance = sandbox.start(script)
        until(sandbox.calls)
        watch = subprocess.Popen(
            [*PYTHON, "-m", "speval", "status", "evals.db", "--watch"],
            cwd=sandbox.path,
            stdout=subprocess.PIPE,
            text=True,
        )
        sandbox.instances.append(watch)
        assert watch.stdout is not None
        assert "0/2" in watch.stdout.readline()
        sandbox.touch("go")
        sandbox.end(instance)
        printed, _ = watch.communicate(timeout=LIMIT)
        assert watch.returncode == 0
        assert "2/2" in printed

    def test_watching_ends_when_work_is_left_and_nobody_lives(self, evaluated: Sandbox) -> None:
        reset_evals(evaluated.db)
        watch = evaluated.start("""
from speval import cli
cli.WATCH = 0.0
sys.exit(cli.main(["status", "evals.db", "--watch"]))
""")
        printed = evaluated.end(watch, 1)
        assert printed.endswith(
            "nobody works on 2 evaluations that are left: start the script again, and only what"
            " is not done yet is done\n"
        )
        assert printed.count("8/10") > 5

    def test_who_watches_is_patient_with_what_changes_or_cannot_be_known(self) -> None:
        counts = {"pending": 1, "in_progress": 0, "completed": 0, "failed": 0}
        dead = survey.Working(1, "host", 1, 1.5, alive=False)
        seen = survey.Survey(counts, [dead], [], 0.0, sure=True)
        idle = survey.Idle()
        assert [idle.learn(seen) for _ in range(3)] == [0, 1, 2]
        assert idle.learn(seen._replace(counts={**counts, "pending": 2})) == 0
        assert [idle.learn(seen) for _ in range(3)] == [0, 1, 2]
        assert idle.learn(seen._replace(workers=[dead, dead._replace(alive=True)])) == 0
        assert idle.learn(seen) == 1
        assert idle.learn(seen._replace(sure=False)) == 0

    def test_where_locks_tell_nothing_nobody_is_known(
        self, evaluated: Sandbox, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert survey.survey(evaluated.db).sure
        monkeypatch.setattr(locks, "mount_of", lambda path: Mount("nfs", ["nolock"]))
        assert not survey.survey(evaluated.db).sure
        monkeypatch.undo()
        os.remove(f"{evaluated.db}-lock")
        assert not survey.survey(evaluated.db).sure

    def test_the_best_so_far_is_shown(self, evaluated: Sandbox) -> None:
        reset_evals(evaluated.db, "completed", ["5"])
        printed = command(evaluated, "status", "evals.db", "--best", "loss", code=1)
        assert re.search(r"best:\nname +result.loss +args.x +args.deep\n4 +1 +4 ", printed)
        printed = command(evaluated, "status", "evals.db", "--best", "loss", "--max", code=1)
        assert re.search(r"best:\nname +result.loss +args.x +args.deep\n0 +25 +0 ", printed)
        assert "no column 'lost', but name" in command(
            evaluated, "status", "evals.db", "--best", "lost", code=2
        )

    def test_what_a_search_is_after_is_shown_and_what_it_has_yet_to_suggest_is_pending(
        self, sandbox: Sandbox
    ) -> None:
        script = """
class Space:
    key, maximize = "loss", sys.argv[1] == "max"

    def __len__(self):
        return 5

    def suggest(self, history):
        if len(history) == 4:
            raise KeyboardInterrupt
        return {"x": len(history)}

speval(lambda args: {"loss": abs(args["x"] - 1), "more": "text"}, Space(), "evals.db")
"""
        sandbox.end(sandbox.start(script, "min"), -signal.SIGINT)
        printed = command(sandbox, "status", "evals.db")
        assert " 4/5\n         1 pending\n" in printed
        assert re.search(r"best:\nname +result.loss +args.x\n1 +0 +1\n", printed)
        printed = command(sandbox, "results", "evals.db")
        assert re.search(r"\nbest:\nname +result.loss +args.x\n1 +0 +1 *\n$", printed)
        assert "best" not in command(sandbox, "results", "evals.db", "--format", "csv")
        sandbox.end(sandbox.start(script, "max"), -signal.SIGINT)
        printed = command(sandbox, "status", "evals.db")
        assert re.search(r"best:\nname +result.loss +args.x\n3 +2 +3\n", printed)

    def test_only_numbers_are_the_best(self, tmp_path: pathlib.Path) -> None:
        values = [None, "0", float("nan"), True, 3, [0], 2.5, 10**400]
        path = tmp_path / "evals.db"
        speval(lambda x: values[x] if x < 8 else 1 / 0, range(10), path)
        for largest, name in (False, "6"), (True, "7"):
            found = survey.best(path, "result", largest)
            assert found is not None
            assert (found[0], found[1]["name"]) == ("result", name)
        reset_evals(path, None)
        assert survey.best(path, "no column yet", False) is None

    @pytest.mark.parametrize(("bad", "left", "code"), [(1, 0, 0), (0, 0, 1), (1, 1, 3), (0, 1, 3)], ids=str)
    def test_a_script_is_told_whether_something_is_left(
        self, sandbox: Sandbox, bad: int, left: int, code: int
    ) -> None:
        speval(lambda x: 1 / (x + bad), range(2), sandbox.db)
        if left:
            reset_evals(sandbox.db, "completed", ["1"])
        command(sandbox, "status", "evals.db", code=0 if bad else 1)
        command(sandbox, "status", "evals.db", "--exit-code", code=code)

    def test_every_command_works_while_many_write(self, sandbox: Sandbox) -> None:
        script = """
def func(x):
    if x % 1000 == 0:
        note(x)
    return 1 // (x % 7)

speval(func, range(15_000), "evals.db", n_jobs=8, max_failures=None)
"""
        instance = sandbox.start(script)
        until(sandbox.calls)
        until(lambda: count_evals(sandbox.db)["failed"])
        command(sandbox, "status", "evals.db", code=1)
        command(sandbox, "errors", "evals.db", code=1)
        command(sandbox, "results", "evals.db", "--limit", "5", "--sort", "name")
        command(sandbox, "doctor", "evals.db")
        sandbox.end(instance)
        assert sum(count_evals(sandbox.db).values()) == 15_000


class TestDoctor:
    @staticmethod
    def hold(sandbox: Sandbox) -> subprocess.Popen[str]:
        """Start a process that holds a lock, and wait until it does."""
        hold = subprocess.Popen(
            [*PYTHON, "-m", "speval", "doctor", "--hold", "."],
            cwd=sandbox.path,
            stdout=subprocess.PIPE,
            text=True,
        )
        sandbox.instances.append(hold)
        until((sandbox.path / ".speval-doctor").exists)
        until((sandbox.path / ".speval-doctor").read_text)
        return hold

    def test_locks_of_two_processes_and_the_database_are_tried(self, evaluated: Sandbox) -> None:
        before = sorted(path.name for path in evaluated.path.iterdir())
        printed = command(evaluated, "doctor", "evals.db")
        for what in "Python", "SQLite", "mount", "space left", "locks", "format", "integrity_check":
            assert re.search(rf"^ok {what} ", printed, re.MULTILINE)
        assert sorted(path.name for path in evaluated.path.iterdir()) == before

    def test_a_file_that_is_not_there_is_a_bad_answer(self, sandbox: Sandbox) -> None:
        assert re.search(
            r"^no database +there is no file", command(sandbox, "doctor", "typo.db", code=1), re.M
        )

    def test_a_damaged_database_is_a_bad_answer(self, evaluated: Sandbox) -> None:
        size = os.path.getsize(evaluated.db)
        with open(evaluated.db, "r+b") as file:
            file.seek(size // 2)
            file.write(b"\xff" * (size // 4))
        assert re.search(
            r"^no (integrity_check|database) ", command(evaluated, "doctor", "evals.db", code=1), re.M
        )

    def test_a_lock_that_is_held_elsewhere_is_seen_and_when_killed_gone(self, sandbox: Sandbox) -> None:
        hold = self.hold(sandbox)
        assert f"process {hold.pid} on " in command(sandbox, "doctor", ".")
        assert "somebody holds it already" in command(sandbox, "doctor", "--hold", ".", code=2)
        hold.kill()
        hold.wait(LIMIT)
        assert re.search(r"has not counted for \d+ s, are gone", command(sandbox, "doctor", "."))
        assert list(sandbox.path.iterdir()) == []

    def test_one_that_is_stopped_is_not_said_to_be_dead(
        self, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(doctor, "PATIENCE", 0.1)
        hold = self.hold(sandbox)
        hold.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, hold.pid, os.WSTOPPED)
        bad = [finding.found for finding in doctor.examine(str(sandbox.path)) if not finding.good]
        assert len(bad) == 1
        assert "are still there: is it stopped?" in bad[0]
        assert (sandbox.path / ".speval-doctor-lock").exists()

    def test_a_process_may_take_long_to_start_and_who_waits_is_told(self, sandbox: Sandbox) -> None:
        (sandbox.path / "sitecustomize.py").write_text(
            "import os, time\n"
            "for _ in range(6000):\n"
            f"    if os.path.exists({str(sandbox.path / 'go')!r}):\n"
            "        break\n"
            "    time.sleep(0.01)\n"
        )
        looking = sandbox.start("""
from speval import cli
from speval.process import background
from speval.view import doctor
background.LONG_WAIT = 0.05
doctor.PATIENCE = 0.0
sys.exit(cli.main(["doctor", "."]))
""")
        assert looking.stdout is not None
        assert any(
            "waiting for a process that was to hold a lock to start" in line for line in looking.stdout
        )
        sandbox.touch("go")
        assert re.search(r"^ok locks ", sandbox.end(looking), re.MULTILINE)

    def test_what_does_not_answer_in_time_is_not_called_without_locks(
        self, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(doctor, "START", 0.0)
        bad = [finding for finding in doctor.examine(str(sandbox.path)) if not finding.good]
        assert [finding.what for finding in bad] == ["answer"]
        assert list(sandbox.path.iterdir()) == []

    @pytest.mark.parametrize(
        ("mount", "recover", "good", "said"),
        [
            ("nfs rw,vers=3,local_lock=none", None, True, "prefer vers=4.2, and set a timeout"),
            ("nfs rw", "Y", True, "prefer vers=4.2, and set a timeout"),
            ("nfs4 rw,vers=4.2", None, True, "longer than its lease"),
            ("nfs4 rw,vers=4.2", "N\n", True, "longer than its lease"),
            ("nfs4 rw", "Y\n", False, "set it to N"),
            ("nfs rw,vers=4.0", "Y\n", False, "set it to N"),
            ("ext4 rw", "Y\n", None, None),
        ],
    )
    def test_what_takes_locks_on_nfs_is_told_by_version_and_setting(
        self, tmp_path: pathlib.Path, mount: str, recover: str | None, good: bool | None, said: str | None
    ) -> None:
        table, parameter = tmp_path / "mounts", tmp_path / "recover_lost_locks"
        table.write_text(f"/dev/sda1 / ext4 rw 0 0\nserver:/x /data {mount} 0 0\n")
        if recover is not None:
            parameter.write_text(recover)
        found = list(doctor.lost_locks("/data/set/", str(table), str(parameter)))
        assert [finding.good for finding in found] == ([] if good is None else [good])
        assert all(said in finding.found for finding in found if said is not None)

    def test_holding_ends_with_ctrl_c_and_leaves_nothing(self, sandbox: Sandbox) -> None:
        hold = self.hold(sandbox)
        hold.send_signal(signal.SIGINT)
        sandbox.end(hold, -signal.SIGINT)
        assert list(sandbox.path.iterdir()) == []


class TestRun:
    def start(
        self, sandbox: Sandbox, code: str, *words: str, program: Sequence[str] = ("-m", "speval")
    ) -> subprocess.Popen[str]:
        (sandbox.path / "script.py").write_text("import os, signal, sys, time\nfrom speval import *\n" + code)
        run = subprocess.Popen(
            [*PYTHON, *program, "run", *words],
            cwd=sandbox.path,
            env={k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        sandbox.instances.append(run)
        return run

    def test_instances_share_the_work_and_their_lines_are_numbered(self, sandbox: Sandbox) -> None:
        code = "speval(lambda x: print('at', x), range(30), 'evals.db')\nprint(sys.argv[1:])\n"
        printed = sandbox.end(
            self.start(sandbox, code, "-n", "3", "script.py", "-n", "7", "--x")
        ).splitlines()
        lines = [line for line in printed if line.startswith("[") and line[1].isdigit()]
        assert sorted(int(line.split()[-1]) for line in lines if " at " in line) == list(range(30))
        assert [line[4:] for line in lines if "--x" in line] == ["['-n', '7', '--x']"] * 3
        assert printed[-1].endswith("] 30/30, 0 workers") or "30/30, 0 workers, " in printed[-1]

    @pytest.mark.parametrize(
        ("death", "how"),
        [
            ("os.kill(os.getpid(), signal.SIGKILL)", r"died of SIGKILL\nlast words\n"),
            ("os._exit(3)", r"ended with exit code 3\nlast words\n"),
            (
                "import ctypes; ctypes.string_at(0)",
                r"died of SIGSEGV\nlast words\nFatal Python error: Segmentation fault\n(.*\n)+.* in func\n",
            ),
        ],
    )
    def test_how_an_instance_died_is_in_the_error_of_what_it_held(
        self, sandbox: Sandbox, death: str, how: str
    ) -> None:
        code = f"""
def func(x):
    if x == 1:
        print("last words", file=sys.stderr)
        {death}

speval(func, range(3), "evals.db", max_attempts=1)
"""
        sandbox.end(self.start(sandbox, code, "-n", "2", "script.py"), 1)
        (failed,) = load_evals(sandbox.db, "failed")
        assert re.match(rf"\d.* process \d+ on .* {how}", failed["error"])
        assert command(sandbox, "errors", "evals.db", "1", code=1).rstrip() == failed["error"]

    def test_a_module_is_run_as_python_does(self, sandbox: Sandbox) -> None:
        (sandbox.path / "pkg").mkdir()
        (sandbox.path / "pkg" / "__init__.py").touch()
        (sandbox.path / "pkg" / "mod.py").write_text("import sys; print(__name__, sys.argv[1:])")
        printed = sandbox.end(self.start(sandbox, "", "-n", "2", "-m", "pkg.mod", "-m", "--x"))
        assert all(f"[{number}] __main__ ['-m', '--x']\n" in printed for number in (1, 2))
        assert "No module named pkg.none" in command(sandbox, "run", "-n", "1", "-m", "pkg.none", code=1)

    @pytest.mark.parametrize(("words", "threads"), [((), None), (("--threads", "3"), "3")])
    def test_libraries_get_their_part_of_the_threads(
        self, sandbox: Sandbox, words: tuple[str, ...], threads: str | None
    ) -> None:
        code = "print('threads', os.environ['OMP_NUM_THREADS'], os.environ['OPENBLAS_NUM_THREADS'])\n"
        printed = sandbox.end(self.start(sandbox, code, "-n", "1", *words, "script.py"))
        threads = threads or str(len(os.sched_getaffinity(0)))
        assert f"[1] threads {threads} {threads}\n" in printed

    def test_a_failed_evaluation_or_instance_is_a_bad_end(self, sandbox: Sandbox) -> None:
        code = "speval(lambda x: 1 / x, range(2), 'evals.db')\n"
        sandbox.end(self.start(sandbox, code, "-n", "1", "script.py"), 1)
        printed = sandbox.end(self.start(sandbox, "sys.exit(3)\n", "-n", "1", "script.py"), 1)
        assert "speval: instance 1 ended with exit code 3" in printed

    @pytest.mark.parametrize("code", [0, 3])
    def test_of_a_database_that_the_script_has_deleted_its_exit_code_tells(
        self, sandbox: Sandbox, code: int
    ) -> None:
        script = f"""
import tempfile
with tempfile.TemporaryDirectory() as folder:
    print(speval(lambda x: x, range(3), folder + "/evals.db"))
sys.exit({code})
"""
        printed = sandbox.end(self.start(sandbox, script, "-n", "1", "script.py"), 1 if code else 0)
        assert "'completed': 3" in printed

    def test_a_killed_instance_is_started_again(self, sandbox: Sandbox) -> None:
        code = """
def func(x):
    if x == 2 and current_eval()["attempt"] == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return x

speval(func, range(5), "evals.db")
"""
        printed = sandbox.end(self.start(sandbox, code, "-n", "1", "script.py"))
        assert "speval: instance 1 was killed by SIGKILL: it is started again in 1 s" in printed
        assert sandbox.column("result") == list(range(5))

    @pytest.mark.parametrize("n_jobs", [1, 2])
    def test_one_that_is_started_again_waits_until_the_disk_has_room(
        self, sandbox: Sandbox, small_disk: pathlib.Path, n_jobs: int
    ) -> None:
        code = f"""
def func(x):
    open(f"at {{x}} {{os.getpid()}}", "w").close()
    while not os.path.exists("go"):
        time.sleep(0.01)
    return x

speval(func, range(6), "disk/evals.db", n_jobs={n_jobs})
"""
        run = self.start(sandbox, SAYS + code, "-n", "2", "script.py")
        until(lambda: len(list(sandbox.path.glob("at *"))) == 2 * n_jobs)
        ballast = fill(small_disk)
        with open(f"/proc/{run.pid}/task/{run.pid}/children") as children:
            os.kill(int(children.read().split()[0]), signal.SIGKILL)
        until(lambda: "(0 finished evaluations are kept in memory, next try in 2 s)" in sandbox.said())
        sandbox.touch("go")
        until(lambda: "(1 finished evaluations are kept in memory, next try in 1 s)" in sandbox.said())
        assert run.poll() is None
        ballast.unlink()
        sandbox.end(run)
        rows = load_evals(small_disk / "evals.db")
        assert [row["result"] for row in rows] == list(range(6))
        assert sum(row["losses"] for row in rows) == n_jobs

    def test_of_instances_that_have_just_started_on_a_full_disk_each_raises(
        self, sandbox: Sandbox, small_disk: pathlib.Path
    ) -> None:
        speval(abs, range(3), small_disk / "evals.db")
        reset_evals(small_disk / "evals.db", "completed")
        fill(small_disk)
        code = "speval(abs, range(3), 'disk/evals.db')\n"
        printed = sandbox.end(self.start(sandbox, code, "-n", "2", "script.py"), 1)
        assert printed.count("is the disk full, or a quota?") == 2

    def test_one_that_is_killed_again_and_again_is_given_up(self, tmp_path: pathlib.Path) -> None:
        (board,) = launcher.Board.make(str(tmp_path), 1)
        instance = Instance(1, ["sh", "-c", "kill -9 $$"], os.environ, str(tmp_path), board)
        said = []
        while not instance.over:
            instance.due = 0.0  # no pause
            for output in instance.start():
                output.close()
            said.append(until(lambda: instance.look(ending=False)))
        assert [line.rpartition(" in ")[2] for line in said[:3]] == ["1 s", "2 s", "4 s"]
        assert len(said) == 11
        assert said[-1].endswith("for the 11th time in a row: it is not started again")
        assert not instance.good

    def test_one_that_hangs_and_then_ends_well_is_started_again_all_the_same(self, sandbox: Sandbox) -> None:
        code = """
signal.signal(signal.SIGTERM, lambda *args: sys.exit(0))  # usual where a scheduler sends it
speval(lambda x: time.sleep(1000 * (x < 2)), range(5), "evals.db", timeout=0.3, max_attempts=1)
"""
        sandbox.end(self.start(sandbox, code, "-n", "1", "script.py"), 1)
        assert sandbox.column("status") == ["failed"] * 2 + ["completed"] * 3

    def test_a_locked_database_keeps_nobody_from_ending_all(self, sandbox: Sandbox) -> None:
        code = """
def func(x):
    with open("calls", "a") as calls:
        calls.write(f"{os.getpid()}\\n")
    time.sleep(1000)

speval(func, range(5), "evals.db")
"""
        run = self.start(sandbox, code, "-n", "2", "script.py")
        first, _ = until(lambda: len(sandbox.calls()) == 2 and sandbox.calls())
        with sandbox.locked():
            os.kill(int(first), signal.SIGKILL)
            until(lambda: not is_alive(int(first)))
            until(lambda: run.send_signal(signal.SIGINT) or run.poll() is not None)
        assert run.returncode == -signal.SIGINT

    def test_what_hangs_is_ended_with_its_programs_and_the_sweep_goes_on(self, sandbox: Sandbox) -> None:
        code = """
import subprocess
def func(x):
    if x == 1:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # as C code does in effect
        program = subprocess.Popen(["sleep", "1000"], start_new_session=True)
        with open("calls", "a") as calls:
            calls.write(f"{program.pid}\\n")
        program.wait()
    return x

print("counts", speval(func, range(5), "evals.db", timeout=0.5, max_attempts=2))
"""
        printed = sandbox.end(self.start(sandbox, code, "-n", "2", "script.py"), 1)
        counts = {"pending": 0, "in_progress": 0, "completed": 4, "failed": 1}
        assert printed.count(f"counts {counts}") == 2
        assert printed.count("has run past 0.5 s in one evaluation and is ended") == 2
        assert sandbox.column("losses") == [0, 2, 0, 0, 0]
        until(lambda: not any(is_alive(int(pid)) for pid in sandbox.calls()))

    def test_one_that_hangs_is_started_again_as_often_as_that_is_a_loss(self, tmp_path: pathlib.Path) -> None:
        (board,) = launcher.Board.make(str(tmp_path), 1)
        instance = Instance(1, ["sleep", "1000"], os.environ, str(tmp_path), board)
        for _ in range(12):
            for output in instance.start():
                output.close()
            board.limit, board.value = 5.0, 1
            assert instance.look(ending=False, passed=1.0) is None
            assert "has run past 5 s" in (instance.look(ending=False, passed=5.0) or "")
            assert until(lambda: instance.look(ending=False)) == "instance 1 is started again"

    def test_a_launcher_that_a_batch_system_suspends_and_resumes_goes_on(self, sandbox: Sandbox) -> None:
        code = """
def func(x):
    open("calls", "w").close()
    while not os.path.exists("go"):
        time.sleep(0.01)
    return x

speval(func, [7], "evals.db")
"""
        run = self.start(sandbox, code, "-n", "1", "script.py")
        until((sandbox.path / "calls").exists)
        run.send_signal(signal.SIGTSTP)
        until(lambda: not has_signal(run.pid, "ShdPnd", signal.SIGTSTP))
        run.send_signal(signal.SIGSTOP)
        until(lambda: state(run.pid) == "T")
        run.send_signal(signal.SIGCONT)
        sandbox.touch("go")
        sandbox.end(run)
        assert sandbox.column("result") == [7]

    def test_one_that_is_stopped_does_not_hang(self, tmp_path: pathlib.Path) -> None:
        (board,) = launcher.Board.make(str(tmp_path), 1)
        instance = Instance(1, ["sh", "-c", "kill -STOP $$; sleep 1000"], os.environ, str(tmp_path), board)
        outputs = instance.start()
        pid = instance.pid or 0
        until(lambda: state(pid) == "T")
        board.limit, board.value = 5.0, 1
        for _ in range(10):
            assert instance.look(ending=False, passed=1.0) is None
        os.kill(pid, signal.SIGCONT)
        said = [instance.look(ending=False, passed=1.0) for _ in range(5)]
        assert [line is None for line in said] == [True] * 4 + [False]
        for output in outputs:
            output.close()
        until(lambda: instance.look(ending=True) or instance.over)

    def test_one_megabyte_without_a_newline_is_passed_on(self, sandbox: Sandbox) -> None:
        code = "sys.stdout.write('x' * 1_000_000)\nsys.stdout.flush()\nprint('end')\n"
        printed = sandbox.end(self.start(sandbox, code, "-n", "2", "script.py"))
        lines = [line for line in printed.splitlines() if line.startswith("[1] ")]
        assert "".join(line[4:] for line in lines) == "x" * 1_000_000 + "end"

    def test_last_words_and_rewritten_lines_are_shown_though_a_child_keeps_the_pipe(
        self, sandbox: Sandbox
    ) -> None:
        code = """
child = os.fork()
if child == 0:
    while not os.path.exists("over"):
        time.sleep(0.01)
    os._exit(0)
sys.stdout.write("".join("step %d\\r" % step for step in range(3)) + "\u20ac" * 10_000 + "\\nlast words")
"""
        printed = sandbox.end(self.start(sandbox, code, "-n", "1", "script.py"))
        sandbox.touch("over")
        lines = [line[4:] for line in printed.splitlines() if line.startswith("[1] ")]
        assert lines[-1] == "last words"
        assert "".join(lines[:-1]).replace("step 2", "") == "\u20ac" * 10_000

    @pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
    @pytest.mark.parametrize("n_jobs", [1, 2])
    def test_an_interrupt_is_passed_on_and_all_is_released(
        self, sandbox: Sandbox, signum: signal.Signals, n_jobs: int
    ) -> None:
        code = f"""
def func(x):
    with open("calls", "a") as calls:
        calls.write("x\\n")
    time.sleep(1000)

speval(func, range(9), "evals.db", n_jobs={n_jobs})
"""
        run = self.start(sandbox, code, "-n", "2", "script.py")
        until(lambda: len(sandbox.calls()) == 2 * n_jobs)
        run.send_signal(signum)
        printed = sandbox.end(run, -signum)
        assert [(e["status"], e["losses"]) for e in load_evals(sandbox.db)] == [("pending", 0)] * 9
        said = "nothing is lost, 0 of 9 evaluations are done; to go on: speval run -n 2 script.py"
        assert printed.splitlines()[-1] == f"speval: interrupted: {said}"
        assert printed.count("interrupted") == 1
        assert "Traceback" not in printed

    def test_a_line_that_is_rewritten_is_shown_now_and_then_and_its_end_is_kept(self) -> None:
        read, write = os.pipe()
        log, now = io.BytesIO(), 0.0
        output = Output(1, open(read, "rb", 0), io.BytesIO(), log, lambda: now)  # noqa: SIM115 - it closes it
        shown = b""
        for step in range(101):
            os.write(write, b"\r%d %%" % step)
            shown += output.read() or b""
            now += 0.3
        os.write(write, b"\nend\r\n")
        shown += output.read() or b""
        assert shown == b"[1] 0 %\n[1] 34 %\n[1] 68 %\n[1] 100 %\n[1] end\n"
        assert log.getvalue() == b"100 %\nend\n"
        os.close(write)
        output.close()

    def test_what_each_evaluation_writes_is_kept_under_its_name(self, sandbox: Sandbox) -> None:
        code = """
def func(x):
    if x == 1 and current_eval()["attempt"] == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    print("out", x)
    os.system(f"echo err {x} >&2")

speval(func, {"a": 0, "b": 1}, "evals.db", n_jobs=int(sys.argv[1]))
"""
        for n_jobs, file in ("1", "1.txt"), ("2", "1.2.txt"):
            words = ["-n", "1", "--quiet", "--logs", f"logs/{n_jobs}", "script.py", n_jobs]
            printed = sandbox.end(self.start(sandbox, code, *words))
            assert "out" not in printed
            assert "evaluation a" not in printed
            assert "] 2/2, " in printed
            kept = [path.read_text() for path in sorted((sandbox.path / "logs" / n_jobs).iterdir())]
            assert (sandbox.path / "logs" / n_jobs / file).exists()
            for name, x, attempt in ("a", 0, 1), ("b", 1, 2):
                lines = next(text for text in kept if f"out {x}" in text).splitlines()
                place = lines.index(f"speval: evaluation {name}, attempt {attempt}")
                assert {f"out {x}", f"err {x}"} <= set(lines[place + 1 : place + 3])
            os.remove(sandbox.db)

    def test_the_last_words_of_a_process_that_is_one_of_n_jobs_are_kept_there_and_with_the_loss(
        self, sandbox: Sandbox
    ) -> None:
        code = """
def func(x):
    os.write(2, b"out of luck\\n")
    os.kill(os.getpid(), signal.SIGKILL)

speval(func, [0], "evals.db", n_jobs=2, max_attempts=1)
"""
        sandbox.end(self.start(sandbox, code, "-n", "1", "--quiet", "--logs", "logs", "script.py"), 1)
        (error,) = sandbox.column("error")
        assert re.search("died of SIGKILL\nspeval: evaluation 0, attempt 1\nout of luck\nlost 1 times", error)

    def test_without_quiet_it_is_shown_too_and_without_headings(self, sandbox: Sandbox) -> None:
        code = "speval(lambda x: print('at', x), [0], 'evals.db')\n"
        printed = sandbox.end(self.start(sandbox, code, "-n", "1", "--logs", "logs", "script.py"))
        assert "[1] at 0\n" in printed
        assert "speval: evaluation" not in printed
        assert (sandbox.path / "logs" / "1.txt").read_text() == "speval: evaluation 0, attempt 1\nat 0\n"

    def test_after_ctrl_c_only_its_own_tracebacks_are_left_out(self) -> None:
        read, write = os.pipe()
        output = Output(1, open(read, "rb", 0), io.BytesIO())  # noqa: SIM115 - it closes it
        output.interrupted = True
        frames = 'Traceback (most recent call last):\n  File "x", line 1, in f\n    f()\n    ^^^\n'
        during = "During handling of the above exception, another exception occurred:"
        chained = f"{frames}ValueError: d\n\n{during}\n\n"
        interrupts = f"{frames}KeyboardInterrupt\nb\n{chained}{frames}KeyboardInterrupt\n"
        os.write(write, f"a\n{interrupts}{frames}ValueError: c\n{frames}".encode())
        os.close(write)
        shown = (output.read() or b"") + output.close()
        lines = f"a\nb\n{frames}ValueError: c\n{frames}".splitlines()
        assert shown.decode().splitlines() == [f"[1] {line}" for line in lines]

    def test_without_a_stderr_it_runs_all_the_same(self, sandbox: Sandbox) -> None:
        (sandbox.path / "script.py").write_text("from speval import *\nspeval(abs, [-1], 'evals.db')\n")
        line = f"{shlex.join(PYTHON)} -m speval run -n 1 script.py 2>&-"
        subprocess.run(["bash", "-c", line], cwd=sandbox.path, timeout=LIMIT, check=True)
        assert sandbox.column("result") == [1]

    @pytest.mark.parametrize("has_prctl", [True, False])
    def test_instances_do_not_outlive_it(self, sandbox: Sandbox, has_prctl: bool) -> None:
        code = """
def func(x):
    with open("calls", "a") as calls:
        calls.write("x\\n")
    time.sleep(1000)

speval(func, range(9), "evals.db")
"""
        (sandbox.path / "launcher.py").write_text(
            "import sys\nfrom speval import cli\nfrom speval.process import instances\n"
            + "instances.die_with_parent = lambda signum: False\n" * (not has_prctl)
            + "sys.exit(cli.main(sys.argv[1:]))\n"
        )
        run = self.start(sandbox, code, "-n", "2", "script.py", program=["launcher.py"])
        until(lambda: len(sandbox.calls()) == 2)
        run.kill()
        run.wait(LIMIT)
        until(lambda: count_evals(sandbox.db)["in_progress"] == 0)

    FLOODS = """
def func(x):
    if x == 0:
        with open("calls", "a") as calls:
            calls.write(f"{os.getpid()}\\n")
        while True:
            os.write(1, b"y" * 999 + b"\\n")
            os.write(2, b"z" * 999 + b"\\n")
    if x == 1 and current_eval()["attempt"] == 1:
        os.kill(os.getpid(), signal.SIGKILL)

speval(func, range(9), "evals.db", timeout=0.5, max_attempts=2)
"""

    def test_timeouts_and_restarts_go_on_though_nobody_reads_the_output(self, sandbox: Sandbox) -> None:
        run = self.start(sandbox, self.FLOODS, "-n", "2", "script.py")
        until(lambda: is_full(f"/proc/{run.pid}/fd/1"))
        until(lambda: len(sandbox.calls()) == 2)  # the instance that hung was ended, and started again
        until(lambda: load_evals(sandbox.db)[0]["status"] == "failed")
        until(lambda: count_evals(sandbox.db)["completed"] == 8)
        assert run.poll() is None  # it waits for a reader of the last output
        printed = sandbox.end(run, 1)
        assert "killed by SIGKILL: it is started again" in printed
        assert printed.count("has run past 0.5 s in one evaluation and is ended") == 2
        assert all(
            re.fullmatch(r"(\[[12]\] )?(y+|z+)|speval: .*|\[#.*|\[[12]\] .*evaluation.*", line)
            for line in printed.splitlines()
        )
        assert printed.splitlines()[-1].startswith("[####")

    @pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
    def test_an_interrupt_ends_it_though_nobody_reads_the_output(
        self, sandbox: Sandbox, signum: signal.Signals
    ) -> None:
        code = self.FLOODS.replace("timeout=0.5, ", "")
        run = self.start(sandbox, code, "-n", "2", "--logs", "logs", "script.py")
        until(lambda: is_full(f"/proc/{run.pid}/fd/1"))
        run.send_signal(signum)
        assert run.wait(LIMIT) == -signum
        assert next((e["status"], e["losses"]) for e in load_evals(sandbox.db)) == ("pending", 0)
        logged = "".join(path.read_text() for path in (sandbox.path / "logs").iterdir())
        assert ("KeyboardInterrupt" in logged) == (signum == signal.SIGINT)

    def test_an_interrupt_ends_it_on_a_terminal_that_nobody_reads(self, sandbox: Sandbox) -> None:
        (sandbox.path / "script.py").write_text(
            "import os, signal\nfrom speval import *\n" + self.FLOODS.replace("timeout=0.5, ", "")
        )
        ours, theirs = pty.openpty()
        run = subprocess.Popen(
            [*PYTHON, "-m", "speval", "run", "-n", "2", "script.py"],
            cwd=sandbox.path,
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
            text=True,
        )
        sandbox.instances.append(run)
        (pid,) = until(sandbox.calls)
        until(lambda: any(is_full(f"/proc/{pid}/fd/{fd}") for fd in (1, 2)))
        os.close(theirs)
        run.send_signal(signal.SIGTERM)
        assert run.wait(LIMIT) == -signal.SIGTERM
        os.close(ours)

    def test_a_reader_that_comes_late_gets_all_that_was_written(self, sandbox: Sandbox) -> None:
        code = "os.write(1, b'%0999d\\n' * 300 % tuple(range(300)))\n"
        run = self.start(sandbox, code, "-n", "2", "script.py")
        until(lambda: is_full(f"/proc/{run.pid}/fd/1"))
        lines = sandbox.end(run).splitlines()
        for number in 1, 2:
            ours = [int(line[4:]) for line in lines if line.startswith(f"[{number}] ")]
            assert ours == list(range(300))

    def test_the_third_ctrl_c_ends_what_does_not_end(self, sandbox: Sandbox) -> None:
        code = """
def heed(*args):
    with open("calls", "a") as calls:
        calls.write("told\\n")

signal.signal(signal.SIGINT, heed)
heed()
while True:
    time.sleep(1000)
"""
        run = self.start(sandbox, code, "-n", "1", "script.py")
        for number in range(1, 4):
            until(lambda: len(sandbox.calls()) >= number)  # noqa: B023 - it is called at once
            run.send_signal(signal.SIGINT)
        sandbox.end(run, -signal.SIGINT)

    def test_a_script_that_fails_at_once_leaves_no_bar(self, sandbox: Sandbox) -> None:
        (sandbox.path / "script.py").write_text("import nothing_of_that_name\n")
        shown = on_terminal(sandbox, 80, "run", "-n", "2", "script.py")
        assert shown.count("instance 1 ended with exit code 1") == 1
        assert "0/0" not in shown
        assert "##" not in shown

    def test_a_database_that_is_locked_now_and_then_is_shown_as_it_was(self, sandbox: Sandbox) -> None:
        (sandbox.path / "script.py").write_text(
            "import contextlib, sqlite3, time\nfrom speval import *\n"
            "def func(x):\n"
            "    with contextlib.closing(sqlite3.connect('evals.db', isolation_level=None)) as conn:\n"
            "        time.sleep(0.2)\n"
            "        conn.execute('BEGIN EXCLUSIVE')\n"
            "        time.sleep(0.7)  # in which at least one look fails\n"
            "        conn.execute('ROLLBACK')\n"
            "speval(func, range(2), 'evals.db')\n"
        )
        shown = on_terminal(sandbox, 80, "run", "-n", "1", "script.py")
        numbers = re.findall(r"\d+/\d+(?=,)", shown)
        assert numbers == sorted(numbers)
        assert set(numbers) <= {"0/2", "1/2", "2/2"}
        assert numbers[-1] == "2/2"

    def test_its_progress_is_shown_on_a_terminal_under_what_is_printed(self, sandbox: Sandbox) -> None:
        (sandbox.path / "script.py").write_text(
            "import time\nfrom speval import *\n"
            "speval(lambda x: (time.sleep(0.05), print('did', x)), range(20), 'evals.db')\n"
        )
        shown = on_terminal(sandbox, 80, "run", "-n", "2", "script.py")
        lines = [re.split(r"\r+", line.rstrip("\r"))[-1] for line in shown.split("\n")]
        assert sum(bool(re.fullmatch(r"\[[12]\] did \d+", line)) for line in lines) == 20
        assert "] 20/20, 0 workers" in lines[-2]


ABSURD = [
    "9e999",
    "-9e999",
    "1e300",
    "-9223372036854775808",
    "9223372036854775807",
    "5",
    "2.5",
    "NULL",
    "''",
    "x''",
    "x'ff'",
    "x'5b315d'",
    "'nonsense'",
    "'two' || char(10) || 'lines' || char(27) || '[2J'",
    "CAST(x'ff' AS TEXT)",
]
COLUMNS = {
    "evals": "id name status updated result args error attempt losses reset worker started",
    "workers": "id host pid started ended",
}
LOOSE = ["id INTEGER PRIMARY KEY", " INTEGER", " TEXT", " REAL", " NOT NULL"]
COMMANDS = [
    ["status", "evals.db"],
    ["errors", "evals.db"],
    ["errors", "evals.db", "0"],
    ["errors", "evals.db", "3"],
    ["results", "evals.db", "--status", "failed"],
    ["results", "evals.db", "--columns", "name,error,losses,started,updated,host,process"],
    ["status", "evals.db", "--best", "result"],
    ["results", "evals.db", "--format", "csv", "--spreadsheet"],
    *(["results", "evals.db", "--format", how] for how in ("table", "csv", "jsonl")),
    *(["results", "evals.db", "--sort", "{}", "--format", how] for how in ("table", "csv", "jsonl")),
    ["retry", "evals.db"],
    ["retry", "evals.db", "0", "2", "--status", "completed"],
]


@pytest.fixture(scope="module")
def loose(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A database whose columns take anything: one evaluation that failed, one that runs, two others."""
    path = tmp_path_factory.mktemp("loose") / "evals.db"
    speval(lambda x: 1 / x, range(3), path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute("UPDATE evals SET status = 'in_progress' WHERE name = '1'")
        conn.execute("INSERT INTO evals (name, status, updated, args) VALUES ('3', 'pending', 1.5, '3')")
        conn.execute("UPDATE workers SET ended = NULL")
        conn.execute("PRAGMA writable_schema = ON")
        for words in LOOSE[1:]:
            conn.execute(f"UPDATE sqlite_master SET sql = replace(sql, '{words}', '') WHERE type = 'table'")
        conn.execute(f"UPDATE sqlite_master SET sql = replace(sql, 'id PRIMARY KEY', '{LOOSE[0]}')")
    return path


def end_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command here; return what is wrong with how it ends, or ''."""
    code = main(words)
    out, err = capsys.readouterr()
    if code == 2:
        told = re.fullmatch(r"speval: .*(evals\.db|there is no column).*\n", err)
        return "" if told and err[:-1].isprintable() else err
    data = "csv" in words or "jsonl" in words
    return "" if err == "" and (data or out.replace("\n", "").isprintable()) else err or out


@pytest.mark.parametrize("column", [f"{t}.{column}" for t, c in COLUMNS.items() for column in c.split()])
def test_no_value_in_the_database_is_a_traceback_or_writes_on_the_terminal(
    loose: pathlib.Path,
    column: str,
    sandbox: Sandbox,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(sandbox.path)
    table, _, name = column.partition(".")
    for value in ABSURD:
        shutil.copy(loose, sandbox.db)
        with contextlib.closing(sqlite3.connect(sandbox.db, isolation_level=None)) as conn:
            fitting = f"coalesce(CAST({value} AS INTEGER), 0)" if name == "id" else value
            conn.execute(f"UPDATE OR IGNORE {table} SET {name} = {fitting}")
        key = "process" if name in ("id", "reset", "worker", "host", "pid", "ended") else name
        commands = [[word.format(key) for word in words] for words in COMMANDS]
        ends = {" ".join(words): end_of(words, capsys) for words in commands}
        assert {words: end for words, end in ends.items() if end} == {}, value
    assert end_of(["doctor", "evals.db"], capsys) == ""


def test_the_module_and_the_installed_command_are_the_same() -> None:
    path = pathlib.Path(sys.executable).with_name("speval")
    assert path.exists()
    shown = [
        subprocess.run([*start, "--help"], stdout=subprocess.PIPE, timeout=LIMIT, check=True).stdout
        for start in ([str(path)], [sys.executable, "-m", "speval"])
    ]
    assert shown[0] == shown[1]


def test_times_are_said_as_a_person_would() -> None:
    from speval.view.progress import Rate, duration, line

    said = [duration(s) for s in (0, 59.9, 61, 601, 3700, 90_000)]
    assert said == ["0 s", "59 s", "1 min 1 s", "10 min", "1 h 1 min", "1 d 1 h"]
    rate = Rate()
    assert rate.learn(0.0, 0) is None
    assert rate.learn(10.0, 100) == 10.0
    for second in range(11, 100):
        rate.learn(float(second), 100 + second)
    assert rate.learn(100.0, 200) == pytest.approx(1.0, rel=0.1)
    counts = {"pending": 5, "in_progress": 1, "completed": 3, "failed": 1}
    assert line(counts, 2, 0.01, 600.0, 120).endswith("] 4/10, 1 failed, 2 workers, 36/h, 10 min left")
    assert len(line(counts, 2, 0.01, 600.0, 40)) < 40
