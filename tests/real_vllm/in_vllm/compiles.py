"""Runs in vLLM's Python: the fingerprints' kernel, compiled for GPUs that are not here."""

from __future__ import annotations

from triton import compile as build
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vllm_sleep import cuda

SIGNATURE = {"addresses": "*i64", "counts": "*i64", "sums": "*i64", "BLOCK": "constexpr"}

for capability in (80, 90, 100):
    signature = {name: "constexpr" if name == "BLOCK" else "*i64" for name in cuda._mix.arg_names}
    source = ASTSource(cuda._mix, signature=signature, constexprs={(len(signature) - 1,): cuda._WORDS})
    built = build(source, target=GPUTarget("cuda", capability, 32))
    assert built.asm["cubin"]
    assert "atom.global.gpu.acq_rel.add.u64" in built.asm["ptx"], "programs would overwrite each other's sum"
print("ok")
