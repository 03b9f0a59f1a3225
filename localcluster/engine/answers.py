"""What the simulated model says: always the same to the same question, and recognisably from a simulation."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any

from localcluster.engine import tokens
from localcluster.engine.schemas import example

_SENTENCES = (
    "A sleeping model uses no GPU memory, so many models can share a few GPUs.",
    "The first request wakes it, and the answer streams as soon as its weights are back.",
    "When a GPU is full, the model that was used the longest time ago makes room.",
    "Nothing about this text was computed by a neural network.",
    "Each token takes its configured time, as it would on a real device.",
    "The memory of this engine is counted in a ledger that all engines share.",
    "A request that arrives while the model wakes waits in a queue and is served in order.",
    "Pinned models stay where they are and are never asked to make room.",
)
_THOUGHT = "The user asks something. I look at the words, find what they are about, and answer briefly. "
GARBAGE = "!"
_VECTOR_WORDS = 64


@dataclass(slots=True)
class Conversation:
    """A chat, whatever API it came through."""

    prompt: str
    """Everything the model is given, as text: for counting."""
    question: str
    """The text of the last message."""
    last_role: str = "user"
    images: int = 0
    tools: list[dict[str, Any]] = field(default_factory=list)
    """Functions: `name`, `description`, `parameters` (a JSON schema)."""
    tool_choice: str = "none"
    """`none`, `auto`, `required` or the name of a function."""
    schema: Any = None
    """The JSON schema to answer in."""
    choices: list[str] = field(default_factory=list)
    """The answers to choose from."""
    thinks: bool = False

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt; an image counts 256."""
        return tokens.count(self.prompt) + 256 * self.images


@dataclass(slots=True)
class Answer:
    """What is to be generated, in tokens, and why it ends."""

    reasoning: list[str]
    content: list[str]
    tool: str = ""
    tool_arguments: list[str] = field(default_factory=list)
    finish_reason: str = "stop"
    stop_reason: str | None = None

    @property
    def generated(self) -> int:
        """Tokens in all."""
        return len(self.reasoning) + len(self.content) + len(self.tool_arguments)


@dataclass(frozen=True, slots=True)
class Limits:
    """How long an answer may and must be."""

    max_tokens: int
    min_tokens: int = 0
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()


def answer(model: str, conversation: Conversation, limits: Limits, variant: int = 0) -> Answer:
    """The answer to a chat; `variant` makes the second choice differ from the first."""
    reasoning = tokens.split(_THOUGHT) if conversation.thinks else []
    found = Answer(reasoning, [])
    tool = _tool(conversation)
    if tool is not None:
        found.tool = tool["name"]
        found.tool_arguments = tokens.split(json.dumps(example(tool.get("parameters") or {"type": "object"})))
        found.finish_reason = "tool_calls"
        text = ""
    elif conversation.schema is not None:
        text = json.dumps(example(conversation.schema))
    elif conversation.choices:
        text = conversation.choices[_hash(conversation.prompt, variant) % len(conversation.choices)]
    else:
        text = _talk(model, conversation, variant)
    free = tool is None and conversation.schema is None and not conversation.choices
    found.content, found.stop_reason = _bounded(text, limits, free, len(found.reasoning))
    return _cut(found, limits)


def completion(prompt: str, limits: Limits, variant: int = 0) -> Answer:
    """The continuation of a text."""
    start = _hash(prompt, variant) % len(_SENTENCES)
    text = "".join(" " + _SENTENCES[(start + step) % len(_SENTENCES)] for step in range(2))
    found = Answer([], [])
    found.content, found.stop_reason = _bounded(text, limits, True, 0)
    return _cut(found, limits)


def garble(found: Answer) -> Answer:
    """The answer as weights that were never loaded give it: as long, and nonsense."""
    return Answer(
        [GARBAGE] * len(found.reasoning), [GARBAGE] * (len(found.content) or len(found.tool_arguments)),
        finish_reason="length" if found.finish_reason == "length" else "stop",
    )  # fmt: skip


def vector(text: str, dimensions: int) -> list[float]:
    """A direction of length 1 that depends on the words: texts that share words point alike."""
    total = [0.0] * dimensions
    words = dict.fromkeys(re.findall(r"\w+", text.lower()) or [text])
    for word in list(words)[:_VECTOR_WORDS]:
        seed = hashlib.shake_128(word.encode(errors="replace")).digest(dimensions * 2)
        for place in range(dimensions):
            total[place] += (seed[2 * place] * 256 + seed[2 * place + 1]) / 32767.5 - 1
    length = sum(value * value for value in total) ** 0.5 or 1.0
    return [value / length for value in total]


def similarity(one: str, other: str) -> float:
    """How alike two texts are, from 0 to 1."""
    first, second = vector(one, 64), vector(other, 64)
    return max(0.0, sum(a * b for a, b in zip(first, second, strict=True)))


def _tool(conversation: Conversation) -> dict[str, Any] | None:
    """The function to call: the one that was named; with `auto` one that shares a word with the question."""
    if not conversation.tools or conversation.tool_choice == "none":
        return None
    for tool in conversation.tools:
        if tool["name"] == conversation.tool_choice:
            return tool
    if conversation.tool_choice == "required":
        return conversation.tools[0]
    if conversation.last_role == "tool":
        return None
    words = set(re.findall(r"[a-z]{3,}", conversation.question.lower()))
    for tool in conversation.tools:
        said = f"{tool['name']} {tool.get('description') or ''}".replace("_", " ").lower()
        if words & set(re.findall(r"[a-z]{3,}", said)):
            return tool
    return None


def _talk(model: str, conversation: Conversation, variant: int) -> str:
    start = _hash(conversation.prompt, variant)
    heard = " ".join(conversation.question.split())
    heard = heard if len(heard) <= 120 else heard[:117] + "..."
    parts = [f"This is {model}, simulated."]
    if conversation.last_role == "tool":
        parts.append(f"The tool says: {heard}")
    elif heard:
        parts.append(f"You said: {heard}")
    if conversation.images:
        parts.append(f"I was shown {conversation.images} image{'s' if conversation.images > 1 else ''}.")
    parts += [_SENTENCES[(start + step) % len(_SENTENCES)] for step in range(2)]
    return " ".join(parts)


def _bounded(text: str, limits: Limits, extend: bool, before: int) -> tuple[list[str], str | None]:
    """The text in tokens up to the first stop string, made longer where a longer one is asked for."""
    wanted = limits.max_tokens if limits.ignore_eos else limits.min_tokens
    pieces = tokens.split(text)
    if extend and text:
        more = tokens.split(" " + " ".join(_SENTENCES))
        while len(pieces) + before < wanted:
            pieces += more[: wanted - before - len(pieces)]
    ends = [(at, stop) for stop in limits.stop if stop and (at := "".join(pieces).find(stop)) >= 0]
    if not ends:
        return pieces, None
    at, stop = min(ends)
    return tokens.split("".join(pieces)[:at]), stop


def _cut(found: Answer, limits: Limits) -> Answer:
    max_tokens = limits.max_tokens
    # Who ignores the end of the text ends at the limit, though nothing is cut off.
    endless = limits.ignore_eos and found.generated == max_tokens and found.stop_reason is None
    if found.generated <= max_tokens and not endless:
        return found
    found.finish_reason, found.stop_reason = "length", None
    found.reasoning = found.reasoning[:max_tokens]
    left = max_tokens - len(found.reasoning)
    found.content = found.content[:left]
    found.tool_arguments = found.tool_arguments[: left - len(found.content)]
    return found


def _hash(text: str, variant: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{variant}:{text}".encode(errors="replace")).digest()[:4], "big")
