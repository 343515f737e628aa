"""The task store on PostgreSQL, for several replicas of a gateway: connections, faults, and what replicas share."""
