"""Builds the golden files from docs/format.md alone: standard library only, nothing of Tidelog imported.

Run from anywhere: `python tests/golden/make_golden.py` writes the files beside this script. Files of released
versions never change; a new version adds new ones.
"""

import gzip
import hashlib
import json
import struct
from pathlib import Path

HERE = Path(__file__).parent
TOPIC_A = bytes.fromhex("0102030405060708090a0b0c0d0e0f10")
TOPIC_B = bytes.fromhex("ffeeddccbbaa99887766554433221100")
TIME = 1_750_000_000_000


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def zigzag(value: int) -> bytes:
    return varint((value << 1) ^ (value >> 63) if value < 0 else value << 1)


def sized(data: bytes | None) -> bytes:
    return zigzag(-1) if data is None else zigzag(len(data)) + data


# ---- record batches

Record = tuple[int, bytes | None, bytes | None, list[tuple[str, bytes | None]]]  # timestamp delta, key, value, headers


def record(offset_delta: int, row: Record) -> bytes:
    delta, key, value, headers = row
    body = b"\0" + zigzag(delta) + zigzag(offset_delta) + sized(key) + sized(value) + zigzag(len(headers))
    body += b"".join(sized(name.encode()) + sized(content) for name, content in headers)
    return zigzag(len(body)) + body


COMPRESSIONS = ("none", "gzip", "snappy", "lz4", "zstd")


def compressed(body: bytes, compression: str) -> bytes:
    """Compress with gzip; pack into the other frames as it is, which they allow (at most 256 bytes)."""
    size = len(body)
    if compression == "gzip":
        return gzip.compress(body, mtime=0)
    if compression == "snappy":  # one block: its length, then one literal
        block = varint(size) + bytes([60 << 2, size - 1]) + body
        return b"\x82SNAPPY\0" + struct.pack(">III", 1, 1, len(block)) + block
    if compression == "lz4":  # independent blocks of at most 64 KiB; the high bit of a length says "not compressed"
        descriptor = bytes([0x60, 0x40])
        return (
            b"\x04\x22\x4d\x18" + descriptor + bytes([xxh32(descriptor) >> 8 & 0xFF]) + struct.pack("<I", size | 1 << 31) + body + bytes(4)
        )
    if compression == "zstd":  # a single segment of so many bytes; one raw block, the last
        return b"\x28\xb5\x2f\xfd" + bytes([0x20, size]) + struct.pack("<I", size << 3 | 1)[:3] + body
    return body


def xxh32(data: bytes) -> int:
    """XXH32 of less than four bytes, seed 0."""
    mask, first, second, third, fifth = 2**32 - 1, 2654435761, 2246822519, 3266489917, 374761393
    x = fifth + len(data)
    for byte in data:
        x = x + byte * fifth & mask
        x = (x << 11 | x >> 21) * first & mask
    x = (x ^ x >> 15) * second & mask
    x = (x ^ x >> 13) * third & mask
    return x ^ x >> 16


def batch(
    rows: list[Record],
    *,
    base_offset: int = 0,
    leader_epoch: int = -1,
    producer: tuple[int, int, int] = (-1, -1, -1),
    compression: str = "none",
) -> bytes:
    body = compressed(b"".join(record(i, row) for i, row in enumerate(rows)), compression)
    most = TIME + max(row[0] for row in rows)
    covered = struct.pack(">hiqqqhii", COMPRESSIONS.index(compression), len(rows) - 1, TIME, most, *producer, len(rows)) + body
    return struct.pack(">qiibI", base_offset, len(covered) + 9, leader_epoch, 2, crc32c(covered)) + covered


PLAIN: list[Record] = [
    (0, None, b"first", []),
    (5, b"key", b"second", [("h", b"1"), ("none", None)]),
    (3, b"", None, []),
]
UNIFORM: list[Record] = [(0, None, b"%04d" % i * 25, []) for i in range(200)]


# ---- protobuf, by hand


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value & 0xFFFF_FFFF_FFFF_FFFF) if value else b""


def blob(field: int, value: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(value)) + value


def fixed32(field: int, value: int) -> bytes:
    return varint(field << 3 | 5) + struct.pack("<I", value) if value else b""


def chunk(topic: bytes, partition: int, position: int, data: bytes, batches: int, records: int, most: int) -> bytes:
    return blob(
        7,
        blob(1, topic) + number(2, partition) + number(3, position) + number(4, len(data)) + number(5, batches)
        + number(6, records) + number(7, most) + fixed32(8, crc32c(data)),
    )  # fmt: skip


