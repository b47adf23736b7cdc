"""A broker that does nothing: `python -m benchmarks.echo_broker` prints its address. It shows what the client alone can do.

Every append is committed at once and thrown away; every partition holds 64-bit many records of 100 bytes.
"""

import asyncio
import struct
import sys
from typing import Any

import grpc
import grpc.aio
from tidelog.proto.v1 import log_pb2, log_pb2_grpc
from tidelog.records.codec import encode_many

RECORD_BYTES = 100
_COUNT = struct.Struct(">i")
_COUNT_AT = 57
_RECORDS = 256 * 1024 // (RECORD_BYTES + 9)


class EchoBroker(log_pb2_grpc.LogServicer):
    def __init__(self) -> None:
        self._ends: dict[tuple[str, int], int] = {}
        self._batch = bytearray(encode_many([b"x" * RECORD_BYTES] * _RECORDS, timestamps_ms=1))

    async def GetMetadata(self, request: log_pb2.GetMetadataRequest, context: Any) -> log_pb2.GetMetadataResponse:
        return log_pb2.GetMetadataResponse(topics=[log_pb2.GetMetadataResponse.Topic(name=name, partitions=12) for name in request.topics])

    async def InitProducer(self, request: log_pb2.InitProducerRequest, context: Any) -> log_pb2.InitProducerResponse:
        return log_pb2.InitProducerResponse(producer_id=1)

    async def ListOffsets(self, request: log_pb2.ListOffsetsRequest, context: Any) -> log_pb2.ListOffsetsResponse:
        answer = log_pb2.ListOffsetsResponse.Answer
        return log_pb2.ListOffsetsResponse(answers=[answer(partition=query.partition, offset=0) for query in request.queries])

    async def Produce(self, requests: object, context: Any) -> None:
        while (message := await context.read()) is not grpc.aio.EOF:
            results = []
            for append in message.appends:
                place = (append.topic, append.partition)
                base = self._ends.get(place, 0)
                self._ends[place] = base + _COUNT.unpack_from(append.batches, _COUNT_AT)[0]
                results.append(log_pb2.ProduceResult(request_id=append.request_id, base_offset=base, next_offset=self._ends[place]))
            await context.write(log_pb2.ProduceResponse(results=results))

    async def Consume(self, requests: object, context: Any) -> None:
        credit = 0
        offsets: dict[int, int] = {}
        read = asyncio.ensure_future(context.read())
        while True:
            if read.done() or credit <= 0 or not offsets:
                request = await read
                if request is grpc.aio.EOF:
                    return
                credit += request.credit_bytes
                offsets |= {add.subscription_id: add.start.offset for add in request.add}
                read = asyncio.ensure_future(context.read())
                continue
            for subscription_id, offset in offsets.items():
                struct.pack_into(">q", self._batch, 0, offset)
                offsets[subscription_id] = offset + _RECORDS
                batches = log_pb2.Batches(
                    subscription_id=subscription_id, base_offset=offset, next_offset=offset + _RECORDS, batches=bytes(self._batch)
                )
                await context.write(log_pb2.ConsumeResponse(batches=batches))
                credit -= len(self._batch)


async def _serve() -> None:
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 64 << 20)])
    log_pb2_grpc.add_LogServicer_to_server(EchoBroker(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await asyncio.to_thread(sys.stdin.read)  # until whoever started it closes the pipe, or dies
    await server.stop(None)


if __name__ == "__main__":
    asyncio.run(_serve())
