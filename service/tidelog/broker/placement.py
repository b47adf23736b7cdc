"""Which broker should lead a partition: rendezvous hashing, so that everyone computes the same from one membership.

`docs/format.md` fixes function and input bytes.
"""

from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256
from struct import pack

_MASK = 2**64 - 1


def desired_leader(topic_id: str, partition: int, broker_ids: Sequence[str]) -> str | None:
    """Return the id, of the active brokers', that should lead; None where there is none."""
    if not broker_ids:
        return None
    place = _hash(bytes.fromhex(topic_id) + pack("<I", partition))
    return min(broker_ids, key=lambda broker_id: (-_mix(_broker_hash(broker_id) ^ place), broker_id))


def weight(topic_id: str, partition: int, broker_id: str) -> int:
    """Return a broker's weight for a partition; the largest leads."""
    return _mix(_broker_hash(broker_id) ^ _hash(bytes.fromhex(topic_id) + pack("<I", partition)))


@lru_cache(maxsize=4096)
def _broker_hash(broker_id: str) -> int:
    return _hash(broker_id.encode())


def _hash(data: bytes) -> int:
    return int.from_bytes(sha256(data).digest()[:8], "little")


def _mix(x: int) -> int:
    """MurmurHash3's 64-bit finaliser."""
    x ^= x >> 33
    x = x * 0xFF51AFD7ED558CCD & _MASK
    x ^= x >> 33
    x = x * 0xC4CEB9FE1A85EC53 & _MASK
    return x ^ x >> 33
