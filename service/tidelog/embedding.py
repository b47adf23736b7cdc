"""A whole service inside this process, for other people's tests: everything in memory, gone when it ends.

It runs on an event loop of its own in a thread of its own, so it may be used from any code, asynchronous or not.
"""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from tidelog.errors import NotReady

_START_SECONDS = 30.0


@contextmanager
def embedded(*, data_dir: Path | str | None = None, port: int = 0, **settings: object) -> Iterator[str]:
    """Run a service while the context is open, and give its address, HOST:PORT, for `tidelog.connect`.

    `data_dir` keeps its data in a directory instead of memory; `settings` are those of a broker (docs/settings.md). Topics
    are made on first use. Needs the extra `server`. Raises InvalidSettings, and whatever keeps the service from starting or
    ends it before its time.
    """
    from tidelog.server.settings import load_settings

    places = {"bucket": "memory://", "metadata": "sqlite://"}
    if data_dir is not None:
        root = Path(data_dir).absolute()
        root.mkdir(parents=True, exist_ok=True)
        places = {"bucket": f"file://{quote(str(root / 'objects'))}", "metadata": f"sqlite://{quote(str(root / 'metadata.db'))}"}
    chosen: dict[str, object] = {
        "broker_id": "embedded",
        "listen": f"127.0.0.1:{port}",
        "metrics_listen": "",
        "auto_create_topics": True,
        "drain_propagation_ms": 0,
        **places,
        **settings,
    }
    loaded = load_settings(flags=chosen, config_file=None, environ={}, flags_are="argument", called=str)
    started: Future[str] = Future()
    stop: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
    failures: list[BaseException] = []
    thread = threading.Thread(target=_serve, args=(loaded.settings, started, stop, failures), name="tidelog-embedded", daemon=True)
    thread.start()
    try:
        try:
            address = started.result(timeout=_START_SECONDS)
        except TimeoutError:
            raise NotReady(f"the embedded service was not ready within {_START_SECONDS:g} s; look at what it prints") from None
        yield address
    finally:
        if stop.done():
            loop, event = stop.result()
            with suppress(RuntimeError):  # it has ended by itself
                loop.call_soon_threadsafe(event.set)
        thread.join()
    if failures:
        raise failures[0]


def _serve(
    settings: object,
    started: "Future[str]",
    stop: "Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]]",
    failures: list[BaseException],
) -> None:
    from tidelog.config import Settings
    from tidelog.server.process import serve

    assert isinstance(settings, Settings)

    async def run() -> None:
        event = asyncio.Event()
        stop.set_result((asyncio.get_running_loop(), event))
        await serve(settings, greet=lambda address, _: started.set_result(address), stopping=event)
        if not started.done():
            started.set_exception(RuntimeError("the service ended before it was ready"))

    try:
        asyncio.run(run())
    except BaseException as error:  # noqa: BLE001  it belongs to whoever asked for the service
        if not started.done():
            started.set_exception(error)
        else:
            failures.append(error)
