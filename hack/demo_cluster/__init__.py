"""`make demo-cluster`: a whole Fluxpool on a real Kubernetes control plane of this machine, as a show.

`cluster` starts and stops the parts, `pools` says what is applied, `observation` and `view` are what one sees
meanwhile, `story` puts it in order, `count` judges what is there in the end. The parts are those of the tests
(`tests/kit`).
"""
