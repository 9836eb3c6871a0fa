"""Keeps freed memory in the process, which saves torch on a CPU the page faults of each new buffer (glibc)."""

import ctypes
import os

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # numbers of mallopt's parameters, in malloc.h
MOST_ON_HEAP, NEVER = 32 * 2**20, 2**31 - 1  # bytes; glibc takes no more for the former
OWN_CHOICE = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Have malloc serve buffers of up to 32 MiB from memory that it keeps, as long as the process runs.

    Else buffers of some megabytes go back to the system, and are faulted in again, at every operation. The most that
    the process has stays the same. Returns whether it is done: not where another libc is used, or where a user has
    chosen by an environment variable.
    """
    if any(name in os.environ for name in OWN_CHOICE):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl and macOS have no such function, Windows no such library
        return False
    return bool(mallopt(MMAP_THRESHOLD, MOST_ON_HEAP) and mallopt(TRIM_THRESHOLD, NEVER))
