"""Confines a process that decodes untrusted files: memory, processor time, files, network.

On Linux a system call filter (seccomp(2)) refuses sockets and the execution of programs. It needs
no privileges, not even in a container.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import signal
import struct
import sys

from tsm_jax.errors import UserError

_OPEN_FILES = 64

# The kernel's numbers of the architecture (linux/audit.h), of the system call seccomp, and of the
# system calls to refuse: socket, connect, io_uring_setup, execve, execveat, ptrace,
# process_vm_writev.
_CALLS = {
    "x86_64": (0xC000003E, 317, (41, 42, 425, 59, 322, 101, 311)),
    "aarch64": (0xC00000B7, 277, (198, 203, 425, 221, 281, 117, 271)),
}

# linux/filter.h, linux/seccomp.h and linux/prctl.h
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER_AT, _ARCHITECTURE_AT = 0, 4  # offsets in the filter's input
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM
_X32 = 0x40000000  # from here on, a second set of numbers for the same calls
_NO_NEW_PRIVILEGES, _SET_FILTER, _ALL_THREADS = 38, 1, 1


def confine(memory_bytes: int) -> None:
    """Confines this process for the rest of its life.

    Args:
        memory_bytes: memory that it may use in addition to what it already has.

    Raises:
        UserError: the system refuses the system call filter.
    """
    _limit(resource.RLIMIT_NOFILE, _OPEN_FILES)
    _limit(resource.RLIMIT_FSIZE, 0)  # no file can be written
    _limit(resource.RLIMIT_CORE, 0)
    if sys.platform == "linux":
        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[0])
        _limit(resource.RLIMIT_AS, pages * resource.getpagesize() + memory_bytes)
    if has_filters():
        _refuse_calls()


def leave_stopping_to_parent() -> None:
    """Ignores SIGTERM, which systemd and others send to every process of a service.

    The parent finishes the accepted requests and then ends this process.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def allow_seconds(seconds: float) -> None:
    """Lets the kernel end this process after this much more processor time."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    _limit(resource.RLIMIT_CPU, int(usage.ru_utime + usage.ru_stime + seconds) + 1, soft=True)


def has_filters() -> bool:
    """Returns whether this system can block a process's network; the other limits always hold."""
    return sys.platform == "linux" and platform.machine() in _CALLS


def _limit(what: int, value: int, *, soft: bool = False) -> None:
    hardest = resource.getrlimit(what)[1]
    if hardest != resource.RLIM_INFINITY:
        value = min(value, hardest)
    resource.setrlimit(what, (value, hardest if soft else value))


def _refuse_calls() -> None:
    architecture, seccomp, refused = _CALLS[platform.machine()]
    tests = [(_EQUAL, number) for number in refused]
    if platform.machine() == "x86_64":
        tests.insert(0, (_AT_LEAST, _X32))
    # A matching test jumps to the last instruction, which refuses; the one before it allows.
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_EQUAL, 0, len(tests) + 2, architecture),
        (_LOAD, 0, 0, _NUMBER_AT),
        *((test, len(tests) - place, 0, number) for place, (test, number) in enumerate(tests)),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _REFUSE),
    ]
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = ctypes.create_string_buffer(struct.pack("HP", len(program), ctypes.addressof(buffer)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_NO_NEW_PRIVILEGES, *map(ctypes.c_ulong, (1, 0, 0, 0))) or libc.syscall(
        seccomp, _SET_FILTER, _ALL_THREADS, header
    ):
        raise UserError(
            "cannot block the network for decoding processes: seccomp failed with"
            f" {os.strerror(ctypes.get_errno())}; allow it in this container"
        )
