"""Tidelog: a commit log on object storage.

    async with tidelog.connect("localhost:9595") as log: ...

Importing the package imports nothing else: the parts load when they are used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tidelog.client.acks import Ack as Ack
    from tidelog.client.acks import Acks as Acks
    from tidelog.client.admin import ClusterDescription as ClusterDescription
    from tidelog.client.admin import TopicDescription as TopicDescription
    from tidelog.client.client import Log as Log
    from tidelog.client.client import connect as connect
    from tidelog.client.consumer import ConsumedBatch as ConsumedBatch
    from tidelog.client.consumer import ConsumedRecord as ConsumedRecord
    from tidelog.client.producer import Producer as Producer
    from tidelog.embedding import embedded as embedded
    from tidelog.errors import TidelogError as TidelogError

_HOMES = {
    "Ack": "tidelog.client.acks",
    "Acks": "tidelog.client.acks",
    "ClusterDescription": "tidelog.client.admin",
    "ConsumedBatch": "tidelog.client.consumer",
    "ConsumedRecord": "tidelog.client.consumer",
    "Log": "tidelog.client.client",
    "Producer": "tidelog.client.producer",
    "TidelogError": "tidelog.errors",
    "TopicDescription": "tidelog.client.admin",
    "connect": "tidelog.client.client",
    "embedded": "tidelog.embedding",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tidelog' has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
