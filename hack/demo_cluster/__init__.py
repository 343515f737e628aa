"""`make demo-cluster`: a demo of a complete Fluxpool on a real Kubernetes control plane of this machine.

`cluster` starts and stops the components, `pools` has the applied manifests, `observation` and `view` show the
progress, `story` runs the steps, `count` checks the outcome. The components are those of the tests (`tests/kit`).
"""
