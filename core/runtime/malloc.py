"""Settings of the C library's memory allocation."""

import contextlib
import ctypes

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h


def tune_malloc() -> None:
    """Make glibc keep freed memory instead of returning it to the system.

    Large blocks are allocated for every frame of a video and in every step of a network on a CPU, where page faults
    would take a fifth of the time. Call this after reading inputs, so that the memory for reading is returned.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # not glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_TOP_PAD, 64 << 20)
