"""What `func` and others may do to files, descriptors, threads and processes without any harm."""

import contextlib
import fcntl
import os
import pathlib
import shutil
import sqlite3
import struct

import pytest
from conftest import Sandbox, until
from no_locks import NO_LOCKS, needs_seccomp

from speval import load_evals, reset_evals
from speval.database import locks
from speval.process.machine import is_alive, mount_of

HOLDS = """
def func(x):
    {}
    note(x)
    wait_for("go")
    return x

speval(func, [0], "evals.db")
"""
LOOKS = """
class func:  # which has no code to be compared with that of the other
    def __new__(cls, x):
        note("second")

print(speval(func, [0], "evals.db", wait=False)["in_progress"])
"""


@pytest.mark.parametrize(
    "deed",
    [
        "[open(name).close() for name in os.listdir()]",
        "os.closerange(3, 100)",
        "os.chdir('/')",
        "os.fork() or os._exit(0)",
        "os.fork() or os.closerange(3, 100) or os._exit(0)",
    ],
)
def test_a_claim_survives_what_func_does(sandbox: Sandbox, deed: str) -> None:
    home = "home = os.getcwd()\n"
    holds = HOLDS.format(deed + "; os.chdir(home)").replace("wait_for", "os.chdir(home); wait_for")
    first = sandbox.start(home + holds)
    until(sandbox.calls)
    assert sandbox.run(LOOKS) == "1\n"
    sandbox.touch("go")
    sandbox.end(first)
    assert [(row["result"], row["attempt"], row["losses"]) for row in load_evals(sandbox.db)] == [(0, 1, 0)]


@pytest.mark.parametrize("names", [["evals.db", "evals.db"], ["one.db", "two.db"]])
def test_threads_of_one_process_are_workers_like_any_other(sandbox: Sandbox, names: list[str]) -> None:
    script = f"""
def work(name):
    counts = speval(lambda x: note(name, x), range(50), name)
    print(str(counts["completed"]) + "\\n", end="")

threads = [threading.Thread(target=work, args=(name,)) for name in {names}]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""
    assert sandbox.run(script).split() == ["50", "50"]
    assert sorted(sandbox.calls()) == sorted(f"{name} {x}" for name in set(names) for x in range(50))


def test_nobody_is_taken_for_dead_because_the_locks_were_deleted(sandbox: Sandbox) -> None:
    first = sandbox.start(HOLDS.format("pass"))
    until(sandbox.calls)
    os.unlink(sandbox.db + "-lock")
    assert sandbox.run(LOOKS) == "1\n"
    assert sandbox.run(LOOKS) == "1\n"  # this one does not make the file, it finds it
    sandbox.touch("go")
    sandbox.end(first)
    assert sandbox.calls() == ["0"]


def test_a_worker_takes_its_lock_again_in_new_locks(sandbox: Sandbox) -> None:
    script = """
def func(x):
    note(x)
    wait_for(f"go {x}")

from speval.database import locks
locks.SETTLE = 0.0
speval(func, [0, 1], "evals.db", wait=False)
"""
    first = sandbox.start(script)
    until(sandbox.calls)
    os.unlink(sandbox.db + "-lock")
    sandbox.touch("go 0")
    until(lambda: len(sandbox.calls()) == 2)
    sandbox.run(script)
    sandbox.touch("go 1")
    sandbox.end(first)
    assert sandbox.column("losses") == [0, 0]


def test_a_symlink_leads_to_the_same_locks(sandbox: Sandbox) -> None:
    (sandbox.path / "far").mkdir()
    os.symlink("far/evals.db", sandbox.db)
    first = sandbox.start(HOLDS.format("pass"))
    until(sandbox.calls)
    assert sandbox.run(LOOKS.replace("evals.db", "far/evals.db")) == "1\n"
    sandbox.touch("go")
    sandbox.end(first)
    assert sorted(os.listdir(sandbox.path / "far")) == ["evals.db", "evals.db-journal", "evals.db-lock"]


POSIX = "from speval.database import locks\nlocks.OFD.clear()\n"
LOOKS_LONG = """
import importlib
importlib.import_module("speval.speval").STILL_WAITING = 2 * locks.GONE

class func:
    def __new__(cls, x):
        note("second")

