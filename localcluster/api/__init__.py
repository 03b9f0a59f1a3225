"""A Kubernetes-compatible API for one machine, durable in SQLite."""
