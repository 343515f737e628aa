"""Networks, stores and disks that fail on demand, and observers of the guarantees meanwhile."""
