"""A polling scaler for comparison: it reads the same backlog at the pool's interval only.

Owns a separate Deployment. Readings and plan are the operator's, so that only the trigger differs.
"""

import asyncio
from typing import Final

from fluxpool_contract.kafka.connection import KafkaConnection
from fluxpool_operator.api import FluxWorkerPool, scaling_config
from fluxpool_operator.backlog import BacklogHub, lane_targets_of
from fluxpool_operator.children import worker_settings
from fluxpool_operator.planning import PlanState, Snapshot, plan
from fluxpool_operator.reconcile.kafka.lag_watch import LagWatch
from kit.cluster.kubernetes_api import Body, KubernetesApi

DEPLOYMENT: Final = "polling"


async def scale_by_polling(api: KubernetesApi, pool: FluxWorkerPool, *, bootstrap_servers: str) -> None:
    """Keep a Deployment at the planned size of the pool, until cancelled; errors end it."""
    deployments = f"/apis/apps/v1/namespaces/{pool.namespace}/deployments"
    await api.create(deployments, _deployment(pool))
    interval_seconds, config = pool.spec.scaling.poll_interval_seconds, scaling_config(pool.spec)
    replicas, state, elapsed_seconds = 0, PlanState(), 0.0
    async with BacklogHub() as hub:
        lag = LagWatch(hub, key=DEPLOYMENT, wake=lambda: None)
        connection = KafkaConnection(bootstrap_servers=(bootstrap_servers,))
        lag.configure(connection, lane_targets_of(worker_settings(pool)), expired_before={})
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            await lag.read(is_burst=False)
            lanes = lag.observe()
            made = plan(
                Snapshot(lanes=lanes, current_replicas=replicas, elapsed_seconds=elapsed_seconds, state=state), config
            )
            if made.replicas != replicas:
                await api.patch(f"{deployments}/{DEPLOYMENT}/scale", {"spec": {"replicas": made.replicas}})
            replicas, state, elapsed_seconds = made.replicas, made.state, float(interval_seconds)
            due += interval_seconds
            await asyncio.sleep(due - loop.time())


def _deployment(pool: FluxWorkerPool) -> Body:
    labels = {"app": DEPLOYMENT}
    container = {"name": "worker", "image": pool.spec.worker.image, "resources": {"limits": {"nvidia.com/gpu": "1"}}}
    return {
        "metadata": {"name": DEPLOYMENT},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
        },
    }
