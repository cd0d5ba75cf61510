"""The connection to a Ray cluster, and how many workers it has room for. This module starts no worker."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterable, Mapping
from typing import Any

from clipbatch.config import Settings
from clipbatch.errors import InputError
from clipbatch.workers.devices import workers_per_gpu

# How long the cluster's address may take to accept a connection.
_CONNECT_TIMEOUT_S = 10.0
# The resources of a node by name, such as CPU and GPU, as `ray start` has announced them.
Node = Mapping[str, float]


class RayCluster:
    """A connection to a Ray cluster.

    `ray.init` chooses the cluster: that of RAY_ADDRESS, or one that runs on this machine, or one that it starts here
    and that ends with the connection. If this process is connected already, that connection is used.

    Raises: InputError if Ray is not installed, or the cluster cannot be reached or has no room for a worker.
    """

    def __init__(self, settings: Settings) -> None:
        launch, device = settings.launch, settings.model.device
        if device.startswith("cuda:"):
            raise InputError(f"--device {device}: Ray chooses the GPU of each worker: give --device cuda")
        if launch.gpus is not None:
            raise InputError(
                f"--gpus {launch.gpus} names GPUs of this machine, but --engine ray uses those of the cluster: leave "
                "it out; --workers sets how many GPUs are used"
            )
        if launch.profile is not None:
            raise InputError(
                f"--profile {launch.profile} traces workers on this machine, but those of --engine ray run on nodes of "
                "the cluster: leave it out"
            )
        self._closing = contextlib.ExitStack()
        self.ray = _connect(self._closing)
        nodes = self.nodes().values()
        # Whether each worker gets a GPU, or with `share_gpus` a part of one.
        self.gpus = device == "cuda" or (device == "auto" and any(node.get("GPU") for node in nodes))
        self.workers_per_gpu = 1
        # How many cores each worker requests.
        self.cores = launch.cpus_per_worker or default_cores(nodes, gpus=self.gpus)
        self._settings = settings
        if not (launch.workers or self.room()):
            self.close()
            raise InputError(
                f"the Ray cluster has no node with {self.wants} at present: start one, or give --workers N, which "
                "makes a cluster that scales by itself start nodes"
            )

    def share_gpus(self, gflop: float) -> None:
        """Let several workers share each GPU and its cores, as `devices.workers_per_gpu` says for a model's cost."""
        if self.gpus:
            self.workers_per_gpu = workers_per_gpu(self._settings, gflop, self.cores)
            if self._settings.launch.cpus_per_worker is None:
                self.cores = max(1, self.cores // self.workers_per_gpu)

    @property
    def wants(self) -> str:
        """The resources that a worker requests, in words."""
        cores = f"{self.cores} core{'s' if self.cores != 1 else ''}"
        gpu = "a GPU" if self.workers_per_gpu == 1 else f"1/{self.workers_per_gpu} of a GPU"
        return f"{gpu} and {cores}" if self.gpus else cores

    def nodes(self) -> dict[str, Node]:
        """The resources of each node that is alive, by Ray's node ID."""
        return {node["NodeID"]: node["Resources"] for node in self.ray.nodes() if node["Alive"]}

    def room(self) -> int:
        """How many workers fit on all nodes together."""
        return sum(self.slots(node) for node in self.nodes().values())

    def slots(self, node: Node) -> int:
        """How many workers fit on `node` if nothing else runs there."""
        return slots(node, self.cores, gpus=self.gpus, workers_per_gpu=self.workers_per_gpu)

    def close(self) -> None:
        self._closing.close()


def default_cores(nodes: Iterable[Node], *, gpus: bool) -> int:
    """How many cores each worker requests: all cores of the smallest node. With GPUs: a node's cores divided by its
    GPUs, on the node where that is least."""
    if gpus:
        return min((int(node.get("CPU", 0) // node["GPU"]) for node in nodes if node.get("GPU")), default=1)
    return min((int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1), default=1)


def slots(node: Node, cores: int, *, gpus: bool, workers_per_gpu: int = 1) -> int:
    """How many workers fit on `node` if each uses `cores` cores and, with `gpus`, its part of a GPU."""
    limits = [node.get("CPU", 0) // cores] if cores else []
    return int(min([*limits, node.get("GPU", 0) * workers_per_gpu] if gpus else limits))


def _connect(closing: contextlib.ExitStack) -> Any:
    """The connected `ray` module. A connection that is made here is ended by `closing`."""
    try:
        import ray
    except ImportError as error:
        raise InputError("--engine ray needs Ray, which is not installed here: pip install 'clipbatch[ray]'") from error
    if ray.is_initialized():
        return ray
    handler, terminated = signal.getsignal(signal.SIGTERM), False
    try:
        _check_it_answers()
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except SystemExit:  # Ray's own handler of SIGTERM raises it
        terminated = True
    except (OSError, RuntimeError, ValueError) as error:
        address = os.environ.get("RAY_ADDRESS")
        where = f"of RAY_ADDRESS={address}" if address else "that this machine knows of, or start one here"
        reason = " ".join(str(error).split())
        raise InputError(
            f"--engine ray cannot reach the Ray cluster {where} ({reason}): start it (ray start --head), or set "
            "RAY_ADDRESS to the host:port of a running cluster"
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler or signal.SIG_DFL)
    if terminated:
        signal.raise_signal(signal.SIGTERM)
    # Ray prints to standard output what happens to nodes.
    closing.enter_context(contextlib.redirect_stdout(sys.stderr))
    closing.callback(ray.shutdown)
    return ray


def _check_it_answers() -> None:
    """Fail early if nothing listens at RAY_ADDRESS: Ray itself would keep trying for minutes."""
    if match := re.fullmatch(r"(?:ray://)?(.+):([0-9]+)", os.environ.get("RAY_ADDRESS", "")):
        socket.create_connection((match[1], int(match[2])), timeout=_CONNECT_TIMEOUT_S).close()
