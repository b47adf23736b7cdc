"""Records to bytes and back, against the compiled codec alone."""

import random

from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from tidelog.records.batch import scan
from tidelog.records.codec import Record, decode, decode_buffers, decode_values, encode, encode_many

from benchmarks.measure import Measure, seconds

COUNT = 10_000


def run(repeats: int) -> list[Measure]:
    chance = random.Random(1)
    uniform = [chance.randbytes(100) for _ in range(COUNT)]
    mixed = [chance.randbytes(chance.randrange(50, 151)) for _ in range(COUNT)]
    records = [Record(value, timestamp_ms=1000) for value in uniform]
    batch, other = encode_many(uniform), encode_many(mixed)

    def codec_encodes() -> None:
        builder = DefaultRecordBatchBuilder(
            magic=2, compression_type=0, is_transactional=0, producer_id=-1, producer_epoch=-1, base_sequence=-1, batch_size=1 << 30
        )
        for index, value in enumerate(uniform):
            builder.append(index, 1000, None, value, [])
        builder.build()

    encoding, decoding = (
        COUNT / seconds(work, repeats) / 1e6 for work in (codec_encodes, lambda: [r.value for r in DefaultRecordBatch(batch)])
    )

    def measure(name: str, work: object, floor: float, aim: str = "") -> Measure:
        assert callable(work)
        return Measure(name, COUNT / seconds(work, repeats) / 1e6, "M records/s", floor, "compiled codec alone", aim)

    return [
        measure("encode", lambda: encode(records), encoding),
        measure("encode_many, uniform 100 bytes", lambda: encode_many(uniform), encoding, "≥ 8"),
        measure("encode_many, 50 to 150 bytes", lambda: encode_many(mixed), encoding, "≥ 3"),
        measure("decode", lambda: decode(batch), decoding),
        measure("decode_values, uniform", lambda: decode_values(batch), decoding, "≥ 3"),
        measure("decode_values, 50 to 150 bytes", lambda: decode_values(other), decoding),
        measure("decode_buffers, uniform", lambda: decode_buffers(batch), decoding, "≥ 5"),
        measure("decode_buffers, 50 to 150 bytes", lambda: decode_buffers(other), decoding),
        Measure("scan of 1 MB batches", len(batch) / seconds(lambda: scan(batch), repeats) / 1e9, "GB/s"),
    ]
