"""The tables of a sqlite3 database: today's, those of speval 0.1.1, and how the latter become the former."""

from __future__ import annotations

import sqlite3

from ..errors import SpevalError

__all__ = ["CURRENT", "format_of", "prepare", "show_as_current"]

APPLICATION_ID = 0x73706576  # "spev"
FORMAT = 1
EMPTY, OF_0_1_1, OF_0_2_0, CURRENT = range(4)
COLUMNS_0_1_1 = ["name", "status", "updated", "result", "args"]

CREATE_REPORTS = (
    """CREATE TABLE reports (
        id INTEGER NOT NULL, step INTEGER NOT NULL, value REAL, PRIMARY KEY (id, step)) WITHOUT ROWID""",
    "CREATE INDEX reports_step ON reports (step, value)",
)
# Every transaction opens the database and reads this again: as few tables and indexes as will do.
# `reset` is the attempt at the last reset: no claim up to it can store anything any more. `code` is a
# fingerprint of the function; `fate` how the process died, empty as long as who watches it has not said so.
# `stopped` is the step of the last report, if that was told to stop. Of an adaptive space, the fingerprint
# says what that is after; a reset has one too.
CREATE = (
    """CREATE TABLE evals (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        status TEXT NOT NULL,
        updated REAL NOT NULL,
        result TEXT,
        args TEXT NOT NULL,
        error TEXT,
        attempt INTEGER NOT NULL DEFAULT 0,
        losses INTEGER NOT NULL DEFAULT 0,
        reset INTEGER NOT NULL DEFAULT 0,
        worker INTEGER,
        started REAL,
        stopped INTEGER)""",
    """CREATE TABLE workers (
        id INTEGER PRIMARY KEY, host TEXT NOT NULL, pid INTEGER NOT NULL,
        started REAL NOT NULL, ended REAL, code TEXT, fate TEXT)""",
    """CREATE TABLE spaces (
        fingerprint TEXT NOT NULL, size INTEGER NOT NULL, func TEXT NOT NULL, added REAL NOT NULL)""",
    *CREATE_REPORTS,
    "CREATE INDEX evals_pending ON evals (id) WHERE status = 'pending'",
    "CREATE INDEX evals_in_progress ON evals (worker) WHERE status = 'in_progress'",
    "CREATE INDEX evals_failed ON evals (id) WHERE status = 'failed'",
    "CREATE INDEX evals_by_hand ON evals (id) WHERE attempt = 0 AND status <> 'pending'",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {FORMAT}",
)
UPGRADE_0_1_1 = (
    "ALTER TABLE evals RENAME TO evals_0_1_1",
    *CREATE,
    """INSERT INTO evals (name, status, updated, result, args, attempt)
        SELECT name, CASE status WHEN 'in_progress' THEN 'pending' ELSE status END,
            updated, result, args,
            coalesce(rowid <= (SELECT max(rowid) FROM evals_0_1_1 WHERE status <> 'pending'), 0)
        FROM evals_0_1_1 ORDER BY rowid""",
    "DROP TABLE evals_0_1_1",
)
# What 0.2.0 does not have. Its instances go on beside that.
NEWER = {
    "workers": {"code": "TEXT", "fate": "TEXT"},
    "evals": {"stopped": "INTEGER"},
}
SHOW_EMPTY = (
    """CREATE TEMP VIEW evals AS SELECT NULL AS id, NULL AS name, NULL AS status, NULL AS updated,
        NULL AS result, NULL AS args, NULL AS error, NULL AS attempt, NULL AS losses, NULL AS reset,
        NULL AS worker, NULL AS started, NULL AS stopped WHERE 0""",
    """CREATE TEMP VIEW workers AS SELECT NULL AS id, NULL AS host, NULL AS pid, NULL AS started,
        NULL AS ended, NULL AS code, NULL AS fate WHERE 0""",
    "CREATE TEMP VIEW spaces AS SELECT NULL AS fingerprint, 0 AS size, NULL AS func, 0 AS added WHERE 0",
    "CREATE TEMP VIEW reports AS SELECT 0 AS id, 0 AS step, 0 AS value WHERE 0",
)
SHOW_0_1_1 = (
    """CREATE TEMP VIEW evals AS SELECT rowid AS id, name, status, updated, result, args, NULL AS error,
        0 AS attempt, 0 AS losses, 0 AS reset, NULL AS worker, NULL AS started, NULL AS stopped
        FROM main.evals""",
    *SHOW_EMPTY[1:],
)


def format_of(conn: sqlite3.Connection, path: str) -> int:
    """Return EMPTY, OF_0_1_1, OF_0_2_0 or CURRENT; `SpevalError` for a database of something else."""
    ((application,),) = conn.execute("PRAGMA application_id").fetchall()
    ((version,),) = conn.execute("PRAGMA user_version").fetchall()
    if application == APPLICATION_ID:
        if version == FORMAT:
            return CURRENT if "stopped" in _columns(conn, "evals") else OF_0_2_0
        raise SpevalError(
            f"{path} has format {version}, this speval knows {FORMAT}: use the newer one that made it"
        )
    if application or version:
        raise SpevalError(f"{path} is a database of something else: name another file")
    columns = _columns(conn, "evals")
    if columns == COLUMNS_0_1_1:
        return OF_0_1_1
    if columns or conn.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchall():
        raise SpevalError(f"{path} is a database of something else: name another file")
    return EMPTY


def _columns(conn: sqlite3.Connection, table: str) -> list[str]:
    return [column for _, column, *_ in conn.execute(f"PRAGMA main.table_info({table})").fetchall()]


def _missing(conn: sqlite3.Connection, table: str) -> dict[str, str]:
    columns = _columns(conn, table)
    return {column: kind for column, kind in NEWER[table].items() if column not in columns}


def prepare(conn: sqlite3.Connection, path: str) -> bool:
    """Make the tables, or those of an older version into today's; tell whether there were none."""
    found = format_of(conn, path)
    for statement in {EMPTY: CREATE, OF_0_1_1: UPGRADE_0_1_1, OF_0_2_0: CREATE_REPORTS, CURRENT: ()}[found]:
        conn.execute(statement)
    for table in NEWER if found == OF_0_2_0 else ():
        for column, kind in _missing(conn, table).items():
            conn.execute(f"ALTER TABLE {table} ADD COLUMN {column} {kind}")
    return found == EMPTY


def show_as_current(conn: sqlite3.Connection, path: str) -> None:
    """Let this connection see today's tables, whatever is there: so no reading code knows another."""
    found = format_of(conn, path)
    shown = {EMPTY: SHOW_EMPTY, OF_0_1_1: SHOW_0_1_1, OF_0_2_0: SHOW_EMPTY[-1:], CURRENT: ()}[found]
    for statement in shown:
        conn.execute(statement)
    for table in NEWER if found == OF_0_2_0 else ():
        more = ", ".join(f"NULL AS {column}" for column in _missing(conn, table))
        if more:
            conn.execute(f"CREATE TEMP VIEW {table} AS SELECT *, {more} FROM main.{table}")
