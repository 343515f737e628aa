"""From what is seen to what is done: one guarded loop per pool, observe -> plan -> apply.

Owns time, order and retries. What a pool needs is decided by the pure rooms (`planning`, `workload`, `assessment`,
`children`); how objects are read and written is `cluster`'s.
"""
