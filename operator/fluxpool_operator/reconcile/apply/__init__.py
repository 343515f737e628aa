"""What a reconcile writes: replicas, children, topics and the status."""
