"""Starts instances in a small part of the time that Python takes: they are forked where speval is imported.

Run as a program, with a socket as stdin, it is the process that forks; here are the two ends of that socket.
"""

from __future__ import annotations

import gc
import io
import json
import os
import pathlib
import select
import signal
import socket
import subprocess
import sys
import time
import types
from typing import Any

MESSAGE = 1_000_000  # bytes, at most
LIMIT = 120.0  # seconds, generous: reached only when something is broken


def is_of_coverage(name: str) -> bool:
    """Tell whether a variable of the environment makes coverage measure a new Python."""
    return name.startswith("COVERAGE_")


class Instance:
    """A process that runs a script, with as much of `subprocess.Popen` as tests use."""

    def __init__(self, nursery: Nursery, args: list[str], pid: int, stdout: int) -> None:
        self.args = args
        self.pid = pid
        self.stdout = open(stdout)  # noqa: SIM115 - until `communicate`
        self.returncode: int | None = None
        self._nursery = nursery

    def poll(self) -> int | None:
        if self.returncode is None:
            status = self._nursery.ask({"pid": self.pid})
            if status is not None:
                self.returncode = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        return self.returncode

    def wait(self, timeout: float = LIMIT) -> int:
        began = time.monotonic()
        while self.poll() is None:
            waited = time.monotonic() - began
            if waited > timeout:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(min(max(waited / 10, 0.001), 0.05))
        assert self.returncode is not None
        return self.returncode

    def communicate(self, timeout: float) -> tuple[str, None]:
        output, end = b"", time.monotonic() + timeout
        while select.select([self.stdout], [], [], max(end - time.monotonic(), 0.0))[0]:
            more = os.read(self.stdout.fileno(), 65536)
            output += more
            if not more:
                self.stdout.close()
                self.wait(max(end - time.monotonic(), 0.0))
                return io.TextIOWrapper(io.BytesIO(output)).read(), None
        raise subprocess.TimeoutExpired(self.args, timeout)

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Nursery:
    """The process that forks, as who wants instances sees it."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        env = {name: value for name, value in os.environ.items() if not is_of_coverage(name)}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, *(["measured"] if any(map(is_of_coverage, os.environ)) else [])],
                stdin=theirs,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=env,
            )

    def start(self, script: pathlib.Path, *args: str, env: dict[str, str]) -> Instance:
        """Start an instance in the folder of its script; what it prints, on stderr too, is its stdout."""
        stdout, theirs = os.pipe()
        asked = {"script": str(script), "args": args, "env": env}
        try:
            pid = self.ask(asked, theirs)
        finally:
            os.close(theirs)
        return Instance(self, [str(script), *args], pid, stdout)

    def close(self) -> None:
        self._ours.close()
        said, _ = self._process.communicate()
        assert not said, said

    def ask(self, asked: dict[str, Any], *fds: int) -> Any:
        socket.send_fds(self._ours, [json.dumps(asked).encode()], fds)
        return json.loads(self._ours.recv(MESSAGE))


def serve(channel: socket.socket) -> dict[str, Any] | None:
    """Fork when asked to; return None when nobody is left to ask, and in a child what it is to run."""
    while True:
        message, fds, _, _ = socket.recv_fds(channel, MESSAGE, 1)
        if not message:
            return None
        asked: dict[str, Any] = json.loads(message)
        if "pid" in asked:
            pid, status = os.waitpid(asked["pid"], os.WNOHANG)
            channel.send(json.dumps(status if pid else None).encode())
            continue
        pid = os.fork()
        if pid == 0:
            channel.close()
            with open(os.devnull, "rb") as null:
                os.dup2(null.fileno(), 0)
            for fd in 1, 2:
                os.dup2(fds[0], fd)
            os.close(fds[0])
            return asked
        os.close(fds[0])
        channel.send(json.dumps(pid).encode())


def become_main(script: str, args: list[str], env: dict[str, str]) -> types.CodeType:
    """Be as a new Python that is to run the script; return what is in it."""
    os.chdir(os.path.dirname(script))
    os.environ.clear()
    os.environ.update(env)
    if any(map(is_of_coverage, env)):
        import coverage

        coverage.process_startup()
    sys.argv = [script, *args]
    sys.path[0] = os.path.dirname(script)
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    main.__file__ = script
    with open(script, "rb") as file:
        return compile(file.read(), script, "exec")


if __name__ == "__main__":
    import ctypes  # noqa: F401 - that is the point

    import speval.cli
    import speval.process.jobs  # noqa: F401

    if sys.argv[1:] == ["measured"]:
        import coverage

        warm = coverage.Coverage(data_file=None, config_file=False)  # imports what each instance needs
        warm.start()
        warm.stop()
    gc.freeze()
    asked = serve(socket.socket(fileno=os.dup(0)))
    if asked is not None:
        exec(become_main(**asked), vars(sys.modules["__main__"]))
