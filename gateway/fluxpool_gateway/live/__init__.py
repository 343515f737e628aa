"""Server-sent events: the changes of one task, or of all tasks of a tenant, as one response that goes on."""
