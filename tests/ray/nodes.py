"""A Ray cluster on this machine, in a process of its own, so that pytest imports no Ray: `python nodes.py`.

Prints the addresses of the cluster and of its dashboard. A line on standard input asks for a change, and is answered by
one: `add IP` for a node of one core, `add IP gpu` for one that says it has a GPU, `kill IP` to end a node as a crash
would. The end of the input is the cluster's.
"""

import sys
from typing import Any

from ray.cluster_utils import Cluster

# Addresses are on the loopback device, all of which Ray takes for those of other machines, but for 127.0.0.1.
HEAD = "127.0.0.2"


def main() -> None:
    small: dict[str, Any] = {"object_store_memory": 80 * 2**20}
    head = {"num_cpus": 0, "node_ip_address": HEAD, "include_dashboard": True, "dashboard_host": HEAD}
    cluster = Cluster(initialize_head=True, head_node_args=small | head)
    nodes: dict[str, Any] = {}
    try:
        print(cluster.address, cluster.webui_url, flush=True)
        for line in sys.stdin:
            what, address, *more = line.split()
            if what == "add":
                nodes[address] = cluster.add_node(**small, num_cpus=1, num_gpus=len(more), node_ip_address=address)
            else:
                cluster.remove_node(nodes.pop(address), allow_graceful=False)
            print("done", flush=True)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
