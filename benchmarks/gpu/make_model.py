"""Makes a model that vLLM can serve, without a network: `python -m benchmarks.gpu.make_model 8B FOLDER`.

A Llama with random weights in bfloat16, and a tokenizer trained on Python's own sources. Runs with vLLM's Python. What
it says means nothing, but greedily it always says the same, and its memory is as large as a real one's.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VOCABULARY = 2048
SHARD = 4 * 10**9
"""Bytes of weights in a file."""


@dataclass(frozen=True)
class Shape:
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes, as a checkpoint of a Llama has them."""
        head = self.hidden // self.heads
        yield "model.embed_tokens.weight", (VOCABULARY, self.hidden)
        for number in range(self.layers):
            layer = f"model.layers.{number}"
            yield f"{layer}.self_attn.q_proj.weight", (self.heads * head, self.hidden)
            yield f"{layer}.self_attn.k_proj.weight", (self.kv_heads * head, self.hidden)
            yield f"{layer}.self_attn.v_proj.weight", (self.kv_heads * head, self.hidden)
            yield f"{layer}.self_attn.o_proj.weight", (self.hidden, self.heads * head)
            yield f"{layer}.mlp.gate_proj.weight", (self.inner, self.hidden)
            yield f"{layer}.mlp.up_proj.weight", (self.inner, self.hidden)
            yield f"{layer}.mlp.down_proj.weight", (self.hidden, self.inner)
            yield f"{layer}.input_layernorm.weight", (self.hidden,)
            yield f"{layer}.post_attention_layernorm.weight", (self.hidden,)
        yield "model.norm.weight", (self.hidden,)
        yield "lm_head.weight", (VOCABULARY, self.hidden)

    @property
    def bytes(self) -> int:
        total = 0
        for _, shape in self.tensors():
            size = 2
            for length in shape:
                size *= length
            total += size
        return total


SHAPES = {
    "10M": Shape(256, 1024, 8, 8, 4),
    "1B": Shape(2048, 8192, 16, 32, 8),
    "8B": Shape(4096, 14336, 36, 32, 8),
    # 13 GB: the memory of 20B parameters in mxfp4. Not that format itself, whose models want a vocabulary from the net.
    "20B-class": Shape(4096, 14336, 30, 32, 8),
}


def main(name: str, folder: Path) -> None:
    """At once or not at all."""
    from tests.testbeds.vllm_on_cpu.tiny_model import save_tokenizer

    if (folder / "config.json").exists():
        return
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_tokenizer(str(partial), VOCABULARY)
    shape = SHAPES[name]
    _save_weights(shape, partial)
    _save_config(shape, partial)
    partial.rename(folder)


def _save_config(shape: Shape, folder: Path) -> None:
    from transformers import LlamaConfig

    LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=VOCABULARY,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
        dtype="bfloat16",
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=0,
    ).save_pretrained(str(folder))


def _save_weights(shape: Shape, folder: Path) -> None:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"  # 8B take a minute on a CPU
    generator = torch.Generator(device).manual_seed(7)
    tensors: dict[str, Any] = {}
    where: dict[str, str] = {}
    held = 0
    for name, size in shape.tensors():
        tensor = torch.empty(size, dtype=torch.bfloat16, device=device)
        tensor.fill_(1.0) if name.endswith("norm.weight") else tensor.normal_(0.0, 0.02, generator=generator)
        tensors[name] = tensor.cpu()
        held += tensor.numel() * 2
        if held > SHARD:
            _save_shard(tensors, where, folder)
            tensors, held = {}, 0
    if tensors:
        _save_shard(tensors, where, folder)
    index = {"metadata": {"total_size": shape.bytes}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _save_shard(tensors: dict[str, Any], where: dict[str, str], folder: Path) -> None:
    from safetensors.torch import save_file

    file = f"model-{len(set(where.values())) + 1:05d}.safetensors"
    save_file(tensors, str(folder / file), metadata={"format": "pt"})
    where.update(dict.fromkeys(tensors, file))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
