"""A node agent that runs bound pods as local processes; it knows the Kubernetes API, but not the programs of pods.

`ProcessNode` is the agent. A pod's way through it: `admission` (supported fields), `volumes`, `environment`,
`container_loop` (attempts and restarts), `container` and `shim` (the processes), `probes`, `status`; `pod_worker` puts
them in order.
"""

from kit.process_node.container import IsolationUnavailableError, StopScope
from kit.process_node.container_loop import NodePolicy
from kit.process_node.environment import ProcessImage
from kit.process_node.node import ProcessNode

__all__ = ["IsolationUnavailableError", "NodePolicy", "ProcessImage", "ProcessNode", "StopScope"]