def segment(kind: int, chunks: bytes, fields: bytes) -> bytes:
    footer = (
        blob(1, b"6f1c24a2c2a84e0b9c1d0a5e8f3b7d11")
        + blob(2, b"broker-0")
        + number(3, 7)
        + number(4, 42)
        + number(5, TIME)
        + number(6, kind)
        + fields
    )
    return b"TIDE" + struct.pack("<HH", 1, kind) + chunks + footer + struct.pack("<II", len(footer), crc32c(footer)) + b"TIDE"


def intake_segment() -> bytes:
    first = batch(PLAIN)
    second = batch(PLAIN, producer=(9, 0, 2**31 - 2), compression="gzip") + batch(UNIFORM)
    third = batch(PLAIN[:1])
    fields = chunk(TOPIC_A, 0, 8, first, 1, 3, TIME + 5)
    fields += chunk(TOPIC_A, 300, 8 + len(first), second, 2, 203, TIME + 5)
    fields += chunk(TOPIC_B, 1, 8 + len(first) + len(second), third, 1, 1, TIME)
    return segment(1, first + second + third, fields)


def merged_segment() -> bytes:
    """Six batches of 200 records of 100 bytes, a gap of 100 offsets after the third, leader epochs 4 and 6."""
    batches = [batch(UNIFORM, base_offset=1000 + 200 * i + (100 if i > 2 else 0), leader_epoch=4 if i < 3 else 6) for i in range(6)]
    data = b"".join(batches)
    starts = [sum(map(len, batches[:i])) for i in range(6)]
    entries = [0]
    for i in range(1, 6):
        if starts[i] - starts[entries[-1]] >= 65536:
            entries.append(i)
    index = b""
    for i, at in enumerate(entries):
        end = starts[entries[i + 1]] if i + 1 < len(entries) else len(data)
        offset = 1000 + 200 * at + (100 if at > 2 else 0)
        index += blob(
            5,
            number(1, offset) + number(2, TIME) + number(3, 8 + starts[at]) + fixed32(4, crc32c(data[starts[at] : end])),
        )
    merged = blob(8, number(1, 1000) + number(2, 2300) + number(3, 4) + number(4, 6) + index)
    return segment(2, data, chunk(TOPIC_A, 0, 8, data, 6, 1200, TIME) + merged)


# ---- placement


def weight(broker: str, topic: bytes, partition: int) -> int:
    def h(data: bytes) -> int:
        return int.from_bytes(hashlib.sha256(data).digest()[:8], "little")

    x = h(broker.encode()) ^ h(topic + struct.pack("<I", partition))
    mask = 2**64 - 1
    x ^= x >> 33
    x = x * 0xFF51AFD7ED558CCD & mask
    x ^= x >> 33
    x = x * 0xC4CEB9FE1A85EC53 & mask
    return x ^ x >> 33


def placement() -> dict[str, object]:
    brokers = ["broker-0", "broker-1", "broker-2", "a"]
    rows = []
    for topic in (TOPIC_A, TOPIC_B):
        for partition in (0, 1, 2, 3, 255, 256, 70000):
            weights = {name: weight(name, topic, partition) for name in brokers}
            leader = min((-weight, name) for name, weight in weights.items())[1]
            rows.append(
                {
                    "topic_id": topic.hex(),
                    "partition": partition,
                    "weights": {k: str(v) for k, v in weights.items()},
                    "leader": leader,
                }
            )
    return {"brokers": brokers, "partitions": rows}


def files() -> dict[str, bytes]:
    return {
        "batch-plain.bin": batch(PLAIN),
        "batch-stamped.bin": batch(PLAIN, base_offset=123456789012, leader_epoch=17, producer=(9, 3, 11)),
        "batch-uniform.bin": batch(UNIFORM),
        **{f"batch-{name}.bin": batch(PLAIN, compression=name) for name in COMPRESSIONS[1:]},
        "segment-v1-intake.seg": intake_segment(),
        "segment-v1-merged.seg": merged_segment(),
        "placement.json": json.dumps(placement(), indent=1).encode() + b"\n",
    }


if __name__ == "__main__":
    assert crc32c(b"123456789") == 0xE3069283
    for name, content in files().items():
        (HERE / name).write_bytes(content)
        print(f"{hashlib.sha256(content).hexdigest()}  {name}")  # what SHA256SUMS holds
