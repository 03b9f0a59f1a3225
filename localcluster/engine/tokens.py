"""A tokenizer without a vocabulary: a token is a short piece of text, its number is the piece's bytes. Reversible."""

from __future__ import annotations

import re

_PIECE = re.compile(r" ?[A-Za-z]{1,4}| ?[0-9]{1,3}|.", re.DOTALL)
_MARK = b"\x01"


def split(text: str) -> list[str]:
    """The text in pieces that join to it again."""
    return _PIECE.findall(text)


def count(text: str) -> int:
    """How many tokens the text has."""
    return len(split(text))


def encode(text: str) -> list[int]:
    """The numbers of the text's tokens."""
    return [int.from_bytes(_MARK + piece.encode(errors="replace"), "big") for piece in split(text)]


def decode(numbers: list[int]) -> str:
    """The text of the tokens. ValueError for a number that is no token's."""
    pieces = []
    for number in numbers:
        raw = number.to_bytes((number.bit_length() + 7) // 8, "big") if number > 0 else b""
        if raw[:1] != _MARK:
            raise ValueError(f"token id {number} is not in the vocabulary")
        pieces.append(raw[1:])
    return b"".join(pieces).decode(errors="replace")