speval(func, [0], "evals.db", max_attempts=1)
"""
WITHOUT_FCNTL = "for name in [n for n in sys.modules if n.startswith('speval')]: del sys.modules[name]\n"
WITHOUT_FCNTL += "sys.modules['fcntl'] = None\nfrom speval import *\n"


def test_without_fcntl_a_timeout_reclaims_and_without_a_timeout_nobody_waits_for_ever(
    sandbox: Sandbox,
) -> None:
    first = sandbox.start(WITHOUT_FCNTL + HOLDS.format("pass"))
    until(sandbox.calls)
    first.kill()
    again = WITHOUT_FCNTL + 'speval(lambda x: x, [0], "evals.db")'
    assert "set a timeout" in sandbox.end(sandbox.start(again), 1)
    sandbox.run(again.replace('"evals.db"', '"evals.db", timeout=0.2'))
    assert sandbox.column("result") == [0]


def test_posix_locks_do_where_there_are_no_others(sandbox: Sandbox) -> None:
    first = sandbox.start(POSIX + HOLDS.format("pass"))
    until(sandbox.calls)
    assert sandbox.run(POSIX + LOOKS) == "1\n"
    assert sandbox.run(LOOKS) == "1\n"
    first.kill()
    sandbox.run(POSIX + 'speval(lambda x: x, [0], "evals.db")')
    assert sandbox.column("losses") == [1]


def test_with_posix_locks_nobody_dies_of_files_that_func_closes(sandbox: Sandbox) -> None:
    """The worker takes its lock again; and if it cannot, its process is seen to live."""
    closes = HOLDS.format("[open(name).close() for name in os.listdir()]")
    for able in True, False:
        first = sandbox.start(POSIX + ("" if able else "locks.KEEP = 1000.0\n") + closes)
        until(sandbox.calls)
        second = sandbox.start(POSIX + LOOKS_LONG)
        assert second.stdout is not None
        assert second.stdout.readline().startswith("waiting for evaluation 0")
        sandbox.touch("go")
        for instance in first, second:
            sandbox.end(instance)
        assert sandbox.column("losses") == [0]
        assert sandbox.calls() == ["0"]
        for name in "go", "calls", "evals.db":
            os.unlink(sandbox.path / name)


@pytest.mark.parametrize("change", ["LIVES = 0.0", "host = lambda: 'another'"])
def test_a_process_that_lives_on_without_its_posix_lock_is_given_up_at_last(
    sandbox: Sandbox, change: str
) -> None:
    closes = HOLDS.format("[open(name).close() for name in os.listdir()]")
    first = sandbox.start(POSIX + "locks.KEEP = 1000.0\n" + closes)
    until(sandbox.calls)
    output = sandbox.run(f"{POSIX}locks.{change}\n{LOOKS_LONG}")
    assert f"reclaimed evaluation 0: process {first.pid} on" in output
    sandbox.touch("go")
    sandbox.end(first)


def test_a_zombie_and_a_number_of_no_process_are_not_alive() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert not is_alive(pid)
    os.waitpid(pid, 0)
    assert not any(map(is_alive, [pid, 0, -1, 1 << 70, None, "1"]))
    assert is_alive(os.getpid())


def test_a_lock_is_asked_for_as_each_system_documents_it() -> None:
    linux, darwin = (locks.OFD[name].flock(3, 1 << 40) for name in ("linux", "darwin"))
    assert len(linux) == struct.calcsize("hhqqi0q")
    assert struct.unpack("<hh4xqqi4x", linux) == (3, os.SEEK_SET, 1 << 40, 1, 0)
    assert struct.unpack("<qqihh", darwin) == (1 << 40, 1, 0, 3, os.SEEK_SET)
    assert [locks.OFD[name].kind(flock) for name, flock in (("linux", linux), ("darwin", darwin))] == [3, 3]
    numbers = [fcntl.F_OFD_GETLK, fcntl.F_OFD_SETLK, fcntl.F_OFD_SETLKW]
    assert list(locks.OFD["linux"][:3]) == numbers


def test_a_kernel_that_does_not_know_a_number_gets_posix_locks(sandbox: Sandbox) -> None:
    unknown = "from speval.database import locks\n"
    unknown += "locks.OFD['linux'] = locks.OFD['linux']._replace(get=990, set=991, set_wait=992)\n"
    holds = HOLDS.replace("{}", "print(locks.Locks.of(os.path.realpath('evals.db'))._ofd)")
    first = sandbox.start(unknown + holds)
    until(sandbox.calls)
    assert sandbox.run(LOOKS) == "1\n"
    sandbox.touch("go")
    assert sandbox.end(first) == "None\n"


def test_locks_say_what_they_are_and_have_the_mode_of_the_database(sandbox: Sandbox) -> None:
    (sandbox.path / "evals.db").touch()
    os.chmod(sandbox.db, 0o660)
    sandbox.run('speval(lambda x: x, [0], "evals.db")')
    locks = pathlib.Path(sandbox.db + "-lock")
    assert locks.stat().st_mode & 0o777 == 0o660
    assert locks.read_bytes().startswith(b"Locks of the speval database beside this file; do not delete")


@pytest.mark.parametrize("target", ["evals.txt", "missing", "/dev/null"])
def test_locks_that_are_a_symlink_are_refused_and_what_it_leads_to_is_left_alone(
    sandbox: Sandbox, target: str
) -> None:
    (sandbox.path / "evals.txt").write_text("mine")
    os.symlink(target, sandbox.db + "-lock")
    for _ in range(2):
        output = sandbox.end(sandbox.start('speval(abs, [1], "evals.db")'), 1)
        assert "evals.db-lock cannot be opened" in output
        assert "SpevalError" in output or "NotWritable" in output
    assert (sandbox.path / "evals.txt").read_text() == "mine"
    assert not (sandbox.path / "missing").exists()


def test_locks_that_are_no_file_are_refused(sandbox: Sandbox) -> None:
    os.mkfifo(sandbox.db + "-lock")
    assert "it is no regular file" in sandbox.end(sandbox.start('speval(abs, [1], "evals.db")'), 1)


def test_locks_that_root_makes_belong_to_the_owner_of_the_database(
    sandbox: Sandbox, public: pathlib.Path
) -> None:
    owner = f"import hashlib, tempfile\nos.chdir({str(public)!r})\nos.setuid(65534)\n"
    sandbox.end(sandbox.start(owner + 'speval(abs, [0], "evals.db")', measured=False))
    os.unlink(public / "evals.db-lock")
    assert reset_evals(public / "evals.db", "completed") == 1
    sandbox.end(sandbox.start(owner + 'speval(abs, [0], "evals.db")', measured=False))


def test_a_directory_that_cannot_be_reached_for_a_while_costs_nothing(
    sandbox: Sandbox, public: pathlib.Path
) -> None:
    script = f"""
