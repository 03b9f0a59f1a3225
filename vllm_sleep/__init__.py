"""What runs with vLLM in the engine's container: a sleep backend inside it, a launcher that checkpoints around it.

Imports nothing of the other rooms: it is delivered into vLLM's own Python (deliver.py).
"""
