"""Segments against copying the same bytes."""

from tidelog.records.batch import scan
from tidelog.records.codec import encode_many
from tidelog.segments.format import ChunkSource, Origin, decode, encode_intake

from benchmarks.measure import Measure, seconds

CHUNKS = 100
ORIGIN = Origin("c" * 32, "broker-0", 1, 1, 0)


def run(repeats: int) -> list[Measure]:
    batch = encode_many([b"x" * 100] * 776)  # 100 of them make 8 MiB
    sources = [ChunkSource(bytes(16), partition, [batch], scan(batch)) for partition in range(CHUNKS)]
    whole = b"".join(encode_intake(sources, ORIGIN)[0])
    gigabytes = len(whole) / 1e9
    copied = bytearray(whole)
    copying = gigabytes / seconds(lambda: bytes(copied), repeats)
    return [
        Measure(
            "encode, 8 MiB in 100 chunks", gigabytes / seconds(lambda: encode_intake(sources, ORIGIN), repeats), "GB/s", copying, "memcpy"
        ),
        Measure("decode and check all", gigabytes / seconds(lambda: decode(whole), repeats), "GB/s", copying, "memcpy"),
    ]
