"""Runs in vLLM's Python with TRITON_INTERPRET=1: the fingerprints' kernel on CPU tensors, beside numpy's."""

from __future__ import annotations

import numpy as np
import torch

from vllm_sleep.cuda import fingerprints

U = np.uint64


def numbers(*contents: np.ndarray) -> list[int]:
    tensors = [torch.from_numpy(content.view(np.int64).copy()) for content in contents]
    return fingerprints([(tensor.data_ptr(), tensor.numel() * 8) for tensor in tensors], "cpu")


def expected(words: np.ndarray) -> int:
    """The same sum, written down a second time."""
    with np.errstate(over="ignore"):
        x = words.view(U) + np.arange(words.size, dtype=U) * U(0x9E3779B97F4A7C1)
        for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
            x = (x ^ (x >> U(33))) * U(factor)
        x ^= x >> U(33)
        return int(x.sum(dtype=U).view(np.int64))


random = np.random.default_rng(1)


def content(words: int) -> np.ndarray:
    return random.integers(-(2**63), 2**63, words, dtype=np.int64)


# sizes: less than a program's share, just so, a word more, a tail, many programs
SIZES = (1, 2, 4095, 4096, 4097, 8191, 3 * 4096 + 1234, 50_000)
given = [content(words) for words in SIZES] + [np.zeros(5000, np.int64), np.full(5000, -1, np.int64)]
assert numbers(*given) == [expected(words) for words in given], "wraparound, shifts or the sum differ"
assert numbers(*given) == numbers(*given), "the same content, the same numbers"
assert len(set(numbers(*given))) == len(given)
assert numbers(np.zeros(4096, np.int64)) != numbers(np.zeros(4097, np.int64)), "the length counts"

base = content(2 * 4096 + 100)
same = numbers(base)[0]


def differs(what: str, *others: np.ndarray) -> None:
    found = numbers(*others)
    assert same not in found, what
    assert len(set(found)) == len(found), f"{what}: alike among themselves"


def flipped(word: int, bit: int) -> np.ndarray:
    other = base.copy()
    other.view(U)[word] ^= U(1 << bit)
    return other


def swapped(one: int, other: int, length: int) -> np.ndarray:
    changed = base.copy()
    changed[one : one + length], changed[other : other + length] = (
        base[other : other + length].copy(),
        base[one : one + length].copy(),
    )
    return changed


for word in (0, 4095, 4096, base.size - 1):
    differs(f"a flipped bit of word {word}", *(flipped(word, bit) for bit in range(64)))
differs("flipped bits", *(flipped(int(word), int(word) % 64) for word in random.choice(base.size, 100, replace=False)))
differs("swapped words", swapped(0, 1, 1), swapped(4095, 4096, 1), swapped(17, base.size - 1, 1))
differs("swapped pages of 4 KiB", swapped(0, 512, 512), swapped(512, 4096, 512), swapped(0, 4096, 4096))
differs("moved by a word", np.roll(base, 1), np.roll(base, -1), np.roll(base, 4096))
differs("two flips of one bit", *(flipped(word, 63) ^ flipped(word + 1, 63) ^ base for word in range(0, 8000, 400)))

# weights are often small numbers, repeated: equal pages at other places must count
ones = np.zeros(3 * 4096, np.int64)
pages = []
for page in range(0, ones.size, 512):
    ones[:] = 0
    ones[page : page + 512] = 0x3F80_3F80_3F80_3F80
    pages.append(ones.copy())
assert len(set(numbers(*pages))) == len(pages)
print("ok")