import hashlib, tempfile
os.chdir({str(public)!r})
os.umask(0)
os.setuid(65534)

def func(x):
    note(x)
    wait_for("go")
    return x

speval(func, [0], "far/evals.db")
"""
    (public / "far").mkdir()
    os.chown(public / "far", 65534, -1)
    instance = sandbox.start(script, measured=False)
    until((public / "calls").exists)
    os.chmod(public / "far", 0)
    (public / "go").touch()
    assert instance.stdout is not None
    line = instance.stdout.readline()
    assert "1 finished evaluations are kept in memory, next try in 1 s" in line
    assert (
        sandbox.run(LOOKS.replace("evals.db", str(public / "far" / "evals.db"))) == "1\n"
    )  # root sees it live
    os.chmod(public / "far", 0o700)
    sandbox.end(instance)
    rows = load_evals(public / "far" / "evals.db")
    assert [(row["result"], row["losses"]) for row in rows] == [(0, 0)]


# What a server does that forgets its clients, and POSIX locks do when `func` closes the file.
LOSES_ITS_BYTE = """
import fcntl, struct
from speval.database import locks
from speval.process.machine import Mount
locks.mount_of = lambda path: Mount("nfs", [])

def lose():
    for fd in os.listdir("/proc/self/fd"):
        if os.path.realpath(f"/proc/self/fd/{fd}").endswith("-lock"):
            byte = struct.pack("hhqqi0q", fcntl.F_UNLCK, os.SEEK_SET, 0, 1 << 59, 0)
            fcntl.fcntl(int(fd), fcntl.F_OFD_SETLK, byte)

