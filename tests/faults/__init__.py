"""Faults, and the harness by which they are made. Everything is real but the cluster's nodes: Redis, the registry, Kubernetes over HTTP.

    pod_server.py   a Kubernetes API with a memory (pod_store.py, node.py), for this process and others
    troubles.py     what goes wrong on the way to it; a new trouble is a function of the shape of those there
    proxy.py        a bad line in front of Redis or the registry
    points.py       named points around every outside effect; a new way out of the product is one line in `points()`
    forks.py        steps in processes that are killed and stopped; a new step is a function in steps.py and a scene in scenes.py
    plant.py        a whole crabpot on all that (workers.py, kubelet.py): many fit into one test, side by side
    promises.py     what must be true in the end, whatever was done

scripted_kubernetes.py answers single requests exactly as a test says, bytes and cuts included.
"""
