"""Simulated GPUs: one ledger of device memory for all processes of this machine, with NVML's functions on top."""
