"""What the C library's allocator is told of processes through which large messages stream."""

_LARGE_BYTES = 8 * 1024 * 1024


def keep_freed_memory() -> None:
    """Have glibc keep some freed memory for the next message; other C libraries take no notice.

    It gives back to the system what lies free at the heap's end beyond twice the largest block that it has mapped singly
    and freed. That is little at first, so that every message was copied into pages that had to be mapped and zeroed
    again, which took longer than copying. One large block, freed untouched, raises the bound: to 16 MiB.
    """
    _ = bytes(_LARGE_BYTES)
