"""A simulated vLLM: the same command line and HTTP as `vllm serve`, memory from the simulated GPUs' ledger.

Put `BIN` first on the PATH and `vllm serve MODEL …` is this program. What it takes from vLLM 0.32 and where it differs:
`docs/simulated-engine.md`.
"""

from pathlib import Path

BIN = Path(__file__).parent / "bin"
"""Directory with the program `vllm`. It runs `$GREENTHREAD_PYTHON` (default: python3 on the PATH)."""