def func(x):
    note(x, *sys.argv[1:])
    if x in range(3) and sys.argv[1:] == ["loses"]:
        lose()
        note("lost")
        wait_for(f"go {x}")
    if sys.argv[1:] == ["loses"]:
        wait_for(f"go {x}")
    return x

speval(func, range(5), "evals.db", wait=False)
"""


def test_a_worker_whose_lock_was_lost_takes_it_again_with_its_next_transaction(sandbox: Sandbox) -> None:
    loses = sandbox.start(LOSES_ITS_BYTE, "loses")
    for x in range(3):  # each loss costs the evaluation that ran, once
        until(lambda x=x: sandbox.calls().count("lost") == x + 1)  # type: ignore[misc]
        if x < 2:
            sandbox.touch(f"go {x}")
    until(lambda: "2 loses" in sandbox.calls())
    sandbox.touch("go 2")
    until(lambda: "3 loses" in sandbox.calls())
    assert sandbox.run(LOOKS.replace("[0]", "range(5)")) == "1\n"  # nobody takes what it holds now
    for x in (3, 4):
        sandbox.touch(f"go {x}")
    sandbox.end(loses)
    assert sandbox.column("losses") == [0] * 5


def test_a_byte_that_a_server_keeps_from_its_worker_holds_nobody_up(sandbox: Sandbox) -> None:
    """As one does that did not hear of an unlock, after a restart of its own."""
    script = """
from speval.database import locks
from speval.process.machine import Mount
locks.mount_of = lambda path: Mount("nfs", [])
locks.TRIES = 2
speval(lambda x: x, range(3), "evals.db")
"""
    with open(sandbox.db + "-lock", "wb") as file:
        file.write(b"locks")
        file.flush()
        every_worker = struct.pack("hhqqi0q", fcntl.F_WRLCK, os.SEEK_SET, 1, 1 << 59, 0)
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, every_worker)
        sandbox.run(script)
    assert sandbox.column("result") == [0, 1, 2]


def test_two_that_are_in_a_transaction_at_once_do_not_wait_for_each_other_for_ever(sandbox: Sandbox) -> None:
    """As after a server has lost their locks: one of them has to give way."""
    script = """
from speval.database import locks, sqlite
from speval.process.machine import Mount
locks.mount_of = lambda path: Mount("nfs", [])
sqlite.GIVE_UP = 0.1

def func(x):
    note(x)
    wait_for("read")

speval(func, range(2), "evals.db")
"""
    instance = sandbox.start(script)
    until(sandbox.calls)
    with contextlib.closing(sqlite3.connect(sandbox.db, isolation_level=None)) as other:
        other.execute("BEGIN")
        other.execute("SELECT count(*) FROM evals").fetchall()
        sandbox.touch("read")
        assert instance.stdout is not None
        line = instance.stdout.readline()
        until(lambda: _may_write(other))  # the instance has given up what it had
        other.execute("COMMIT")
    assert "is locked by another process just now (1 finished evaluations are kept in memory" in line
    sandbox.end(instance)
    assert sandbox.column("status") == ["completed"] * 2
    assert sandbox.calls() == ["0", "1"]


def _may_write(conn: sqlite3.Connection) -> bool:
    with contextlib.suppress(sqlite3.OperationalError):
        conn.execute("UPDATE evals SET updated = 0.0 WHERE id < 0")
        return True
    return False


HOLDS_UP = """
import warnings
from speval.database import database
from speval.process import background
background.LONG_WAIT = 0.05
if sys.argv[1:] == ["holder"]:
    db = database("evals.db")
    with db.locks.opened(create=True), db.locks.turn():
        note("held")
        wait_for("go")
    sys.exit()
