"""What the C library does with memory that is freed."""

import ctypes
import sys


# Parameters of glibc's mallopt (malloc.h).
TRIM_THRESHOLD, MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Keep what is freed for what is allocated next, from now on and in all of this process.

    By default glibc gives large blocks back to the system at once, which clears and maps them anew in the next
    iteration: on a CPU that can take as long as the arithmetic. What is kept can make the peak larger.

    Returns:
        Whether there is a glibc that does so.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and all((mallopt(MMAP_MAX, 0), mallopt(TRIM_THRESHOLD, -1)))
