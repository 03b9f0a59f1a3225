"""The command line of `vllm serve`, refused and accepted as vLLM does.

`flags.txt` lists vLLM's own options, read from its argument parser: names, how many values (`-` none, `1`, `?`, `+`,
`append`), the type of a value and its choices. `python -m tests.testbeds.vllm flags` writes it anew.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VERSION = "0.32.0"
_FLAGS = Path(__file__).with_name("flags.txt")


@dataclass(frozen=True, slots=True)
class Arguments:
    """What the simulated engine makes of its command line. The rest of vLLM's options is checked and has no effect."""

    model: str
    served_names: tuple[str, ...]
    host: str
    port: int
    gpu_memory_utilization: float
    tensor_parallel_size: int
    max_model_len: int
    max_num_seqs: int
    dtype: str
    quantization: str
    load_format: str
    sleep_mode: bool
    sleep_backend: str
    reasoning_parser: str
    auto_tool_choice: bool
    tool_call_parser: str
    force_include_usage: bool
    request_id_headers: bool


def parse(arguments: list[str]) -> Arguments:
    """Read `serve MODEL --option …`. Exits with status 2 and argparse's message on anything that vLLM would refuse."""
    parser = argparse.ArgumentParser(prog="vllm", allow_abbrev=True)
    parser.add_argument("-v", "--version", action="version", version=VERSION)
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", usage="vllm serve [model_tag] [options]")
    serve.add_argument("model_tag", nargs="?")
    for line in _FLAGS.read_text().splitlines():
        _add(serve, *line.split("\t"))
    serve.add_argument("--sleep-mode-backend", choices=["cumem", "greenthread"])  # of vLLM 0.33, with our plugin
    found = parser.parse_args([_dashed(argument) for argument in arguments])
    if found.config is not None:
        serve.error("the simulated engine reads no --config file: give the options on the command line")
    model = found.model_tag or found.model or "Qwen/Qwen3-0.6B"
    utilization = 0.92 if found.gpu_memory_utilization is None else found.gpu_memory_utilization
    if not 0 < utilization <= 1:
        serve.error(f"argument --gpu-memory-utilization: {utilization} is not in the range (0, 1]")
    tensor_parallel = found.tensor_parallel_size or 1
    if tensor_parallel < 1:
        serve.error(f"argument --tensor-parallel-size/-tp: {tensor_parallel} is less than 1")
    if found.enable_auto_tool_choice and not found.tool_call_parser:
        serve.error("Error: --enable-auto-tool-choice requires --tool-call-parser")
    return Arguments(
        model=model,
        served_names=tuple(found.served_model_name or [model]),
        host=found.host or "127.0.0.1",
        port=8000 if found.port is None else found.port,
        gpu_memory_utilization=utilization,
        tensor_parallel_size=tensor_parallel,
        max_model_len=_length(found.max_model_len),
        max_num_seqs=found.max_num_seqs or 256,
        dtype=found.dtype or "auto",
        quantization=found.quantization or "",
        load_format=found.load_format or "auto",
        sleep_mode=bool(found.enable_sleep_mode),
        sleep_backend=found.sleep_mode_backend or "cumem",
        reasoning_parser=found.reasoning_parser or "",
        auto_tool_choice=bool(found.enable_auto_tool_choice),
        tool_call_parser=found.tool_call_parser or "",
        force_include_usage=bool(found.enable_force_include_usage),
        request_id_headers=bool(found.enable_request_id_headers),
    )


def _length(value: int | None) -> int:
    """The context length; vLLM would read the model's configuration, here it is 32,768 where none is given."""
    return 32_768 if value in (None, -1) else int(value or 0)


def _add(parser: argparse.ArgumentParser, names: str, arity: str, value: str) -> None:
    options: dict[str, Any] = {"default": None}
    flags = names.split()
    if arity == "-":
        negative = [flag for flag in flags if flag.startswith("--no-")]
        options["action"] = "store_true"
        if negative:
            flags = [flag for flag in flags if flag not in negative]
            options["action"] = argparse.BooleanOptionalAction
    else:
        kind, _, choices = value.partition("=")
        options["type"] = _TYPES[kind]
        if choices:
            options["choices"] = [options["type"](choice) for choice in choices.split(",")]
        if arity == "append":
            options["action"] = "append"
        elif arity != "1":
            options["nargs"] = arity
    parser.add_argument(*flags, **options)


def _dashed(argument: str) -> str:
    """vLLM takes `--max_model_len` for `--max-model-len`."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


def _size(text: str) -> int:
    """An integer in people's notation: `32k` is 32,000 and `32K` 32,768; `auto` and `-1` leave it to the engine."""
    if text in ("auto", "-1"):
        return -1
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMgGtT])?", text)
    if not match:
        raise argparse.ArgumentTypeError(f"invalid human_readable_int value: {text!r}")
    number, unit = match.groups()
    base = 1000 if unit and unit.islower() else 1024
    size = float(number) * base ** (" kmgt".index(unit.lower()) if unit else 0)
    if not size.is_integer():
        raise argparse.ArgumentTypeError(f"invalid human_readable_int value: {text!r}")
    return int(size)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"Value {text} cannot be converted to <function loads>.") from None


_TYPES: dict[str, Callable[[str], Any]] = {"str": str, "int": int, "float": float, "json": _json, "size": _size}
