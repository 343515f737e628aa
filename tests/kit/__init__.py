"""Code shared by the tests of all folders: real components and ways to wait for them.

Here: `waiting` and `ports`, which everything uses, and `strangers`, the corpus of foreign inputs.

- `kit.plugins`: Plugins of pytest: distribution, time limits, tests that run on a change, CPU time.
- `kit.programs`: The product's programs as processes: forked from one that has imported them, or executed.
- `kit.commands`: The `fluxpool` command, as a process or in that of a test, and what it writes.
- `kit.brokers`: Real Kafka brokers, and readers and writers of their records that are independent of the product.
- `kit.faults`: Networks, stores and disks that fail on demand, and observers of the guarantees meanwhile.
- `kit.stores`: Servers and files that hold what the product stores: PostgreSQL, S3, SQLite.
- `kit.http`: Clients and servers of HTTP that are not the product's: a browser, a token issuer, receivers of webhooks.
- `kit.gateways`: Gateways: as processes, in the process of a test, and worlds around them.
- `kit.workers`: Real workers as processes, parts of the agent, and gates for their tasks.
- `kit.engines`: Real engine processes, and the tiny checkpoint that they load.
- `kit.models`: Models of Kafka, workers and queues, for state machines and simulated time.
- `kit.cluster`: A real Kubernetes control plane, its nodes and objects. Containers are run by `kit.process_node`.
- `kit.scaling`: Pools, the lag of their lanes, and benches for the operator.
"""
