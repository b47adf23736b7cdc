"""Runs pods as processes of this machine: variables, probes, restarts, SIGTERM and grace, the loss of a node.

A pod has no network of its own here, but an address of its own: 127.0.0.x. Where its container would listen on every address, it is
told to listen on that one.
"""

import asyncio
import itertools
import os
import re
import signal
from base64 import b64decode
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tests.operator.kube.store import BY_KIND, Failure, Object, Store, now

Start = Callable[[Mapping[str, str], Path], Awaitable[tuple[int, "asyncio.Future[int]"]]]
"""Starts an image with these variables and this log; returns the process's id, and the future of its exit code."""
_BY = "kubelet"
_LOOKS_EVERY_S = 0.1
_BACK_OFF_S = 1.0
_UNSEEN_S = 1.5
"""A node that has said nothing for so long is not ready; after twice that its pods are deleted. Real ones: 40 s, 5 min."""


@dataclass(slots=True)
class _Running:
    """A pod's container."""

    address: str
    task: "asyncio.Task[None]"
    pid: int = 0
    ended: "asyncio.Future[int] | None" = None
    restarts: int = 0
    last_state: Object = field(default_factory=dict)
    signalled: bool = False


class Kubelet:
    """All nodes' kubelets in one."""

    def __init__(self, store: Store, images: dict[str, Start], folder: Path) -> None:
        self.store = store
        self.images = images
        self.folder = folder
        self.lost: set[str] = set()
        """Nodes that are gone: nobody tells of their pods any more."""
        self.logs: list[Path] = []
        self._pods: dict[str, _Running] = {}
        self._addresses = itertools.count(16)
        self._group: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Look after pods until cancelled; then end all their processes at once."""
        try:
            async with asyncio.TaskGroup() as self._group:
                while True:
                    changed = self.store.changed
                    for pod in self.store.all("Pod", where=lambda each: bool(each["spec"].get("nodeName"))):
                        uid = pod["metadata"]["uid"]
                        if uid not in self._pods and pod["spec"]["nodeName"] not in self.lost:
                            address = f"127.0.{os.getpid() % 200 + 10}.{next(self._addresses)}"
                            task = self._group.create_task(self._tend(pod["metadata"]["namespace"], pod["metadata"]["name"], uid))
                            self._pods[uid] = _Running(address, task)
                    await changed.wait()
        finally:
            for running in self._pods.values():
                if running.ended is not None and not running.ended.done():
                    os.kill(running.pid, signal.SIGKILL)
            await asyncio.gather(*(each.ended for each in self._pods.values() if each.ended is not None))

    def pid(self, uid: str) -> int:
        """Return the process id of a pod."""
        return self._pods[uid].pid

    async def lose(self, node: str) -> None:
        """End a node: its processes are gone at once, its pods' objects later."""
        self.lost.add(node)
        pods = self.store.all("Pod", where=lambda each: each["spec"].get("nodeName") == node)
        for pod in pods:
            running = self._pods[pod["metadata"]["uid"]]
            running.task.cancel()
            if running.ended is not None and not running.ended.done():
                os.kill(running.pid, signal.SIGKILL)
                await running.ended
        assert self._group is not None
        self._group.create_task(self._forget(pods))

    async def _forget(self, pods: list[Object]) -> None:
        """What the node controller does."""
        await asyncio.sleep(_UNSEEN_S)
        for pod in pods:
            self._report(pod, {"conditions": [_condition("Ready", ok=False, reason="NodeNotReady")]})
        await asyncio.sleep(_UNSEEN_S)
        for pod in pods:
            with suppress(Failure):
                metadata = pod["metadata"]
                self.store.delete(BY_KIND["Pod"], metadata["namespace"], metadata["name"], options={"gracePeriodSeconds": 0})

    # ---- one pod

    async def _tend(self, namespace: str, name: str, uid: str) -> None:
        running = self._pods[uid]
        async with aiohttp.ClientSession() as session:
            while (pod := self._current(namespace, name, uid)) is not None:
                if "deletionTimestamp" in pod["metadata"]:
                    await self._end(pod, running, session)
                    return
                if running.ended is None:
                    await self._begin(pod, running)
                elif running.ended.done():
                    await self._ended(pod, running)
                else:
                    await self._probe(pod, running, session)
                await asyncio.sleep(_LOOKS_EVERY_S)
        await self._kill(running)

    def _current(self, namespace: str, name: str, uid: str) -> Object | None:
        pod = self.store.find("Pod", namespace, name)
        return pod if pod is not None and pod["metadata"]["uid"] == uid else None

    async def _begin(self, pod: Object, running: _Running) -> None:
        container = pod["spec"]["containers"][0]
        start = self.images.get(container["image"])
        if start is None:
            message = f'Back-off pulling image "{container["image"]}": not found'
            self._waits(pod, running, "ImagePullBackOff", message)
            return
        try:
            variables = self._variables(pod, container, running.address)
        except KeyError as missing:
            self._waits(pod, running, "CreateContainerConfigError", f"secret {missing} not found")
            return
        log = self.folder / f"{pod['metadata']['name']}.log"
        if log not in self.logs:
            self.logs.append(log)
        running.pid, running.ended = await start(variables, log)
        self._runs(pod, running, ready=False)

    def _variables(self, pod: Object, container: Object, address: str) -> dict[str, str]:
        """Return what the container's variables are worth. Raises KeyError for a Secret that is missing."""
        found: dict[str, str] = {}
        for each in container.get("env", ()):
            source = each.get("valueFrom", {})
            if "secretKeyRef" in source:
                of, key = source["secretKeyRef"]["name"], source["secretKeyRef"]["key"]
                secret = self.store.find("Secret", pod["metadata"]["namespace"], of)
                if secret is None:
                    raise KeyError(of)
                found[each["name"]] = b64decode(secret["data"][key]).decode()
            elif "fieldRef" in source:
                found[each["name"]] = _field(pod, source["fieldRef"]["fieldPath"], address)
            else:
                text = re.sub(r"\$\((\w+)\)", lambda name: found.get(name[1], name[0]), each.get("value", ""))
                found[each["name"]] = text.replace("0.0.0.0:", f"{address}:")
        return self._with_files(pod, container, found)

    def _with_files(self, pod: Object, container: Object, variables: dict[str, str]) -> dict[str, str]:
        """Write the Secrets that are mounted, and have variables name where they are. Raises KeyError for one that is missing."""
        secrets = {each["name"]: each["secret"]["secretName"] for each in pod["spec"].get("volumes", ()) if "secret" in each}
        for mount in container.get("volumeMounts", ()):
            if mount["name"] not in secrets:
                continue
            secret = self.store.find("Secret", pod["metadata"]["namespace"], secrets[mount["name"]])
            if secret is None:
                raise KeyError(secrets[mount["name"]])
            place = self.folder / pod["metadata"]["name"] / mount["name"]
            place.mkdir(parents=True, exist_ok=True)
            for key, value in secret["data"].items():
                (place / key).write_bytes(b64decode(value))
            variables = {name: value.replace(mount["mountPath"], str(place)) for name, value in variables.items()}
        return variables

    async def _ended(self, pod: Object, running: _Running) -> None:
        """Start it again after a while, as restartPolicy Always says."""
        assert running.ended is not None
        code = running.ended.result()
        log = self.folder / f"{pod['metadata']['name']}.log"
        words = log.read_text(errors="replace")[-2048:] if log.exists() else ""
        running.last_state = {
            "terminated": {"exitCode": code, "reason": "Error" if code else "Completed", "message": words if code else ""}
        }
        running.restarts += 1
        self._waits(pod, running, "CrashLoopBackOff", "back-off restarting failed container")
        running.ended = None
        await asyncio.sleep(_BACK_OFF_S)

    async def _probe(self, pod: Object, running: _Running, session: aiohttp.ClientSession) -> None:
        container = pod["spec"]["containers"][0]
        if "readinessProbe" not in container:
            self._runs(pod, running, ready=True)
            return
        probe = container["readinessProbe"]["httpGet"]
        port = next(each["containerPort"] for each in container["ports"] if each["name"] == probe["port"])
        try:
            async with session.get(f"http://{running.address}:{port}{probe['path']}", timeout=aiohttp.ClientTimeout(total=2)) as answer:
                self._runs(pod, running, ready=answer.status == 200)
        except (aiohttp.ClientError, OSError, TimeoutError):
            self._runs(pod, running, ready=False)

    async def _end(self, pod: Object, running: _Running, session: aiohttp.ClientSession) -> None:
        """SIGTERM, then SIGKILL once the grace is over; then the pod's object goes."""
        if running.ended is not None and not running.ended.done():
            os.kill(running.pid, signal.SIGTERM)
            loop = asyncio.get_running_loop()
            until = loop.time() + pod["metadata"]["deletionGracePeriodSeconds"]
            while not running.ended.done() and loop.time() < until:
                await asyncio.wait([running.ended], timeout=_LOOKS_EVERY_S)
                await self._probe(pod, running, session)
            await self._kill(running)
        with suppress(Failure):
            metadata = pod["metadata"]
            self.store.delete(BY_KIND["Pod"], metadata["namespace"], metadata["name"], options={"gracePeriodSeconds": 0})

    async def _kill(self, running: _Running) -> None:
        if running.ended is not None and not running.ended.done():
            os.kill(running.pid, signal.SIGKILL)
            await running.ended

    # ---- what it says of them

    def _waits(self, pod: Object, running: _Running, reason: str, message: str) -> None:
        state = {"waiting": {"reason": reason, "message": message}}
        self._report(pod, _status(pod, running, "Running" if running.restarts else "Pending", state, ready=False))

    def _runs(self, pod: Object, running: _Running, *, ready: bool) -> None:
        self._report(pod, _status(pod, running, "Running", {"running": {}}, ready=ready))

    def _report(self, pod: Object, status: Object) -> None:
        metadata = pod["metadata"]
        current = self._current(metadata["namespace"], metadata["name"], metadata["uid"])
        if current is None:
            return
        before = {each["type"]: each for each in current.get("status", {}).get("conditions", ())}
        for each in status["conditions"]:
            was = before.get(each["type"])
            each["lastTransitionTime"] = was["lastTransitionTime"] if was and was["status"] == each["status"] else now()
        self.store.merge(BY_KIND["Pod"], metadata["namespace"], metadata["name"], {"status": status}, manager=_BY, subresource="status")


def _status(pod: Object, running: _Running, phase: str, state: Object, *, ready: bool) -> Object:
    container = pod["spec"]["containers"][0]
    told: Object = {
        "name": container["name"], "image": container["image"], "ready": ready, "restartCount": running.restarts, "state": state,
        "lastState": running.last_state,
    }  # fmt: skip
    conditions = [_condition("PodScheduled", ok=True), _condition("Ready", ok=ready)]
    return {"phase": phase, "podIP": running.address, "containerStatuses": [told], "conditions": conditions}


def _condition(of: str, *, ok: bool, reason: str = "") -> dict[str, Any]:
    return {"type": of, "status": "True" if ok else "False"} | ({"reason": reason} if reason else {})


def _field(pod: Object, path: str, address: str) -> str:
    if path == "status.podIP":
        return address
    if found := re.fullmatch(r"metadata\.labels\['(.*)'\]", path):
        return str((pod["metadata"].get("labels") or {}).get(found[1], ""))
    return str(pod["metadata"][path.removeprefix("metadata.")])
