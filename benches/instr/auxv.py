"""Runs a command that is not told where the kernel's clock page is, so that native code runs under valgrind.

Valgrind unmaps that page (the vDSO) and takes it out of the vector that a program is started with. Rust's `rustix` asks
the kernel for the vector instead, with prctl(PR_GET_AUXV), finds the page there, and jumps to where nothing is. Here
that one question is answered by EINVAL, as kernels before 6.4 do; then `rustix` reads /proc/self/auxv, which valgrind
answers for, and asks for the time by a system call. Every other call is let through.

The filter is a seccomp one: it needs no privilege, holds for the process and its children, and can not be taken back,
so this program installs it and then becomes the command. Exit status 77 says that it cannot be installed, as on
machines whose numbers are not known here.
"""

import ctypes
import os
import platform
import struct
import sys

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
PR_GET_AUXV = 0x41555856
EINVAL = 22
NOT_INSTALLED = 77
RET_ALLOW, RET_ERRNO = 0x7FFF0000, 0x00050000
# Number of prctl and the audit number of the machine.
NUMBERS = {"x86_64": (157, 0xC000003E), "aarch64": (167, 0xC00000B7)}
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
# In struct seccomp_data: the number, the machine, the low half of the first argument.
AT_NUMBER, AT_MACHINE, AT_ARGUMENT = 0, 4, 16


def program(prctl: int, machine: int) -> bytes:
    """The filter: (code, jump if true, jump if false, value) each."""
    steps = (
        (LOAD, 0, 0, AT_MACHINE), (EQUAL, 0, 5, machine),
        (LOAD, 0, 0, AT_NUMBER), (EQUAL, 0, 3, prctl),
        (LOAD, 0, 0, AT_ARGUMENT), (EQUAL, 0, 1, PR_GET_AUXV),
        (RETURN, 0, 0, RET_ERRNO | EINVAL), (RETURN, 0, 0, RET_ALLOW),
    )  # fmt: skip
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


class Filter(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_char_p))


def hide() -> None:
    """Installs the filter in this process.

    Raises:
        OSError: The kernel refuses, or the machine is not known.
    """
    if platform.machine() not in NUMBERS:
        raise OSError(f"system call numbers of {platform.machine()} are not known here")
    steps = program(*NUMBERS[platform.machine()])
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    given = Filter(len(steps) // 8, steps)
    zero = ctypes.c_ulong(0)
    failed = prctl(PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), zero, zero, zero)
    if failed or prctl(PR_SET_SECCOMP, ctypes.c_ulong(SECCOMP_MODE_FILTER), ctypes.byref(given), zero, zero):
        raise OSError(ctypes.get_errno(), "the kernel refuses the filter")


def main() -> int:
    """Becomes the command."""
    try:
        hide()
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
    else:
        os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606 - the words are the caller's
    return NOT_INSTALLED


if __name__ == "__main__":
    sys.exit(main())
