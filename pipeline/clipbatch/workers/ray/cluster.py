"""The connection to a Ray cluster, and how many workers it has room for. Starts no worker."""

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

_ANSWER_S = 10.0
# What a node has by name, such as CPU and GPU, as it was told when it was started.
Node = Mapping[str, float]


class RayCluster:
    """A connection, to the cluster of RAY_ADDRESS, or else to one that runs on this machine, or else to one that is
    started here and ends with the connection: `ray.init` decides. One that the process has already is used.

    Raises: InputError where Ray is not there, the cluster cannot be reached, or has no room for a worker.
    """

    def __init__(self, settings: Settings) -> None:
        launch, device = settings.launch, settings.model.device
        if device.startswith("cuda:"):
            raise InputError(f"--device {device}: which GPU a worker gets is for Ray to say: use --device cuda")
        if launch.gpus is not None:
            raise InputError(
                f"--gpus {launch.gpus} names those of this machine, and --engine ray uses the cluster's: leave it out; "
                "--workers says how many"
            )
        if launch.profile is not None:
            raise InputError(
                f"--profile {launch.profile} traces workers of this machine, and those of --engine ray run elsewhere: "
                "leave it out"
            )
        self._closing = contextlib.ExitStack()
        self.ray = _connect(self._closing)
        nodes = self.nodes().values()
        # Whether each worker gets a GPU.
        self.gpus = device == "cuda" or (device == "auto" and any(node.get("GPU") for node in nodes))
        # That each worker asks for.
        self.cores = launch.cpus_per_worker or default_cores(nodes, gpus=self.gpus)
        if not (launch.workers or self.room()):
            self.close()
            raise InputError(
                f"the Ray cluster has no node with {self.wants} now: start one, or give --workers N, for which a "
                "cluster that scales by itself starts nodes"
            )

    @property
    def wants(self) -> str:
        """What a worker asks for, in words."""
        cores = f"{self.cores} core{'s' if self.cores != 1 else ''}"
        return f"a GPU and {cores}" if self.gpus else cores

    def nodes(self) -> dict[str, Node]:
        """The nodes that live, by Ray's number."""
        return {node["NodeID"]: node["Resources"] for node in self.ray.nodes() if node["Alive"]}

    def room(self) -> int:
        """How many workers all nodes have room for."""
        return sum(self.slots(node) for node in self.nodes().values())

    def slots(self, node: Node) -> int:
        """How many workers `node` has room for, if nobody else uses it."""
        return slots(node, self.cores, gpus=self.gpus)

    def close(self) -> None:
        self._closing.close()


def default_cores(nodes: Iterable[Node], *, gpus: bool) -> int:
    """Cores that each worker asks for: all of the smallest node; with a GPU, its share of a node's, where that is
    smallest."""
    if gpus:
        return min((int(node.get("CPU", 0) // node["GPU"]) for node in nodes if node.get("GPU")), default=1)
    return min((int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1), default=1)


def slots(node: Node, cores: int, *, gpus: bool) -> int:
    """Workers that `node` has room for, if each takes `cores`, and a GPU or none."""
    limits = [node.get("CPU", 0) // cores] if cores else []
    return int(min([*limits, node.get("GPU", 0)] if gpus else limits))


def _connect(closing: contextlib.ExitStack) -> Any:
    """Ray, connected; closing: ends the connection, where it was made here."""
    try:
        import ray
    except ImportError as error:
        raise InputError("--engine ray needs Ray, which is not installed here: pip install 'clipbatch[ray]'") from error
    if ray.is_initialized():
        return ray
    before, ended = signal.getsignal(signal.SIGTERM), False
    try:
        _check_it_answers()
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except SystemExit:  # what Ray makes of SIGTERM
        ended = True
    except (OSError, RuntimeError, ValueError) as error:
        address = os.environ.get("RAY_ADDRESS")
        where = f"of RAY_ADDRESS={address}" if address else "that this machine knows of, or start one here"
        said = " ".join(str(error).split())
        raise InputError(
            f"--engine ray cannot reach the Ray cluster {where} ({said}): start it (ray start --head), or set "
            "RAY_ADDRESS to the host:port of one that runs"
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
    if ended:
        signal.raise_signal(signal.SIGTERM)
    closing.enter_context(contextlib.redirect_stdout(sys.stderr))  # to which Ray prints what happens to nodes
    closing.callback(ray.shutdown)
    return ray


def _check_it_answers() -> None:
    """Ray itself tries for minutes."""
    if match := re.fullmatch(r"(?:ray://)?(.+):([0-9]+)", os.environ.get("RAY_ADDRESS", "")):
        socket.create_connection((match[1], int(match[2])), timeout=_ANSWER_S).close()