"""


def test_who_holds_up_everybody_is_named(sandbox: Sandbox) -> None:
    holder = sandbox.start(HOLDS_UP, "holder")
    until(sandbox.calls)
    instance = sandbox.start(HOLDS_UP + 'speval(lambda x: x, [0], "evals.db")')
    assert instance.stdout is not None
    assert f"which process {holder.pid} on {os.uname().nodename} holds" in instance.stdout.readline()
    sandbox.touch("go")
    sandbox.end(instance)


def test_a_database_replaced_while_its_queue_is_long_is_not_written_to_any_more(sandbox: Sandbox) -> None:
    for name in ("evals.db", "other.db"):
        sandbox.run(f'speval(lambda x: x, [0], "{name}")')
    holder = sandbox.start(HOLDS_UP, "holder")
    until(sandbox.calls)
    instance = sandbox.start(HOLDS_UP + 'print(speval(lambda x: -x, [0, 1], "evals.db"))')
    assert instance.stdout is not None
    assert "holds: for" in instance.stdout.readline()
    os.replace(sandbox.path / "other.db", sandbox.db)
    sandbox.touch("go")
    sandbox.end(instance)
    sandbox.end(holder)
    assert sandbox.column("result") == [0, -1]


@pytest.mark.parametrize(
    ("mount", "network", "option"),
    [
        ("/dev/sda1 / ext4 rw 0 0", False, ""),
        ("server:/x /data nfs4 rw,local_lock=none 0 0", True, ""),
        ("server:/x /data nfs rw,nolock 0 0", True, "nolock"),
        ("server:/x /data/set nfs rw,local_lock=all 0 0", True, "local_lock=all"),
        ("server:/x /data/s nfs rw,nolock 0 0", False, ""),
        ("mgs:/x /data lustre rw,localflock 0 0", True, "localflock"),
        ("host: /data/set fuse.sshfs rw 0 0", True, ""),
        ("some /data/set fuse rw 0 0", True, ""),
        ("/dev/sdb1 /data/set fuseblk rw 0 0", False, ""),
        ("server:/x /data/my\\040set nfs rw 0 0", False, ""),
    ],
)
def test_a_network_mount_is_known_by_the_table_of_mounts(
    tmp_path: pathlib.Path, mount: str, network: bool, option: str
) -> None:
    table = tmp_path / "mounts"
    table.write_text("/dev/sda1 / ext4 rw 0 0\n" + mount + "\n")
    found = mount_of("/data/set/evals.db", str(table))
    assert (found.is_network, found.local_locks) == (network, option)
    space = "my\\040set" in mount
    assert mount_of("/data/my set/evals.db", str(table)).is_network == (space or mount.split()[1] == "/data")


def test_on_a_network_mount_nobody_queues_and_a_local_lock_is_warned(sandbox: Sandbox) -> None:
    script = """
from speval.database import locks
from speval.process.machine import Mount
locks.mount_of = lambda path: Mount("nfs", ["nolock"])
speval(lambda x: x, range(3), "evals.db")
with open("evals.db-lock", "rb") as locks:
    print("held by", locks.read()[128:136].strip())
"""
    output = sandbox.run(script)
    assert "is on a mount whose locks are local to each host (nolock)" in output
    assert "held by b'\\x00" in output


def test_who_may_not_write_the_locks_does_not_start_and_is_not_taken_for_dead(
    sandbox: Sandbox, public: pathlib.Path
) -> None:
    script = f"import hashlib, tempfile\nos.chdir({str(public)!r})\n"
    sandbox.run(script + 'speval(abs, [0], "evals.db")')
    for name in ("evals.db", "evals.db-journal"):
        os.chmod(public / name, 0o666)
    other = script + 'os.setuid(65534)\nspeval(abs, [0, 1], "evals.db")'
    assert "evals.db-lock cannot be opened" in sandbox.end(sandbox.start(other, measured=False), 1)
    os.chmod(public / "evals.db-lock", 0o666)
    sandbox.end(sandbox.start(other, measured=False))
    assert [row["result"] for row in load_evals(public / "evals.db")] == [0, 1]


@needs_seccomp
@pytest.mark.parametrize(
    "call",
    [
        'speval(abs, [0, 1], "new.db")',
        'speval(abs, [0, 1], "evals.db", timeout=1)',
        'speval(abs, [0, 1], "evals.db", n_jobs=2)',
        'load_evals("evals.db")',
        'load_evals("copy.db")',  # which has no file of locks beside it
        'reset_evals("evals.db")',
    ],
)
def test_where_there_are_no_locks_everybody_says_so(sandbox: Sandbox, call: str) -> None:
    """SQLite says BUSY there, as of a database that another process keeps locked."""
    sandbox.run('speval(abs, [0], "evals.db")')
    shutil.copy(sandbox.db, sandbox.path / "copy.db")
    instance = sandbox.start(NO_LOCKS + call, measured=False)
    assert "NotWritable: there are no locks on" in sandbox.end(instance, 1)
