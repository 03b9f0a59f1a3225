"""Runs the Pods of one node as processes, in the kubelet's place, speaking only the Kubernetes API.

`Supervisor` is the whole of it; `python -m localcluster.supervisor` runs one against any kubeconfig. What
it does not do (a network or file system for each pod, cgroups, secret volumes, pulls) it refuses in the pod's status.
"""
