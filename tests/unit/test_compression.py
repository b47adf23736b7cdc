"""Compression: what comes out is the same everywhere, and never more than the limits allow, whatever the data claims."""

import gzip
import subprocess
import sys
from random import Random
from struct import pack

import cramjam
import pytest
from tidelog.errors import CorruptBatch
from tidelog.records.batch import COMPRESSIONS
from tidelog.records.compression import DecompressionLimits, compress, decompress

FRAMED = ("gzip", "lz4", "zstd")
AMPLE = DecompressionLimits(max_ratio=10**9)


def at_most(size: int) -> DecompressionLimits:
    return DecompressionLimits(max_bytes=size, max_ratio=10**9)


def in_a_child(program: str) -> str:
    """Run it where 1 GiB of address space is all there is."""
    head = """
import resource
from tidelog.errors import CorruptBatch
from tidelog.records.compression import DecompressionLimits, compress, decompress
def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
"""
    done = subprocess.run([sys.executable, "-c", head + program], capture_output=True, text=True, check=True)
    return done.stdout


# ---- frames of zstd by hand, as RFC 8878 describes them


def zstd_frame(*runs: int, window_log: int | None = None, content_bytes: int | None = None) -> bytes:
    """Return a frame of runs of "a", each of at most 128 KiB; without a window it is one segment, as large as it says."""
    descriptor = (0xC0 if content_bytes is not None else 0) | (0x20 if window_log is None else 0)
    head = b"\x28\xb5\x2f\xfd" + bytes([descriptor])
    if window_log is not None:
        head += bytes([(window_log - 10) << 3])
    if content_bytes is not None:
        head += pack("<Q", content_bytes)
    last = len(runs) - 1
    return head + b"".join(pack("<I", size << 3 | 0b010 | (index == last))[:3] + b"a" for index, size in enumerate(runs))


def test_frames_made_by_hand_are_frames() -> None:
    assert decompress(zstd_frame(3, 4, window_log=10), "zstd", limits=AMPLE) == b"a" * 7
    assert decompress(zstd_frame(3, 4, content_bytes=7), "zstd", limits=AMPLE) == b"a" * 7


@pytest.mark.parametrize("window_log", [28, 31, 41])
def test_a_zstd_window_above_128_mib_is_refused(window_log: int) -> None:
    with pytest.raises(CorruptBatch, match="too much memory"):
        decompress(zstd_frame(3, window_log=window_log), "zstd", limits=AMPLE)


@pytest.mark.parametrize(("window_log", "content_bytes"), [(10, 2), (10, 4), (10, 2**60), (27, 2**40), (None, 2), (None, 4), (None, 2**60)])
def test_a_zstd_frame_that_lies_about_its_content_is_refused(window_log: int | None, content_bytes: int) -> None:
    with pytest.raises(CorruptBatch, match="cannot be decompressed"):
        decompress(zstd_frame(3, window_log=window_log, content_bytes=content_bytes), "zstd", limits=AMPLE)


def test_a_huge_window_or_content_size_takes_no_memory_that_output_does_not_fill() -> None:
    small = [zstd_frame(3, window_log=27), zstd_frame(3, content_bytes=2**27), zstd_frame(3, window_log=27, content_bytes=2**50)]
    large = zstd_frame(*[128 * 1024] * 1000, window_log=27)
    program = f"""
limits = DecompressionLimits(max_bytes=16 * 1024 * 1024, max_ratio=10**9)
decompress(compress(b"warm", "zstd"), "zstd", limits=limits)
before = peak_mib()
for frame in {[*small, b"".join(small[:1] * 20)]!r}:
    try:
        decompress(frame, "zstd", limits=limits)
    except CorruptBatch:
        pass
print(peak_mib() - before)
try:
    decompress({large!r}, "zstd", limits=limits)
except CorruptBatch as error:
    print(peak_mib() - before, error)
"""
    small_mib, refused = in_a_child("resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))" + program).splitlines()
    large_mib, _, error = refused.partition(" ")
    assert int(small_mib) < 8
    assert int(large_mib) < 64  # the output, the window it fills, and what the allocator keeps
    assert "grow beyond 16777216" in error


# ---- blocks of snappy


def snappy_block(claimed: int) -> bytes:
    """Return a block of four bytes that says how much it becomes."""
    size = b""
    while claimed >= 0x80:
        size += bytes([claimed & 0x7F | 0x80])
        claimed >>= 7
    return size + bytes([claimed]) + b"\x0cabcd"


def test_a_snappy_block_that_claims_more_than_can_come_of_it_is_refused_before_memory_is_taken() -> None:
    assert decompress(snappy_block(4), "snappy", limits=AMPLE) == b"abcd"
    for claimed in (200, 2**16, 2**26, 2**31, 2**32 - 1):
        block = snappy_block(claimed)
        for data in (block, b"\x82SNAPPY\0" + pack(">II", 1, 1) + pack(">I", len(block)) + block):
            with pytest.raises(CorruptBatch, match=f"a snappy block of {len(block)} bytes claims to become {claimed}"):
                decompress(data, "snappy", limits=AMPLE)
    program = f"""
decompress(compress(b"warm", "snappy"), "snappy", limits=DecompressionLimits())
before = peak_mib()
for block in {[snappy_block(2**26), snappy_block(2**31)]!r}:
    try:
        decompress(block, "snappy", limits=DecompressionLimits(max_bytes=2**31, max_ratio=10**9))
    except CorruptBatch:
        pass
print(peak_mib() - before)
"""
    assert int(in_a_child(program)) < 8


