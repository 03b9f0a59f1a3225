"""`:` commands: completed, read, and refused with what to type instead."""

from __future__ import annotations

import pytest

from tui.commands import Unclear, complete, pick, read

NAMES = {
    "model": ["prod/llama-3-1-8b", "prod/qwen", "test/llama-3-1-70b"],
    "theme": ["dark", "light"],
    "container": ["engine", "sidecar"],
    "object": ["prod/qwen", "gpu/node-a-0"],
}


def test_a_beginning_becomes_every_command_that_begins_so() -> None:
    assert complete("mo", True, NAMES) == ["models", "model"]
    assert complete("th", True, NAMES) == ["theme"]
    assert complete("theme", True, NAMES) == ["theme "]


def test_arguments_are_completed_by_what_there_is_names_that_begin_so_first() -> None:
    assert complete("theme ", True, NAMES) == ["theme dark", "theme light"]
    assert complete("wake llama", True, NAMES) == ["wake prod/llama-3-1-8b", "wake test/llama-3-1-70b"]
    assert complete("logs prod/qwen s", True, NAMES) == ["logs prod/qwen sidecar"]
    assert complete("yaml gpu", True, NAMES) == ["yaml gpu/node-a-0"]
    assert complete("theme dark ", True, NAMES) == []


def test_without_actions_there_are_none_to_complete_or_run() -> None:
    assert complete("sle", False, NAMES) == []
    with pytest.raises(Unclear, match="read-only"):
        read("sleep qwen", False)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("q", ("quit", [])),
        ("wak qwen", ("wake", ["qwen"])),
        ("ns prod", ("ns", ["prod"])),
        ("filter llama sleeping", ("filter", ["llama", "sleeping"])),
        ("describe qwen", ("model", ["qwen"])),
        ("logs", ("logs", [])),
    ],
)
def test_a_command_is_read_by_its_name_a_beginning_or_a_short_form(text: str, found: tuple[str, list[str]]) -> None:
    assert read(text, True) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wayts", "did you mean waits?"),
        ("wa", "wa may be waits, wake"),
        ("wake", "type it as wake MODEL"),
        ("theme dark light", "type it as theme THEME"),
        ("xyzzy", "there is no command xyzzy: . shows them"),
    ],
)
def test_what_cannot_be_run_says_what_to_type(text: str, message: str) -> None:
    with pytest.raises(Unclear, match=message):
        read(text, True)


def test_a_name_is_found_without_its_namespace_or_by_a_part_if_only_one_has_it() -> None:
    names = NAMES["model"]
    assert pick("model", "qwen", names) == "prod/qwen"
    assert pick("model", "70b", names) == "test/llama-3-1-70b"
    with pytest.raises(Unclear, match="llama may be prod/llama-3-1-8b, test/llama-3-1-70b"):
        pick("model", "llama", names)
    with pytest.raises(Unclear, match="there is no theme lihgt: did you mean light"):
        pick("theme", "lihgt", NAMES["theme"])
