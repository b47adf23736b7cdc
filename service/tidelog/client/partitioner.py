"""Which partition a key belongs to: as Apache Kafka's default partitioner does it, so that both agree on every key.

murmur2 is Austin Appleby's public-domain MurmurHash2, 32 bits, with Kafka's seed 0x9747b28c.
"""

from functools import lru_cache
from struct import unpack_from

_M = 0x5BD1E995
_MASK = 0xFFFFFFFF
_SEED = 0x9747B28C


def murmur2(data: bytes) -> int:
    """Return the 32-bit hash, unsigned."""
    size = len(data)
    h = _SEED ^ size
    for k in unpack_from(f"<{size // 4}I", data):
        k = k * _M & _MASK
        k = (k ^ k >> 24) * _M & _MASK
        h = (h * _M & _MASK) ^ k
    if rest := size & 3:
        h = (h ^ int.from_bytes(data[-rest:], "little")) * _M & _MASK
    h = (h ^ h >> 13) * _M & _MASK
    return h ^ h >> 15


@lru_cache(maxsize=65536)
def _positive(key: bytes) -> int:
    return murmur2(key) & 0x7FFFFFFF


def partition_of(key: bytes, partitions: int) -> int:
    """Return the partition of a key."""
    return _positive(key) % partitions
