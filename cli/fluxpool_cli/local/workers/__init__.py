"""The worker processes of a local stack, and their scaling."""
