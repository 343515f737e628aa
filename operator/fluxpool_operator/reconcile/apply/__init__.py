"""What a plan changes: children, topics, replicas and the status."""
