"""Evaluate a function over a list of arguments, in parallel, with results kept in one sqlite3 file.

The map: each module imports only from those below it.

    cli                   the command line: parses, calls one function, prints
    view.doctor           do locks work in a directory?
    view.survey           how far a database is, who works on it, what failed and why
    view.table            rows as a table that fits the terminal
    process.instances     n instances of a script: started, watched, restarted
    speval                THE JOB: what may happen to an evaluation, the worker, the public functions
    search                evaluation spaces: grids, at random, evenly spread, or suggested one by one
    domains               where arguments may be: ranges and choices
    stopping              rules by which evaluations that are not promising are stopped
    view.progress         how far a sweep is, in one line
    process.jobs          n local processes that all do the same
    function              what is evaluated: its name, its code, and whether others evaluate another
    process.output        what a process writes: shown, kept, and its last words
    process.launcher      what an instance tells `speval run`, which has started it
    running               what runs now: what functions may ask for, and report to
    reports               what evaluations report while they run: stored, and compared
    workers               who works on a database, and who is lost: whose claims the job reclaims then
    history               the evaluations so far, kept up to date
    reading               evaluations as dicts, or counted
    pace                  how many evaluations a worker claims at once
    arguments             what speval() is given, checked
    space                 an evaluation space as text
    values                what a function takes, returns or raises, as text
    database              where evaluations are kept: the choice by a name
    database.postgres     evaluations in tables of a PostgreSQL server
    database.link         one connection to a server, on which statements are sent in one go
    database.dialect      statements as PostgreSQL takes them
    database.sqlite       evaluations in one sqlite3 file
    database.tables       its tables, and those of older versions
    database.locks        its locks: the queue of transactions, and who is alive
    database.interface    what a database can do
    process.signals       signals: held, and let through, as exceptions by which a worker leaves
    process.forks         what no fork may happen in
    process.resend        signals that Python would ignore where they came, sent again
    process.background    threads that do something later
    process.threads       how many threads libraries may use in one of several processes
    process.machine       the machine, its CPUs and mounts, and what it knows of this process
    errors                what is raised
"""

from .errors import SpaceMismatch, SpevalError
from .reading import count_evals, iter_evals, load_evals
from .running import current_eval, report
from .speval import reset_evals, speval

__all__ = [
    "SpaceMismatch",
    "SpevalError",
    "count_evals",
    "current_eval",
    "iter_evals",
    "load_evals",
    "report",
    "reset_evals",
    "speval",
]
__version__ = "0.2.0"
