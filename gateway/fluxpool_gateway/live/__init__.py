"""Server-sent events: the changes of one task, as one response that goes on until the task ends."""
