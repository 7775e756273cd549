"""Whatever bytes stand in the file, those who read it and those who work on it do so or raise SpevalError."""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import random
import shutil
import signal
import sqlite3
import struct
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from speval import SpevalError, count_evals, iter_evals, load_evals, reading, reset_evals, speval
from speval.database import database, locks, sqlite
from speval.errors import NotWritable
from speval.process.machine import Mount
from speval.view import survey

PAGE = 4096
SIZE = 12  # evaluations, with arguments and results that are longer than a page here and there
LIMIT = 20  # seconds for all that is done with one damaged file, some sixty times what it takes
DEAD = 12345  # id of a worker whose lock nobody has
LIVING = 54321
STORED = "SELECT id, status, attempt, result, error FROM evals WHERE status IN ('completed', 'failed')"


def func(args: Any) -> Any:
    if args == 3:
        raise ValueError(args)
    return args


SPACE = [index if index % 4 else "x" * 700 * index for index in range(SIZE)]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A database with evaluations of every status, some in the hands of a worker that is dead."""
    path = tmp_path_factory.mktemp("sound") / "evals.db"
    speval(func, SPACE, path)
    reset_evals(path, None, ["4", "5", "8", "9"])
    change(
        "DELETE FROM workers",
        f"INSERT INTO workers VALUES ({DEAD}, 'host', 1, 1.5, NULL, NULL, NULL)",
        f"UPDATE evals SET status = 'in_progress', worker = {DEAD}, attempt = 2 WHERE name IN ('8', '9')",
        f"UPDATE evals SET worker = {DEAD}, started = 1.5 WHERE worker IS NOT NULL",
        "UPDATE evals SET updated = 1.5, error = CASE status WHEN 'failed' THEN 'ValueError: 3' END",
        "UPDATE spaces SET added = 1.5",
        "VACUUM",  # so that the same bytes are damaged each time
    )(path)
    return path


@pytest.fixture
def damaged(sound: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return copied(sound, tmp_path)


def copied(sound: pathlib.Path, place: pathlib.Path) -> pathlib.Path:
    """Copy a database with its locks: with a new file of locks, nobody is judged dead for seconds."""
    for suffix in ("", "-lock"):
        shutil.copy(f"{sound}{suffix}", place / f"evals.db{suffix}")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(place / "evals.db-journal")
    return place / "evals.db"


def change(*statements: str) -> Callable[[pathlib.Path], None]:
    """Return what changes a database by SQL, without the checks that would keep it as speval made it."""

    def damage(path: pathlib.Path) -> None:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as conn:
            conn.text_factory = bytes
            for statement in ("PRAGMA ignore_check_constraints = ON", *statements):
                conn.execute(statement)

    return damage


READ = {
    "count": count_evals,
    "load": load_evals,
    "load failed": lambda path: load_evals(path, "failed"),
    "iterate": lambda path: sum(1 for _ in iter_evals(path)),
}
WORK = {
    "work": lambda path: speval(func, SPACE, path, max_failures=None),
    "reset": lambda path: reset_evals(path, None),
    "work after reset": lambda path: speval(func, SPACE, path, timeout=0.3, wait=True),
    "extend": lambda path: speval(func, [*SPACE, 1, 2], path, wait=False),
}


def trouble(path: pathlib.Path, calls: dict[str, Callable[[pathlib.Path], Any]]) -> str:
    """Make the calls in a child that is killed after a time; return what ended as it must not, or ''."""
    readable, writable = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(LIMIT)
        try:
            for name, call in calls.items():
                os.write(writable, name.encode())
                os.write(writable, _trouble_of(functools.partial(call, path)).encode() + b"\0")
        finally:
            os._exit(0)
    os.close(writable)
    with open(readable, errors="replace") as pipe:
        *done, last = pipe.read().split("\0")
    status = os.waitpid(pid, 0)[1]
    bad = [call for call in done if ": " in call]
    how = "hangs" if status == signal.SIGALRM else f"ends with status {status}"
    return "; ".join([*bad, f"{last}: {how}"] if status else bad)


def _trouble_of(call: Callable[[], Any]) -> str:
    """Return the exception that is not ours, or ''."""
    try:
        call()
    except (SpevalError, FileNotFoundError):
        pass
    except BaseException as exc:  # noqa: BLE001 - that is the question
        where = traceback.extract_tb(exc.__traceback__)[-1]
        return f": {type(exc).__name__}: {exc} in {where.name}"
    return ""


def flip(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice([1, 3, 30])):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def flip_first_page(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice([1, 1, 4])):
        data[chance.randrange(PAGE)] = chance.randrange(256)


def flip_schema(data: bytearray, chance: random.Random) -> None:
    """Make a name or a word of the schema into something else, maybe not even text."""
    words = [b"evals", b"workers", b"evals_pending", b"id", b"INTEGER", b"attempt", b"NOT NULL", b"status"]
    at = data.find(chance.choice(words), chance.randrange(PAGE))
    if at >= 0:
        data[at + chance.randrange(2)] = chance.choice(b"\xff\xc3\0z ('")


def cut(data: bytearray, chance: random.Random) -> None:
    del data[chance.choice([0, 1, 15, 16, 99, 100, PAGE]) + chance.randrange(len(data) - PAGE) :]


def overwrite_page(data: bytearray, chance: random.Random) -> None:
    at = PAGE * chance.randrange(len(data) // PAGE)
    data[at : at + PAGE] = chance.choice(
        [bytes(PAGE), b"\xff" * PAGE, chance.getrandbits(8 * PAGE).to_bytes(PAGE, "big")]
    )


def exchange_pages(data: bytearray, chance: random.Random) -> None:
    """Put a page where another belongs, as a file system may after a crash."""
    one, other = (PAGE * chance.randrange(1, len(data) // PAGE) for _ in range(2))
    data[one : one + PAGE] = data[other : other + PAGE]


def flip_page_headers(data: bytearray, chance: random.Random) -> None:
    at = PAGE * chance.randrange(1, len(data) // PAGE)
    data[at + chance.randrange(12)] = chance.randrange(256)


def disorder_rows(data: bytearray, chance: random.Random) -> None:
    """Exchange two rows of a page, so that ids do not grow."""
    leaves = [at for at in range(PAGE, len(data), PAGE) if data[at] == 0x0D and data[at + 4] > 1]
    at = chance.choice(leaves)
    cells = struct.unpack_from(f">{data[at + 4]}H", data, at + 8)
    struct.pack_into(f">{len(cells)}H", data, at + 8, *chance.sample(cells, len(cells)))


DAMAGES = [
    flip,
    flip_first_page,
    flip_schema,
    flip_page_headers,
    cut,
    overwrite_page,
    exchange_pages,
    disorder_rows,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_random_damage_is_survived_or_told(damage: Any, sound: pathlib.Path, tmp_path: pathlib.Path) -> None:
    whole = sound.read_bytes()
    troubles = {}
    for seed in range(50):
        data = bytearray(whole)
        damage(data, random.Random(f"{damage.__name__} {seed}"))
        path = copied(sound, tmp_path)
        path.write_bytes(data)
        troubles[seed] = trouble(path, {**READ, **WORK})
    assert {seed: said for seed, said in troubles.items() if said} == {}


def test_rows_out_of_order_end_even_if_few_are_read_at_a_time(
    sound: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sound.read_bytes()
    troubles = {}
    for seed in range(15):
        monkeypatch.setattr(reading, "CHUNK", random.Random(seed).choice([1, 3, 2000]))
        monkeypatch.setattr(reading, "CHUNK_SIZE", random.Random(seed).choice([1, 3000]))
        data = bytearray(whole)
        disorder_rows(data, random.Random(seed))
        (tmp_path / "evals.db").write_bytes(data)
        troubles[seed] = trouble(tmp_path / "evals.db", READ)
    assert {seed: said for seed, said in troubles.items() if said} == {}


def test_failures_and_latest_results_out_of_order_end_too(
    damaged: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change("DROP INDEX evals_failed", "UPDATE evals SET status = 'failed'", "VACUUM")(damaged)
    whole = damaged.read_bytes()
    live = survey.Working(1, "host", 1, 1.5, alive=True)
    seen = survey.survey(damaged)._replace(workers=[live])
    calls = {
        "errors": lambda path: sum(1 for _ in survey.errors(path)),
        "rate": lambda path: survey.rate(path, seen),
    }
    troubles = {}
    for seed in range(15):
        monkeypatch.setattr(survey, "ROOM", random.Random(seed).choice([1, 3]))
        data = bytearray(whole)
        disorder_rows(data, random.Random(seed))
        damaged.write_bytes(data)
        troubles[seed] = trouble(damaged, calls)
    assert {seed: said for seed, said in troubles.items() if said} == {}


def test_rows_out_of_order_end_in_a_database_of_speval_0_1_1_too(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "old.db"
    change(OLD, *(f"INSERT INTO evals VALUES ('{n}', 'completed', 1.5, 'null', '{n}')" for n in range(50)))(
        path
    )
    whole = path.read_bytes()
    calls = {**READ, "load pending": lambda path: load_evals(path, "pending")}
    for seed in range(15):
        data = bytearray(whole)
        disorder_rows(data, random.Random(seed))
        path.write_bytes(data)
        assert trouble(path, calls) == ""


PENDING = "UPDATE evals SET status = 'pending', result = NULL, {} WHERE id % 2"
HELD = "UPDATE evals SET status = 'in_progress', worker = {} WHERE id % 2"
LIVE = "INSERT INTO workers VALUES ({}, 'host', 1, 1.0, NULL, NULL, NULL)"
NO_TEXT = "CAST(x'ff' AS TEXT)"
DEEP = "'" + "[" * 100_000 + "'"

VALUES = {
    **{
        f"{column} is {value[:20]}": PENDING.format(f"{column} = {value}")
        for column, values in {
            "attempt": ["'x'", "x'ff'", "1.5", "9e999", "-5", "9223372036854775806", "9223372036854775807"],
            "reset": ["'x'", "x'ff'", "1000"],
            "losses": ["'x'", "x'ff'", "-5", "9223372036854775807"],
            "args": ["5", "2.5", "''", "'{'", "x'ff'", "x'31'", NO_TEXT, DEEP, "'1' || char(0)", "'[1]x'"],
            "name": ["CAST('b' || id AS BLOB)", "id || CAST(x'ff' AS TEXT)", "char(0) || id"],
            "updated": ["'x'", "x'ff'", "9e999"],
            "error": ["5", "x'ff'", NO_TEXT],
        }.items()
        for value in values
    },
    **{
        f"status is {value}": f"UPDATE evals SET status = {value}"
        for value in ["7", "'done'", "x'ff'", NO_TEXT]
    },
    **{
        f"result is {value[:20]}": f"UPDATE evals SET status = 'completed', result = {value}"
        for value in ["5", "''", "'{'", "x'ff'", "NULL", NO_TEXT, DEEP]
    },
    **{f"held by {value}": HELD.format(value) for value in ["'abc'", "x'ff'", "NULL", "-1", "2.5", NO_TEXT]},
    "func is no text": f"UPDATE spaces SET func = {NO_TEXT}",
    "func is a number": "UPDATE spaces SET func = 5",
    "size is a text": "UPDATE spaces SET size = 'x'",
    "end is a text": "UPDATE workers SET ended = 'x'",
    "host is no text": f"UPDATE workers SET host = {NO_TEXT}, pid = 'x'",
}


@pytest.mark.parametrize("id", [-(2**63), -(2**63) + 1, -1, 0, 2**63 - 1])
def test_an_evaluation_with_an_id_that_speval_never_gives_is_survived_or_told(
    id: int, damaged: pathlib.Path
) -> None:
    change(f"UPDATE evals SET id = {id} WHERE id = 5")(damaged)
    assert trouble(damaged, {**READ, **WORK}) == ""


@pytest.mark.parametrize("kind", VALUES)
def test_a_value_that_speval_never_writes_is_survived_or_told(kind: str, damaged: pathlib.Path) -> None:
    change(VALUES[kind])(damaged)
    assert trouble(damaged, {**READ, **WORK}) == ""


@pytest.mark.parametrize("id", [-(2**63), -5, -2, -1, 0, 2**48, 2**60 - 1, 2**63 - 2, 2**63 - 1])
def test_a_worker_with_an_id_that_none_can_have_is_waited_for_by_nobody(
    id: int, damaged: pathlib.Path
) -> None:
    change(LIVE.format(id), HELD.format(id))(damaged)
    assert trouble(damaged, {**READ, **WORK}) == ""


def schema(old: str, new: str, name: str = "evals") -> Callable[[pathlib.Path], None]:
    update = f"UPDATE sqlite_master SET sql = replace(sql, '{old}', '{new}') WHERE name = '{name}'"
    return change("PRAGMA writable_schema = ON", update)


def stale(index: str, statement: str) -> Callable[[pathlib.Path], None]:
    """Change the evaluations behind the back of an index."""

    def damage(path: pathlib.Path) -> None:
        open_schema = "PRAGMA writable_schema = ON"
        find = "SELECT type, name, tbl_name, rootpage, sql FROM sqlite_master WHERE name = ?"
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as conn:
            row = conn.execute(find, [index]).fetchone()
            conn.execute(open_schema)
            conn.execute("DELETE FROM sqlite_master WHERE name = ?", [index])
        change(statement)(path)
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as conn:
            conn.execute(open_schema)
            conn.execute("INSERT INTO sqlite_master VALUES (?, ?, ?, ?, ?)", row)

    return damage


def misleading(index: str, expression: str) -> Callable[[pathlib.Path], None]:
    """Fill an index with other values than those of its column."""
    made = f"CREATE INDEX {index} ON evals ({expression})"
    return change(
        "PRAGMA writable_schema = ON",
        f"CREATE TEMP TABLE kept AS SELECT sql FROM main.sqlite_master WHERE name = '{index}'",
        f"DROP INDEX {index}",
        f"{made} WHERE status = '{index.partition('_')[2]}'",
        f"UPDATE main.sqlite_master SET sql = (SELECT sql FROM kept) WHERE name = '{index}'",
    )


IGNORE = "CREATE TRIGGER t BEFORE UPDATE ON evals {} BEGIN SELECT RAISE(IGNORE); END"
MASTER = "UPDATE sqlite_master SET {} = CAST(x'ff' AS TEXT) WHERE name = 'evals'"
SCHEMAS = {
    "id is a text": schema("id INTEGER PRIMARY KEY", "id TEXT UNIQUE"),
    "id is a text without rows in order": schema("id INTEGER", "id TEXT"),
    "arguments are numbers": change(
        "PRAGMA writable_schema = ON",
        "UPDATE sqlite_master SET sql = replace(sql, 'args TEXT', 'args')",
        "PRAGMA writable_schema = RESET",
        "UPDATE evals SET args = 5",
    ),
    "id has another name": schema("id INTEGER", "ix INTEGER"),
    "columns may be null": change(
        "PRAGMA writable_schema = ON",
        "UPDATE sqlite_master SET sql = replace(sql, 'NOT NULL', '')",
        "PRAGMA writable_schema = RESET",
        "UPDATE evals SET name = NULL, updated = NULL, args = NULL, attempt = NULL, losses = NULL",
    ),
    "a name is no text": change("PRAGMA writable_schema = ON", MASTER.format("name")),
    "a table's name is no text": change("PRAGMA writable_schema = ON", MASTER.format("tbl_name")),
    "a statement is no text": change("PRAGMA writable_schema = ON", MASTER.format("sql")),
    "tables begin at the schema": change(
        "PRAGMA writable_schema = ON", "UPDATE sqlite_master SET rootpage = 1"
    ),
    "tables begin nowhere": change(
        "PRAGMA writable_schema = ON", "UPDATE sqlite_master SET rootpage = 99999"
    ),
    "tables begin at one page": change(
        "PRAGMA writable_schema = ON", "UPDATE sqlite_master SET rootpage = 2"
    ),
    "workers are gone": change("DROP TABLE workers"),
    "spaces are gone": change("DROP TABLE spaces"),
    "an index is gone": change("DROP INDEX evals_pending"),
    "a view": change("ALTER TABLE evals RENAME TO others", "CREATE VIEW evals AS SELECT * FROM others"),
    "nothing can be changed": change(IGNORE.format("")),
    "nothing can be completed": change(IGNORE.format("WHEN new.status = 'completed'")),
    "nothing can be reclaimed": change(IGNORE.format("WHEN new.losses > 0")),
    "a change fails": change(IGNORE.format("").replace("IGNORE", "FAIL, 'no'")),
    "a trigger finishes": change(
        "CREATE TRIGGER t AFTER UPDATE ON evals WHEN new.status = 'in_progress'"
        " BEGIN UPDATE evals SET status = 'failed' WHERE id = new.id; END"
    ),
    "pending is missing": stale(
        "evals_pending", "UPDATE evals SET status = 'pending', attempt = 0, result = NULL"
    ),
    "pending is stale": stale("evals_pending", "UPDATE evals SET status = 'completed', result = '1'"),
    "pending dangles": stale("evals_pending", "DELETE FROM evals WHERE status = 'pending'"),
    "pending lacks rows": stale("evals_pending", "UPDATE evals SET status = 'pending'"),
    "in_progress is stale": stale("evals_in_progress", "UPDATE evals SET status = 'completed', result = '1'"),
    "in_progress dangles": stale("evals_in_progress", "DELETE FROM evals WHERE status = 'in_progress'"),
    "in_progress lacks rows": stale(
        "evals_in_progress", f"UPDATE evals SET status = 'in_progress', worker = {DEAD}"
    ),
    "pending is there but not found": misleading("evals_pending", "nullif(id, id)"),
    "in_progress is held by another": misleading("evals_in_progress", "worker + 1"),
    "in_progress is held by no worker": misleading("evals_in_progress", "nullif(worker, worker)"),
    "failed is stale": stale("evals_failed", "UPDATE evals SET status = 'completed', result = '1'"),
    "failed dangles": stale("evals_failed", "DELETE FROM evals WHERE status = 'failed'"),
}


@pytest.mark.parametrize("kind", SCHEMAS)
def test_a_schema_that_speval_never_makes_is_survived_or_told(kind: str, damaged: pathlib.Path) -> None:
    SCHEMAS[kind](damaged)
    assert trouble(damaged, {**READ, **WORK}) == ""


@pytest.mark.parametrize("now", ["status = 'completed', result = '1'", "status = 'failed', error = ''"])
def test_nothing_is_waited_for_that_only_an_index_says_a_living_worker_holds(
    now: str, damaged: pathlib.Path
) -> None:
    living = locks.Locks.of(str(damaged))
    living.add(LIVING)
    change(LIVE.format(LIVING), f"UPDATE evals SET worker = {LIVING} WHERE status = 'in_progress'")(damaged)
    stale("evals_in_progress", f"UPDATE evals SET {now} WHERE status = 'in_progress'")(damaged)
    with contextlib.closing(sqlite3.connect(damaged)) as conn:
        before = conn.execute(STORED).fetchall()
    assert trouble(damaged, {"work": WORK["work"]}) == ""
    with contextlib.closing(sqlite3.connect(damaged)) as conn:
        assert set(before) <= set(conn.execute(STORED))
    living.discard(LIVING)


def test_a_dead_worker_that_cannot_be_marked_as_ended_is_told(damaged: pathlib.Path) -> None:
    rows = [LIVE.format(DEAD + 1), LIVE.format(DEAD + 2)]
    change(*rows)(damaged)
    data = bytearray(damaged.read_bytes())
    with contextlib.closing(sqlite3.connect(damaged)) as conn:
        ((page,),) = conn.execute("SELECT rootpage FROM sqlite_master WHERE name = 'workers'").fetchall()
    first = PAGE * (page - 1) + 8  # of the places of the rows, in the order of ids
    places = struct.unpack_from(">3H", data, first)
    struct.pack_into(">3H", data, first, *places[::-1])
    damaged.write_bytes(data)
    assert trouble(damaged, WORK) == ""


@pytest.mark.parametrize("suffix", ["-journal", "-lock"])
def test_any_bytes_in_the_files_beside_the_database_are_survived_or_told(
    suffix: str, sound: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    magic = bytes.fromhex("d9d505f920a163d7") + b"\0\0\0\1" + b"\xff" * 4 + b"\0\0\0\x08\0\0\2\0\0\0\x10\0"
    troubles = []
    for seed in range(12):
        chance = random.Random(f"{suffix} {seed}")
        path = copied(sound, tmp_path)
        noise = chance.getrandbits(8 * 5000).to_bytes(5000, "big")
        beside = {"-journal": magic + noise, "-lock": b"9" * 300 if seed % 2 else noise}[suffix]
        path.with_name("evals.db" + suffix).write_bytes(beside)
        troubles.append(trouble(path, {**READ, **WORK}))
    assert set(troubles) == {""}


def refuses(path: pathlib.Path, message: str) -> Iterator[str]:
    """Yield those who do not refuse the database with a message, or who change it or its directory."""
    for name, call in {**READ, **WORK}.items():
        before = {entry: entry.is_file() and entry.read_bytes() for entry in path.parent.iterdir()}
        try:
            call(path)
        except SpevalError as exc:
            if message not in str(exc) or str(path) not in str(exc):
                yield f"{name} says {exc}"
        else:
            yield f"{name} takes it"
        if before != {entry: entry.is_file() and entry.read_bytes() for entry in path.parent.iterdir()}:
            yield f"{name} has left traces"


def of_others(*statements: str) -> Callable[[pathlib.Path], None]:
    """Return what makes a database from nothing."""

    def make(path: pathlib.Path) -> None:
        path.unlink(missing_ok=True)
        change(*statements)(path)

    return make


def text_file(path: pathlib.Path) -> None:
    path.write_text("name,status\n" * 1000)


def directory(path: pathlib.Path) -> None:
    path.unlink()
    path.mkdir()


TABLE = "CREATE TABLE mine (a)"
OLD = "CREATE TABLE evals (name, status, updated, result, args)"
ELSE, NO_DATABASE = "is a database of something else", "is not a database"
FOREIGN = {
    "a text file": (text_file, NO_DATABASE),
    "a short text file": (lambda path: path.write_text("x\n"), NO_DATABASE),
    "a line of the format": (lambda path: path.write_bytes(b"SQLite format 3\0"), NO_DATABASE),
    "a directory": (directory, "is a directory"),
    "another database": (of_others(TABLE), ELSE),
    "another database with WAL": (of_others("PRAGMA journal_mode = WAL", TABLE), ELSE),
    "another table called evals": (of_others("CREATE TABLE evals (id, name, status, args)"), ELSE),
    "our table with a column more": (of_others(OLD.replace("args", "args, mine")), ELSE),
    "a view called evals": (of_others(TABLE, "CREATE VIEW evals AS SELECT a FROM mine"), ELSE),
    "another application": (of_others("PRAGMA application_id = 5", TABLE), ELSE),
    "another application without tables": (
        of_others("PRAGMA application_id = 5", "PRAGMA user_version = 1"),
        ELSE,
    ),
    "another application with a like table": (of_others(OLD, "PRAGMA application_id = 5"), ELSE),
    "another version of a like table": (of_others(OLD, "PRAGMA user_version = 3"), ELSE),
    "a newer format": (change("PRAGMA user_version = 2"), "use the newer one"),
    "a format before the first": (change("PRAGMA user_version = -1"), "format -1"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_of_something_else_is_refused_and_stays_as_it_is(
    kind: str, sound: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    make, message = FOREIGN[kind]
    shutil.copy(sound, tmp_path / "evals.db")
    make(tmp_path / "evals.db")
    assert list(refuses(tmp_path / "evals.db", message)) == []


def test_an_empty_file_is_a_database_without_evaluations(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "evals.db"
    path.touch()
    assert load_evals(path) == []
    assert sum(count_evals(path).values()) == 0
    assert path.read_bytes() == b""
    assert speval(abs, [-1], path)["completed"] == 1


def test_one_result_that_cannot_be_read_is_named(damaged: pathlib.Path) -> None:
    change("UPDATE evals SET result = '{' WHERE name = '2'")(damaged)
    evaluations = iter_evals(damaged)
    assert [next(evaluations)["name"] for _ in range(2)] == ["0", "1"]
    with pytest.raises(SpevalError, match=r"the result of evaluation '2' of .* is not JSON"):
        next(evaluations)


def test_one_argument_that_cannot_be_read_fails_that_evaluation_only(damaged: pathlib.Path) -> None:
    change("UPDATE evals SET args = '{' WHERE name = '5'")(damaged)
    counts = speval(func, SPACE[:5], damaged)
    assert (counts["failed"], counts["completed"]) == (2, SIZE - 2)


def test_what_looks_damaged_on_a_network_mount_is_looked_at_again(
    damaged: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "mount_of", lambda path: Mount("nfs", []))
    damaged.write_bytes(damaged.read_bytes()[:PAGE] + b"\xff" * (damaged.stat().st_size - PAGE))
    db = database(damaged)
    for _ in range(sqlite.DOUBTS):
        with pytest.raises(NotWritable, match="looks damaged"), db.read() as conn:
            conn.execute(reading.COUNT).fetchall()
    with pytest.raises(SpevalError, match="is damaged"), db.read() as conn:
        conn.execute(reading.COUNT).fetchall()
