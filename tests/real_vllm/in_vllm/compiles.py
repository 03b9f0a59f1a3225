"""Runs in vLLM's Python: the fingerprints' kernel, compiled for GPUs that are not here."""

from __future__ import annotations

from triton import compile as build
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vllm_sleep import cuda

for capability in (80, 90, 100):
    for count in ("i32", "i64"):  # the type of a number depends on its size
        signature = {"words": "*i64", "sums": "*i64", "count": count, "BLOCK": "constexpr"}
        source = ASTSource(cuda._mix, signature=signature, constexprs={(3,): cuda._WORDS})
        built = build(source, target=GPUTarget("cuda", capability, 32))
        assert built.asm["cubin"]
        assert "atom.global.gpu.acq_rel.add.u64" in built.asm["ptx"], "programs would overwrite each other's sum"
print("ok")
