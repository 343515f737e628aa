"""The shared edges: Kafka connections and administration, the object store, logging, retries and fault points.

Depends on the contract alone; knows nothing of gateways, workers, operators or the command line.
"""
