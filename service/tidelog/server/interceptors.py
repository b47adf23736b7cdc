"""What happens to every call, whatever it asks: authentication, a time limit, errors made presentable, figures, telemetry."""

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import grpc

from tidelog.errors import OutcomeUnknown, TidelogError
from tidelog.metrics import Metrics
from tidelog.server import wire
from tidelog.server.callers import called_by
from tidelog.server.security import Gate
from tidelog.telemetry import get_logger

Context = grpc.aio.ServicerContext[Any, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_log = get_logger(__name__)


class Calls(grpc.aio.ServerInterceptor):
    """Wraps each method once; the wrapped handler serves all of its calls."""

    def __init__(self, gate: Gate, metrics: Metrics, *, unary_timeout_ms: int) -> None:
        self._gate = gate
        self._metrics = metrics
        self._unary_timeout_s = unary_timeout_ms / 1000
        self._wrapped: dict[str, Handler] = {}

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable["Handler | None"]], handler_call_details: grpc.HandlerCallDetails
    ) -> "Handler | None":
        """Return the wrapped handler; None for a method that does not exist."""
        method = handler_call_details.method
        wrapped = self._wrapped.get(method)
        if wrapped is None:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None  # gRPC answers UNIMPLEMENTED
            wrapped = self._wrapped[method] = self._wrap(method, handler)
        return wrapped

    def _wrap(self, method: str, handler: Handler) -> Handler:
        # A request that cannot be read is an error like any other; gRPC would tell of it in words of its own.
        read = wire.DESERIALIZERS.get(method, handler.request_deserializer)
        assert read is not None
        write = {"response_serializer": wire.serialized}
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(self._unary(method, handler.unary_unary, read), **write)
        if handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(self._stream(method, handler.unary_stream, read), **write)
        assert handler.stream_stream is not None  # no method here takes a stream and answers once
        return grpc.stream_stream_rpc_method_handler(self._stream(method, handler.stream_stream), request_deserializer=read, **write)

    def _unary(self, method: str, behaviour: Callable[..., Any], read: Callable[[bytes], Any]) -> Callable[..., Any]:
        async def answer(data: bytes, context: Context) -> object:
            began = time.perf_counter()
            async with self._call(method, context):
                request = read(data)
                try:
                    async with asyncio.timeout(self._unary_timeout_s):
                        response = await behaviour(request, context)
                except TimeoutError:
                    raise OutcomeUnknown(f"{method} did not end within {self._unary_timeout_s:g} s; it may still take effect") from None
                self._metrics.grpc_call_seconds.labels(method).observe(time.perf_counter() - began)
            return response

        return answer

    def _stream(self, method: str, behaviour: Callable[..., Any], read: Callable[[bytes], Any] | None = None) -> Callable[..., Any]:
        is_generator = inspect.isasyncgenfunction(behaviour)

        async def answer(requests: Any, context: Context) -> None:
            async with self._call(method, context):
                if read is not None:  # a single one
                    requests = read(requests)
                if is_generator:
                    async for response in behaviour(requests, context):
                        await context.write(response)
                else:
                    await behaviour(requests, context)

        return answer

    @asynccontextmanager
    async def _call(self, method: str, context: Context) -> AsyncIterator[None]:
        code = grpc.StatusCode.OK
        self._metrics.grpc_open_calls.labels(method).inc()
        try:
            called_by(self._gate.admit(method, context))
            yield
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED
            raise
        except grpc.aio.AbortError:  # already told to the client
            code = _code_of(context)
            raise
        except Exception as error:  # noqa: BLE001 - the edge: nothing from below may reach a client as it is
            if not isinstance(error, TidelogError):
                _log.error("call_failed_unexpectedly", method=method, exc_info=error)
            shown = wire.known(error)
            code = wire.status_code(shown)
            await context.abort(code, wire.text(shown), ((wire.STATUS_DETAILS, wire.status_details(shown)),))
        finally:
            self._metrics.grpc_open_calls.labels(method).dec()
            self._metrics.grpc_calls.labels(method, code.name).inc()
            _log.debug("call_ended", method=method, code=code.name, peer=context.peer())


def _code_of(context: Context) -> grpc.StatusCode:
    found: object = context.code()  # a number, whatever its type says
    return next((code for code in grpc.StatusCode if found in (code, code.value[0])), grpc.StatusCode.UNKNOWN)
