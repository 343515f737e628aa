"""A real Kubernetes control plane, its nodes and objects. Containers are run by `kit.process_node`."""
