"""`vllm serve …` as a model's pod runs it, carried out by vLLM on a CPU: same process id, adapted options.

What a CPU cannot do is left out (sleep mode, tensor parallelism, quantization, bfloat16). If there is a ledger of
simulated GPUs, the memory that the engine would take is allocated before vLLM starts (the process keeps its pid, and so
what it holds), and `accounting.py` gives it back and takes it again as vLLM sleeps and wakes.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
sys.path[0] = str(REPOSITORY)

from localcluster.engine.arguments import parse  # noqa: E402
from localcluster.engine.main import memory_plan  # noqa: E402
from localcluster.engine.memory import GpuMemory, NotEnoughMemory  # noqa: E402
from localcluster.gpus.ledger import ENVIRONMENT, LedgerError, OutOfMemoryError, open_ledger  # noqa: E402
from tests.testbeds.programs import Missing, need_vllm, vllm_folder  # noqa: E402

# Options of a GPU, with the number of their values.
_LEFT_OUT = {
    "--enable-sleep-mode": 0,
    "--no-enable-sleep-mode": 0,
    "--enforce-eager": 0,
    "--gpu-memory-utilization": 1,
    "--tensor-parallel-size": 1,
    "-tp": 1,
    "--dtype": 1,
    "--quantization": 1,
    "-q": 1,
}
_FOR_THE_CPU = ["--dtype", "float32", "--enforce-eager"]
PLAN = "GREENTHREAD_TEST_VLLM_ARGUMENTS"
"""Environment variable with the original command line, one argument a line, for `accounting.py`."""


def adapted(arguments: list[str]) -> list[str]:
    """The command line for a CPU."""
    kept: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        name, equals, _ = argument.partition("=")
        if name not in _LEFT_OUT:
            kept.append(argument)
        elif not equals:
            for _ in range(_LEFT_OUT[name]):
                next(rest, None)
    return kept + _FOR_THE_CPU


def environment() -> dict[str, str]:
    """What vLLM on a CPU, without a network, wants in its environment."""
    given = {
        **os.environ,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "VLLM_CACHE_ROOT": str(vllm_folder() / "cache"),
        "VLLM_CONFIG_ROOT": str(vllm_folder() / "config"),
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])),
    }
    # The GPUs are the ledger's; vLLM itself must not look for any.
    given.pop("CUDA_VISIBLE_DEVICES", None)
    return given


def main(arguments: list[str]) -> int:  # noqa: RET503 - execve does not return
    """Take the memory, then become vLLM. Returns only when that is not possible: the exit status."""
    parsed = parse(arguments)
    command, given = adapted(arguments), environment()
    try:
        program = need_vllm()
        if os.environ.get(ENVIRONMENT):
            ledger = open_ledger()
            memory = GpuMemory(ledger, memory_plan(parsed, ledger), 0)
            memory.start()
            memory.map_weights()
            memory.map_kv_cache()
            ledger.close()
            command += ["--middleware", "tests.testbeds.vllm_on_cpu.accounting.LedgerMiddleware"]
            given[PLAN] = "\n".join(arguments)
            # For the accounting only; vLLM's own variable is gone.
            given["GREENTHREAD_TEST_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    except (Missing, ValueError, LedgerError, NotEnoughMemory, OutOfMemoryError) as error:
        print(f"ERROR {error}", file=sys.stderr)
        return 1
    os.execve(program, [str(program), *command], given)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
