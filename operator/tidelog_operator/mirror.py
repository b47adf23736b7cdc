"""A copy of all objects of one kind, kept up by a watch; whoever wants to know hears of each change."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing

from tidelog.randomness import Random
from tidelog.telemetry import get_logger

from tidelog_operator.kubernetes_api import Expired, KubernetesApi, Refused, Unreachable
from tidelog_operator.metrics import OperatorMetrics, Watched
from tidelog_operator.observed import Manifest

Key = tuple[str, str]
"""Namespace and name."""
_RETRY_BASE_S = 0.5
_RETRY_MOST_S = 15.0
_log = get_logger(__name__)


class Mirror:
    """Objects of one kind, in one namespace or (empty) in all, as of a moment ago."""

    def __init__(
        self,
        api: KubernetesApi,
        kind: Watched,
        namespace: str,
        *,
        labels: str = "",
        changed: Callable[[Manifest], None],
        metrics: OperatorMetrics,
        chance: Random,
    ) -> None:
        self.kind: Watched = kind
        self.objects: dict[Key, Manifest] = {}
        self.listed = asyncio.Event()
        """Set once everything is known."""
        self._api = api
        self._namespace = namespace
        self._labels = labels
        self._changed = changed
        self._ended = metrics.watches_ended[kind]
        self._chance = chance

    async def run(self) -> None:
        """List, watch, and list again where a watch cannot go on; until cancelled."""
        wait_s = _RETRY_BASE_S
        version = ""
        while True:
            try:
                version = version or await self._list()
                wait_s = _RETRY_BASE_S
                version = await self._watch(version)
                self._ended["over"].inc()
            except Expired:
                self._ended["expired"].inc()
                version = ""
            except (Refused, Unreachable) as error:
                self._ended["failed"].inc()
                _log.warning("watch_failed", kind=self.kind, namespace=self._namespace, problem=str(error))
                await asyncio.sleep(self._chance.uniform(wait_s / 2, wait_s))
                wait_s = min(2 * wait_s, _RETRY_MOST_S)
                version = ""  # what went by meanwhile is found by listing

    async def _list(self) -> str:
        found, version = await self._api.listed(self.kind, self._namespace, self._labels)
        before, self.objects = self.objects, {_key(each): each for each in found}
        self.listed.set()
        for key in before.keys() | self.objects.keys():
            new, old = self.objects.get(key), before.get(key)
            if new is None or old is None or new["metadata"]["resourceVersion"] != old["metadata"]["resourceVersion"]:
                self._changed(new or old or {})
        return version

    async def _watch(self, version: str) -> str:
        """Follow until the API server ends the watch; return the version up to which everything is known."""
        async with aclosing(self._api.watch(self.kind, self._namespace, version, self._labels)) as events:
            async for event, manifest in events:
                version = str(manifest["metadata"]["resourceVersion"])
                if event == "DELETED":
                    self.objects.pop(_key(manifest), None)
                elif event != "BOOKMARK":
                    self.objects[_key(manifest)] = manifest
                if event != "BOOKMARK":
                    self._changed(manifest)
        return version


def _key(manifest: Manifest) -> Key:
    return manifest["metadata"]["namespace"], manifest["metadata"]["name"]
