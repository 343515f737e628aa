"""`fluxpool queue`, `pools`, `models`, `usage` and `top`: the service rather than a task, over HTTP."""
