"""A whole Kubernetes for tests: API server, controllers, kubelets."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.operator.kube.http import ApiServer
from tests.operator.kube.kubelet import Kubelet, Start
from tests.operator.kube.store import Store
from tests.operator.kube.workloads import Workloads

PAUSE = "registry.k8s.io/pause:3.10"


@dataclass(slots=True)
class Kubernetes:
    """What runs."""

    url: str
    store: Store
    api: ApiServer
    workloads: Workloads
    kubelet: Kubelet
    folder: Path

    def kubeconfig(self, token: str = "") -> Path:
        """Write a kubeconfig for whoever has this token; empty: for somebody who may do everything."""
        path = self.folder / f"kubeconfig-{token or 'admin'}"
        user = {"token": token} if token else {}
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": "tests",
            "clusters": [{"name": "tests", "cluster": {"server": self.url}}],
            "users": [{"name": "tests", "user": user}],
            "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "tests"}}],
        }  # fmt: skip
        path.write_text(yaml.safe_dump(config))
        return path


async def pause(_variables: Mapping[str, str], _log: Path) -> tuple[int, "asyncio.Future[int]"]:
    """The image of a pod that does nothing."""
    process = await asyncio.create_subprocess_exec("sleep", "1000")
    return process.pid, asyncio.ensure_future(process.wait())


@asynccontextmanager
async def kubernetes(folder: Path, images: Mapping[str, Start] | None = None) -> AsyncIterator[Kubernetes]:
    """Run one; nothing of it is left behind."""
    store = Store()
    api, workloads = ApiServer(store), Workloads(store)
    kubelet = Kubelet(store, {PAUSE: pause, **(images or {})}, folder)
    async with api.listening() as url:
        running = [asyncio.create_task(workloads.run()), asyncio.create_task(kubelet.run())]
        try:
            yield Kubernetes(url, store, api, workloads, kubelet, folder)
        finally:
            for task in reversed(running):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
