"""A file system without locks, for instances: to their kernel, any lock of a file is one too many."""

import platform
import sys

import pytest

__all__ = ["NO_LOCKS", "needs_seccomp"]

needs_seccomp = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"),
    reason="a filter of system calls is needed, and their numbers",
)

# From there on, in this thread and those that it starts, fcntl() answers ENOLCK where it is about locks. As a
# network mount does whose server has no lock daemon; nothing that Python replaces would reach SQLite.
NO_LOCKS = """
import ctypes, errno, fcntl, platform, struct

def lose_locks():
    number = {"x86_64": 72, "aarch64": 25}[platform.machine()]  # of the system call fcntl
    commands = [fcntl.F_GETLK, fcntl.F_SETLK, fcntl.F_SETLKW, 36, 37, 38]  # and F_OFD_...
    load, jump_if, answer = 0x20, 0x15, 0x06
    allow, refuse = 0x7FFF0000, 0x00050000 | errno.ENOLCK
    filters = [(load, 0, 0, 0), (jump_if, 0, len(commands) + 1, number)]  # the call's number, or to `allow`
    filters += [(load, 0, 0, 24)]  # its second argument
    filters += [(jump_if, len(commands) - n, 0, command) for n, command in enumerate(commands)]  # to `refuse`
    filters += [(answer, 0, 0, allow), (answer, 0, 0, refuse)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in filters))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(filters), ctypes.addressof(code)))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    word = ctypes.c_ulong
    prctl.argtypes = [ctypes.c_int, word, ctypes.c_void_p, word, word]
    no_new_privileges, set_filter, by_filter = 38, 22, 2
    where = ctypes.addressof(program)
    if prctl(no_new_privileges, 1, None, 0, 0) or prctl(set_filter, by_filter, where, 0, 0):
        raise OSError(ctypes.get_errno(), "this kernel takes no filter")

lose_locks()
"""
