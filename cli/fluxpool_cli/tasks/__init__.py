"""`fluxpool list`, `get`, `wait`, `events`, `group`, `cancel`, `retry` and `delete`: tasks, over HTTP."""
