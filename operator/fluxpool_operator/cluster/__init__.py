"""The Kubernetes API: a client for plain objects, their paths, and Event objects.

Owns requests and their errors. `reconcile` decides when and what is requested.
"""

from fluxpool_operator.cluster.client import ClusterClient, ClusterError, ClusterUnreachableError, connect
from fluxpool_operator.cluster.objects import KindPath, child_path

__all__ = [
    "ClusterClient",
    "ClusterError",
    "ClusterUnreachableError",
    "KindPath",
    "child_path",
    "connect",
]