# ---- all of them


@pytest.mark.parametrize("compression", FRAMED)
def test_concatenated_frames_are_one_text_under_one_limit(compression: str) -> None:
    frames = [compress(part, compression) for part in (b"one " * 5000, b"", b"two " * 5000, b"three")]
    text = b"one " * 5000 + b"two " * 5000 + b"three"
    assert decompress(b"".join(frames), compression, limits=AMPLE) == text
    with pytest.raises(CorruptBatch, match=f"grow beyond {len(text) - 1}"):
        decompress(b"".join(frames), compression, limits=at_most(len(text) - 1))
    with pytest.raises(CorruptBatch, match="cannot be decompressed"):
        decompress(b"".join(frames) + frames[0][:-3], compression, limits=AMPLE)


def test_what_is_no_record_of_a_frame_gives_no_bytes() -> None:
    skippable = b"\x50\x2a\x4d\x18" + pack("<I", 5) + b"hello"
    assert decompress(skippable + compress(b"text", "zstd") + skippable, "zstd", limits=AMPLE) == b"text"
    named = gzip.compress(b"text")[:3] + b"\x08" + gzip.compress(b"text")[4:10] + b"name\0" + gzip.compress(b"text")[10:]
    assert decompress(named, "gzip", limits=AMPLE) == b"text"


@pytest.mark.parametrize("compression", COMPRESSIONS[1:])
@pytest.mark.parametrize("text", [bytes(70_000), Random(1).randbytes(70_000), b"x"], ids=["zeros", "noise", "one byte"])
def test_the_limit_is_exact(compression: str, text: bytes) -> None:
    packed = compress(text, compression)
    for most in (len(text), len(text) + 1, len(text) + 100):
        assert decompress(packed, compression, limits=at_most(most)) == text
    for most in (0, 1, 7, 8, 9, 4095, 4096, 4097, len(text) - 9, len(text) - 8, len(text) - 7, len(text) - 1):
        if 0 <= most < len(text):
            with pytest.raises(CorruptBatch, match=f"grow beyond {most},"):
                decompress(packed, compression, limits=at_most(most))


@pytest.mark.parametrize("compression", FRAMED)
def test_too_small_a_buffer_is_told_from_damage_whatever_the_error_says(compression: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Reworded:
        @staticmethod
        def decompress_into(data: bytes, buffer: bytearray) -> int:
            try:
                return int(original.decompress_into(data, buffer))
            except cramjam.DecompressionError as error:
                raise cramjam.DecompressionError("no") from error

    original = getattr(cramjam, compression)
    monkeypatch.setattr(cramjam, compression, Reworded)
    for text in (bytes(300_000), bytes(range(256)) * 1000):
        packed = bytes(original.compress(text))
        assert decompress(packed, compression, limits=AMPLE) == text
        with pytest.raises(CorruptBatch, match="grow beyond 250000"):
            decompress(packed, compression, limits=at_most(250_000))
        with pytest.raises(CorruptBatch, match="cannot be decompressed: no"):
            decompress(packed[:-1], compression, limits=AMPLE)


@pytest.mark.parametrize("compression", COMPRESSIONS[1:])
def test_a_bomb_is_refused_by_size_and_by_ratio(compression: str) -> None:
    bomb = compress(bytes(20_000_000), compression)
    with pytest.raises(CorruptBatch, match="grow beyond 1000000"):
        decompress(bomb, compression, limits=DecompressionLimits(max_bytes=1_000_000, max_ratio=10**9))
    with pytest.raises(CorruptBatch, match="grow beyond"):
        decompress(bomb, compression, limits=DecompressionLimits(max_ratio=2))
    assert decompress(bomb, compression, limits=AMPLE) == bytes(20_000_000)


@pytest.mark.parametrize("compression", COMPRESSIONS[1:])
def test_a_bomb_takes_no_more_memory_than_the_limit_allows(compression: str) -> None:
    program = f"""
part = compress(bytes(64 * 1024 * 1024), {compression!r})
bomb = part * 8 if {compression!r} != "snappy" else part
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
try:
    decompress(bomb, {compression!r}, limits=DecompressionLimits(max_bytes=16 * 1024 * 1024, max_ratio=10**9))
except CorruptBatch as error:
    print("refused:", error)
"""
    assert "grow beyond 16777216" in in_a_child(program)


@pytest.mark.parametrize("compression", COMPRESSIONS[1:])
def test_damaged_compressed_records_are_refused(compression: str) -> None:
    packed = compress(b"some text that repeats " * 100, compression)
    for damaged in (packed[: len(packed) // 2], b"", b"\x00" * 40):
        with pytest.raises(CorruptBatch):
            decompress(damaged, compression, limits=DecompressionLimits())
