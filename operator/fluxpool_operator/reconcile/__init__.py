"""The controller: one loop per pool that observes, plans, applies and reports.

How a reconcile flows:

1. `handlers` (kopf) passes watch events to `child_cache` and `pool_tasks`; both wake the pool's `pool_loop`.
2. `pool_loop` decides when, and calls `pool_reconciler`, which owns the order of the rest.
3. `kafka` reads the pool's Secrets, connects and reads the lag; `claims` finds pools that share a consumer group.
4. `apply.scaler` plans the replicas and chooses the pods that a scale-in takes.
5. `apply.child_applier` renders the children and applies those that differ.
6. `apply.status_writer` writes the status and posts events.

`apply.topic_reconciler` works beside the loop, and `sweep` finds deletions that a watch missed. Owns time, order and
retries; decisions are made by the pure rooms (`planning`, `workload`, `assessment`, `children`).
"""
