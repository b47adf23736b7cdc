from hypothesis import given
from hypothesis import strategies as st
from kafka.partitioner.default import murmur2 as kafkas_murmur2
from tidelog.client.partitioner import murmur2, partition_of


@given(st.binary(max_size=300))
def test_the_hash_is_that_of_kafkas_partitioner(key: bytes) -> None:
    assert murmur2(key) == kafkas_murmur2(key) & 0xFFFFFFFF


@given(st.binary(max_size=50), st.integers(1, 10_000))
def test_a_key_has_the_partition_that_kafka_gives_it(key: bytes, partitions: int) -> None:
    assert partition_of(key, partitions) == (kafkas_murmur2(key) & 0x7FFFFFFF) % partitions


def test_known_keys_keep_their_partitions() -> None:
    assert [murmur2(key) for key in (b"21", b"foobar", b"a-little-bit-long-string", b"")] == [
        -973932308 & 0xFFFFFFFF, -790332482 & 0xFFFFFFFF, -985981536 & 0xFFFFFFFF, 275646681,
    ]  # fmt: skip
