"""What is done about memory in processes through which large messages stream."""

import traceback

_LARGE_BYTES = 8 * 1024 * 1024


def keep_freed_memory() -> None:
    """Have glibc keep some freed memory for the next message; other C libraries take no notice.

    It gives back to the system what lies free at the heap's end beyond twice the largest block that it has mapped singly
    and freed. That is little at first, so that every message was copied into pages that had to be mapped and zeroed
    again, which took longer than copying. One large block, freed untouched, raises the bound: to 16 MiB.
    """
    _ = bytes(_LARGE_BYTES)


def forget_frames(error: BaseException) -> None:
    """Free what the frames hold that an error came through, and those that it came from.

    Errors and frames hold each other in cycles, here and in libraries, until the collector comes; and it comes seldom. Such
    frames hold the bodies of requests: a store that is away for minutes would cost far more memory than is accounted for.
    """
    chain = [error]
    known = set()
    while chain:
        link = chain.pop()
        if link in known:
            continue
        known.add(link)
        traceback.clear_frames(link.__traceback__)
        chain += [before for before in (link.__cause__, link.__context__) if before is not None]
