"""The command line: ``speval run``, ``status``, ``results``, ``errors``, ``retry``, ``doctor``.

Exit codes: 0 fine, 1 the answer is bad (something failed, locks do not work), 2 the command was wrong; and
3 from ``speval status --exit-code`` if something is left.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import functools
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from . import __version__, workers
from .database import existing, is_url, shown
from .errors import SpevalError, last_line, visible
from .process.launcher import announced
from .process.output import is_writable
from .reading import STATUSES
from .speval import reset_evals
from .view.progress import Progress, Rate, bar, duration, speed
from .view.table import flat, table
from .workers import how_far

__all__ = ["main", "parser"]

WATCH = 2.0  # seconds between two looks
PATIENCE = 10  # looks at which nobody works and nothing changes, until watching ends
COLORS = {"completed": "32", "failed": "31", "in_progress": "33", "dead": "31", "no": "31", "ok": "32"}
OPTION = re.compile(r"-(?!\d)")
FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")  # what a spreadsheet takes for the start of a formula


def main(argv: list[str] | None = None) -> int:
    """Run a command; return its exit code."""
    try:
        _prepare_output()
        args = _parsed(argv)
        code: int = args.command(args)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head`: there is nobody to tell
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)
        return 1
    except (SpevalError, ValueError, TypeError, OSError, RecursionError) as exc:
        print(f"speval: {_one_line(exc)}", file=sys.stderr)
        return 2
    return code


def _prepare_output() -> None:
    """Let there be somewhere to write to, and no character that cannot be written."""
    for name in "stdout", "stderr":
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - until the end
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")


def _one_line(exc: Exception) -> str:
    if isinstance(exc, OSError) and exc.strerror and exc.filename:
        return visible(f"{os.fsdecode(exc.filename)}: {exc.strerror}")
    return visible(" ".join(str(exc).split()))


@functools.cache
def parser() -> argparse.ArgumentParser:
    """Return what parses a command line; the function of the command is in `command`."""
    speval = argparse.ArgumentParser(
        prog="speval",
        description="Run a script many times at once, and look after the databases of evaluations.",
        epilog="`speval COMMAND --help` explains a command.",
        allow_abbrev=False,
    )
    speval.add_argument("--version", action="version", version=f"speval {__version__}")
    commands = speval.add_subparsers(metavar="COMMAND", required=True)

    def add(command: Any, example: str) -> argparse.ArgumentParser:
        name, text = command.__name__.strip("_"), " ".join(command.__doc__.split())
        sub: argparse.ArgumentParser = commands.add_parser(
            name,
            help=text.partition(". ")[0].lower(),
            description=textwrap.fill(text),
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        sub.set_defaults(command=command)
        return sub

    sub = add(_run, "speval run -n 20 script.py --seed 1")
    sub.add_argument("-n", type=_number, default=-1, help="how many; by default one for each CPU")
    sub.add_argument("--threads", type=_number, metavar="K", help="threads for NumPy and its like in each")
    sub.add_argument(
        "-m", dest="module", action="store_true", help="script is the name of a module, as for python -m"
    )
    sub.add_argument(
        "--logs", metavar="DIR", help="keep there what each instance writes, in a file of its own"
    )
    sub.add_argument("--quiet", action="store_true", help="do not show what they write")
    sub.add_argument("script")
    more = sub.add_argument("args", nargs=argparse.REMAINDER, help="what the script is given")
    more.required = False  # else it is said to be missing where the script is

    sub = add(_status, "speval status evals.db --watch")
    sub.add_argument("db", metavar="DB")
    sub.add_argument("--watch", action="store_true", help="look again and again, until all is finished")
    sub.add_argument("--best", metavar="KEY", help="show the evaluation with the smallest, by a column")
    sub.add_argument("--max", action="store_true", help="the largest is the best")
    sub.add_argument(
        "--exit-code",
        action="store_true",
        help="end with 0 if all is completed, 3 if something is left, 1 if something failed",
    )

    sub = add(_results, "speval results evals.db --sort result --limit 10")
    sub.add_argument("db", metavar="DB")
    sub.add_argument("--status", choices=STATUSES, metavar="S", help=f"only these: {', '.join(STATUSES)}")
    sub.add_argument("--columns", metavar="KEYS", help="only these: args.x or just x, with commas between")
    sub.add_argument("--sort", metavar="KEYS", help="by a column, args.x or just x, or by several")
    sub.add_argument("--reverse", action="store_true", help="the largest first")
    sub.add_argument("--limit", type=_number, metavar="N", help="only the first so many")
    sub.add_argument("--format", choices=("table", "csv", "jsonl"), default="table", help="table by default")
    sub.add_argument(
        "--spreadsheet",
        action="store_true",
        help="CSV for a spreadsheet: text that it takes for a formula is quoted",
    )

    sub = add(_errors, "speval errors evals.db 17")
    sub.add_argument("db", metavar="DB")
    sub.add_argument("name", metavar="NAME", nargs="?", help="of one evaluation, whose whole error is shown")

    sub = add(_retry, "speval retry evals.db")
    sub.add_argument("db", metavar="DB")
    sub.add_argument("names", metavar="NAME", nargs="*", help="only these")
    sub.add_argument(
        "--status", choices=STATUSES[1:], default="failed", metavar="S", help="failed by default"
    )

    sub = add(_doctor, "speval doctor /shared/folder")
    sub.add_argument("path", metavar="PATH", help="a directory or a database, by its file name or URL")
    sub.add_argument(
        "--hold", action="store_true", help="hold a lock there, for `speval doctor` on another host to see"
    )
    return speval


def _number(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return number


def _parsed(argv: list[str] | None) -> argparse.Namespace:
    """Parse; names may also stand behind an option, where argparse leaves them over."""
    args, rest = parser().parse_known_args(argv)
    names = [word for word in rest if word != "--"]
    if names and (args.command is not _retry or any(map(OPTION.match, names))):
        parser().error(f"unrecognized arguments: {' '.join(map(visible, rest))}")
    if names:
        args.names += names
    return args


def _run(args: argparse.Namespace) -> int:
    """Run instances of a script, restart those that are killed, and show how far they are. Ends with 0
    only if all is completed."""
    from .process import instances, jobs
    from .view import survey

    if not (args.module or os.path.isfile(args.script)):
        raise FileNotFoundError(f"there is no script {args.script}")
    command = [sys.executable, *["-m"] * args.module, args.script, *args.args]
    with tempfile.TemporaryDirectory(prefix="speval-run-") as folder:
        line = Progress(lambda name: how_far(existing(name)), lambda: announced(folder))

        def tell(pid: int, how: str) -> None:
            for name in announced(folder):
                jobs.apart(lambda name: workers.tell(existing(name), pid, how), name)

        ended = instances.run(command, args.n, line, folder, args.threads, args.logs, args.quiet, tell)
        good = ended.well and all(map(survey.is_completed, announced(folder)))
    if ended.came and is_writable(sys.stderr):
        print(f"speval: {_interrupted(args, line.counts)}", file=sys.stderr, flush=True)
    for signum in ended.came:
        signal.raise_signal(signum)
    return 0 if good else 1


def _interrupted(args: argparse.Namespace, counts: Mapping[str, int]) -> str:
    """Return what to say of how far it is, and what to do to go on."""
    done, total = counts["completed"] + counts["failed"], sum(counts.values())
    how = f"nothing is lost, {done} of {total} evaluations are done" if total else "nothing was begun"
    number = [] if args.n == -1 else ["-n", str(args.n)]
    threads = [] if args.threads is None else ["--threads", str(args.threads)]
    output = [*([] if args.logs is None else ["--logs", args.logs]), *["--quiet"] * args.quiet]
    program = [*["-m"] * args.module, args.script, *args.args]
    again = shlex.join(["speval", "run", *number, *threads, *output, *map(shown, program)])
    return f"interrupted: {how}; to go on: {again}"


def _status(args: argparse.Namespace) -> int:
    """Show how far a database is: counts, rate, time left, what runs, who works on it, what failed."""
    from .view import survey

    if args.max and args.best is None:
        raise ValueError("--max goes with --best")
    recent, idle = Rate(), survey.Idle()
    while True:
        began = time.monotonic()
        seen = survey.survey(args.db)
        finished = seen.total - seen.left
        rate = recent.learn(time.monotonic(), finished) or survey.rate(args.db, seen)
        key = args.best
        best = survey.best_so_far(args.db) if key is None else survey.best(args.db, key, args.max)
        text = "\n".join(_describe(shown(args.db), seen, rate, best, survey.failures(args.db, 100)))
        if args.watch and sys.stdout.isatty():
            text = f"\x1b[H\x1b[2J{text}"
        print(text, flush=True)
        if not args.watch or not seen.left:
            break
        if idle.learn(seen) > PATIENCE:
            print(f"nobody works on {_evaluations(seen.left)} left: {GO_ON}")
            break
        if not sys.stdout.isatty():
            print()
        time.sleep(max(WATCH, time.monotonic() - began))
    if args.exit_code and seen.left:
        return 3
    return 1 if seen.counts["failed"] or (args.watch and seen.left) else 0


GO_ON = "start the script again, and only what is not done yet is done"


def _evaluations(number: int) -> str:
    return f"{number} evaluation{'s that are' if number != 1 else ' that is'}"


def _describe(db: str, seen: Any, rate: float | None, best: Any, failures: list[Any]) -> Iterator[str]:
    finished = seen.total - seen.left
    room = shutil.get_terminal_size().columns - len(f"{db}  {finished}/{seen.total}") - 3
    yield f"{db} {bar(finished, seen.total, max(1, min(room, 30)))} {finished}/{seen.total}"
    for status, number in seen.counts.items():
        yield _painted(f"{number:>10} {status}", status if number else "")
    if rate:
        yield f"rate {speed(rate)}" + (f", {duration(seen.left / rate)} left" if seen.left else "")
    yield from _best(best)
    if seen.running:
        workers = {worker.id: worker for worker in seen.workers}
        rows = [
            [name, _since(started, seen.at), *_place(workers.get(worker))]
            for name, started, worker in seen.running
        ]
        more = seen.counts["in_progress"] - len(rows)
        yield f"in progress, the oldest first{f', and {more} more' if more > 0 else ''}:"
        yield from table(["evaluation", "for", "host", "process"], rows)
    if seen.workers:
        yield "workers:"
        rows = [[*_place(worker), _life(worker), _when(worker.started)] for worker in seen.workers]
        yield from table(["host", "process", "", "since"], rows)
    if failures:
        yield "failures:"
        yield from _grouped(failures[:10])


def _best(best: tuple[str, dict[str, Any]] | None) -> Iterator[str]:
    if best:
        column, row = best
        keys = ["name", column, *(key for key in row if key.startswith("args") and key != column)]
        yield "best:"
        yield from table(keys, [[row[key] for key in keys]])


def _place(worker: Any) -> list[Any]:
    return [worker.host, worker.pid] if worker else ["", ""]


def _life(worker: Any) -> str:
    return "alive" if worker.alive else "dead"


def _when(at: float | None) -> str:
    return "" if at is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def _since(started: float | None, at: float) -> str:
    return "" if started is None else duration(max(at - started, 0))


def _grouped(failures: list[Any]) -> Iterator[str]:
    rows = [
        [number, line, ", ".join(names) + ", ..." * (number > len(names))] for line, number, names in failures
    ]
    return table(["times", "error", "evaluations"], rows)


def _results(args: argparse.Namespace) -> int:
    """Print the evaluations. One column for each argument and each key of a dict result, then duration
    (seconds). In CSV, or if named: attempt, losses, stopped, started, updated, host, process and error."""
    from .view import survey

    def rows() -> Iterator[dict[str, Any]]:
        return survey.results(args.db, args.status)

    if args.spreadsheet and args.format != "csv":
        raise ValueError("--spreadsheet is for --format csv")
    if args.reverse and not args.sort:
        raise ValueError("--reverse goes with --sort")
    if args.sort is not None or args.columns is not None:
        keys = survey.columns(rows())
    else:
        keys = survey.columns(itertools.islice(rows(), args.limit)) if args.format != "jsonl" else []
    order = [] if args.sort is None else survey.named(args.sort, keys)
    some = itertools.islice(survey.in_order(rows(), order, args.reverse), args.limit)
    if args.columns is not None:
        keys = survey.named(args.columns, keys)
    elif args.format == "table":
        keys = [key for key in keys if key not in survey.MORE]
    {"table": _print_table, "csv": _print_csv, "jsonl": _print_jsonl}[args.format](keys, some, args)
    if args.format == "table":
        for line in _best(survey.best_so_far(args.db)):
            print(line)
    return 0


def _print_table(keys: list[str], rows: Iterable[dict[str, Any]], args: argparse.Namespace) -> None:
    for line in table(keys, ([_readable(key, row.get(key)) for key in keys] for row in rows)):
        print(line)


def _readable(key: str, value: Any) -> Any:
    """Return a value as a person reads it: a time as a date, of a traceback the last line."""
    if key in ("started", "updated"):
        return _when(value)
    return last_line(str(value)) if key == "error" and value is not None else value


def _print_jsonl(keys: list[str], rows: Iterable[dict[str, Any]], args: argparse.Namespace) -> None:
    for row in rows:
        print(json.dumps({key: row.get(key) for key in keys} if args.columns is not None else row))


def _print_csv(keys: list[str], rows: Iterable[dict[str, Any]], args: argparse.Namespace) -> None:
    tame = _tame if args.spreadsheet else str
    if args.spreadsheet:
        sys.stdout.write("\ufeff")  # by which it knows that this is UTF-8
    writer = csv.writer(sys.stdout, quoting=csv.QUOTE_ALL if args.spreadsheet else csv.QUOTE_MINIMAL)
    writer.writerow([tame(key) for key in keys])
    for row in rows:
        values = [row.get(key) for key in keys]
        writer.writerow([tame(text) if isinstance(text, str) else text for text in map(flat, values)])


def _tame(text: str) -> str:
    """Put an apostrophe before text that a spreadsheet would take for a formula."""
    return f"'{text}" if text.startswith(FORMULA) else text


def _errors(args: argparse.Namespace) -> int:
    """Print why evaluations failed. Grouped by the last line of the traceback; or the whole of one."""
    from .view import survey

    if args.name is not None:
        status, error = survey.error_of(args.db, args.name)
        if status != "failed":
            print(visible(f"evaluation {args.name} is {status}"))
        if error:
            print(visible(error, kept="\t\n").rstrip("\n"))
        return 1 if status == "failed" else 0
    failures = survey.failures(args.db)
    for line in _grouped(failures) if failures else ["nothing has failed"]:
        print(line)
    return 1 if failures else 0


def _retry(args: argparse.Namespace) -> int:
    """Make evaluations pending again. Those that failed, or that have another status, or some of them."""
    from .view import survey

    before = {name: survey.error_of(args.db, name)[0] for name in args.names}
    number = reset_evals(args.db, args.status, args.names or None)
    print(f"{number} evaluation{'s are' if number != 1 else ' is'} pending again")
    for status in STATUSES:
        names = [visible(name) for name, its in before.items() if its == status]
        if names and status != args.status:
            print(_left_alone(names, status))
    return 0


def _left_alone(names: list[str], status: str) -> str:
    what, are, them = ("evaluations", "are", "them") if len(names) > 1 else ("evaluation", "is", "it")
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    how = "" if status == "pending" else f": --status {status} would reset {them}"
    return f"{what} {', '.join(names[:10])}{more} {are} {status}{how}"


def _doctor(args: argparse.Namespace) -> int:
    """Try whether locks work in a directory. Two processes there, or hosts that mount it; and look at the
    kind of mount, SQLite, the space left, and a database. Or try a PostgreSQL server."""
    from .view import doctor

    if args.hold and is_url(args.path):
        raise ValueError("--hold is for a directory")
    if args.hold:
        print(f"holding a lock until Ctrl-C: try `speval doctor {args.path}` on another host", flush=True)
        doctor.hold(args.path)
    good = True
    for what, well, found in doctor.examine(args.path):
        good = good and well
        print(
            f"{_painted('ok' if well else 'no', 'ok' if well else 'no')} {what:16} {visible(found)}",
            flush=True,
        )
    return 0 if good else 1


def _painted(text: str, key: str) -> str:
    color = COLORS.get(key)
    if not color or not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\x1b[{color}m{text}\x1b[0m"
