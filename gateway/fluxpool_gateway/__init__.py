"""The gateway: HTTP in, Kafka out, and the state of every task as a projection of Kafka.

Depends on the contract and on transport; knows nothing of workers, the operator or the command line.
"""
