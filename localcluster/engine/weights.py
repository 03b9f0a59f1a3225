"""How large a model's weights are, from its name: the simulated engine loads no model."""

from __future__ import annotations

import re

GIB = 1024**3

# Parameters in total, in billions, where the name does not say them (mixtures of experts name the active ones).
_KNOWN = {
    "openai/gpt-oss-20b": 20.9,
    "openai/gpt-oss-120b": 116.8,
    "moonshotai/kimi-vl-a3b-thinking-2506": 16.4,
    "moonshotai/kimi-vl-a3b-instruct": 16.4,
    "openai/whisper-large-v3": 1.54,
    "openai/whisper-large-v3-turbo": 0.81,
    "baai/bge-m3": 0.57,
    "baai/bge-reranker-v2-m3": 0.57,
    "microsoft/phi-4-mini-instruct": 3.8,
    "ibm-granite/granite-4.0-h-tiny": 6.9,
    "mistralai/magistral-small-2509": 24.0,
    "google/gemma-4-e4b-it": 8.0,
    "deepseek-ai/deepseek-ocr": 3.3,
    "zai-org/glm-4.7-flash": 31.2,
    "minimaxai/minimax-m2.5": 230.0,
    "deepseek-ai/deepseek-v3.2": 685.0,
    "zai-org/glm-5-fp8": 744.0,
    "moonshotai/kimi-k2.5": 1040.0,
    "mistralai/mixtral-8x7b-instruct-v0.1": 46.7,
    "mistralai/mixtral-8x22b-instruct-v0.1": 140.6,
}
_DEFAULT_BILLIONS = 1.0

_BYTES_BY_QUANTIZATION = {
    "mxfp4": 0.55, "nvfp4": 0.56, "awq": 0.56, "awq_marlin": 0.56, "gptq": 0.56, "gptq_marlin": 0.56,
    "bitsandbytes": 0.56, "fp8": 1.03, "modelopt": 1.03, "modelopt_fp4": 0.56, "int8": 1.03,
}  # fmt: skip
# of those that come quantized, where the name does not say so
_BYTES_BY_MODEL = {
    "openai/gpt-oss-120b": 0.56, "minimaxai/minimax-m2.5": 1.03, "deepseek-ai/deepseek-v3.2": 1.03,
    "moonshotai/kimi-k2.5": 0.57, "mistralai/ministral-3-8b-instruct-2512": 1.3,
}  # fmt: skip
_BYTES_BY_DTYPE = {"float32": 4.0, "float": 4.0}


def billions(model: str) -> float:
    """The model's parameters in billions: from a table, else the `20B`, `1.7b` or `500M` in its name, else 1.

    `35B-A3B` counts the 35 (all experts are in memory), `8x7B` counts 8 × 7.
    """
    name = model.rstrip("/").lower()
    if name in _KNOWN:
        return _KNOWN[name]
    # Only the last parts: a path in a model store has other numbers in it.
    name = "/".join(name.split("/")[-2:])
    many = re.search(r"(?<![a-z0-9])(\d+)x(\d+(?:\.\d+)?)b(?![a-z])", name)
    if many:
        return int(many[1]) * float(many[2])
    sizes = [
        float(number) * (0.001 if unit == "m" else 1.0)
        for number, unit in re.findall(r"(?<![a-z0-9.])(\d+(?:\.\d+)?)([bm])(?![a-z0-9])", name)
    ]
    return max(sizes, default=_DEFAULT_BILLIONS)


def weight_bytes(model: str, dtype: str, quantization: str) -> int:
    """Bytes of the whole model's weights in GPU memory, over all its GPUs."""
    name = model.rstrip("/").lower()
    named = next((word for word in re.split(r"[-_/]", name) if word in _BYTES_BY_QUANTIZATION), "")
    per_parameter = (
        _BYTES_BY_QUANTIZATION.get(quantization.lower() or named)
        or _BYTES_BY_MODEL.get(name)
        or _BYTES_BY_DTYPE.get(dtype, 2.0)
    )
    return int(billions(model) * 1e9 * per_parameter)
