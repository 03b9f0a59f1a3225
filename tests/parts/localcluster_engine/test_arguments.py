"""The command line: what vLLM takes is taken, what it refuses is refused in its way."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import localcluster.engine
from localcluster.engine.arguments import parse


def test_a_recipes_command_line() -> None:
    line = (
        "serve Qwen/Qwen3.5-35B-A3B --host 127.0.0.1 --port 34567 --dtype bfloat16 --gpu-memory-utilization 0.90 "
        "--tensor-parallel-size 2 --enable-sleep-mode --enforce-eager --reasoning-parser qwen3 "
        "--enable-auto-tool-choice --tool-call-parser qwen3_coder --trust-remote-code --max-model-len 32k "
        "--max-num-seqs 64 --quantization fp8"
    )
    found = parse([*line.split(), "--served-model-name", "one", "two"])
    assert (found.model, found.served_names) == ("Qwen/Qwen3.5-35B-A3B", ("one", "two"))
    assert (found.host, found.port, found.tensor_parallel_size) == ("127.0.0.1", 34567, 2)
    assert (found.gpu_memory_utilization, found.max_model_len, found.max_num_seqs) == (0.9, 32_000, 64)
    assert (found.dtype, found.quantization, found.sleep_mode) == ("bfloat16", "fp8", True)
    assert (found.reasoning_parser, found.tool_call_parser, found.auto_tool_choice) == ("qwen3", "qwen3_coder", True)


def test_vllms_other_spellings() -> None:
    found = parse(["serve", "m", "--gpu_memory_utilization=0.5", "-tp", "4", "--max_model_len", "8K"])
    assert (found.gpu_memory_utilization, found.tensor_parallel_size, found.max_model_len) == (0.5, 4, 8192)
    assert parse(["serve", "m", "--enable-sleep-mode", "--no-enable-sleep-mode"]).sleep_mode is False
    assert parse(["serve", "--model", "m"]).served_names == ("m",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bogus"], "unrecognized arguments: --bogus"),
        (["--dtype", "float13"], "argument --dtype: invalid choice: 'float13'"),
        (["--port", "many"], "argument --port: invalid int value: 'many'"),
        (["--gpu-memory-utilization"], "expected one argument"),
        (["--gpu-memory-utilization", "1.5"], "not in the range (0, 1]"),
        (["--max-model-len", "long"], "invalid human_readable_int value: 'long'"),
        (["--enable-auto-tool-choice"], "--enable-auto-tool-choice requires --tool-call-parser"),
        (["--config", "file.yaml"], "reads no --config file"),
    ],
)
def test_what_is_wrong_ends_with_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(["serve", "m", *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_it_is_found_as_vllm_on_the_path() -> None:
    environment = {
        **os.environ,
        "PATH": f"{localcluster.engine.BIN}:{os.environ['PATH']}",
        "GREENTHREAD_PYTHON": sys.executable,
    }
    environment.pop("GREENTHREAD_GPU_LEDGER", None)
    version = subprocess.run(["vllm", "--version"], env=environment, capture_output=True, text=True, check=True)
    assert version.stdout == "0.32.0\n"
    refused = subprocess.run(["vllm", "serve", "m"], env=environment, capture_output=True, text=True)
    assert refused.returncode == 1
    assert "GREENTHREAD_GPU_LEDGER is not set" in refused.stderr
    assert "Traceback" not in refused.stderr
