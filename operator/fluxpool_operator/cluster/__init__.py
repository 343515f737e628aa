"""The operator's side of the Kubernetes API: one client for plain objects, and what is asked of it.

Owns requests and their errors. Must not know what a pool should be, nor when anything is asked.
"""

from fluxpool_operator.cluster.client import ClusterClient, ClusterError, ClusterUnreachableError, connect
from fluxpool_operator.cluster.objects import KindPath, child_path, pool_path

__all__ = [
    "ClusterClient",
    "ClusterError",
    "ClusterUnreachableError",
    "KindPath",
    "child_path",
    "connect",
    "pool_path",
]
