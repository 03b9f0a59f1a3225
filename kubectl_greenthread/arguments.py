"""Verbs and their options as tables: one parser with kubectl's habits, one help text, and completion read the same.

A parser of our own because start-up counts: importing a library for this takes longer than kubectl takes as a whole.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

HELP_WIDTH = 100
"""The widest that help gets."""


class Usage(Exception):
    """The command line is wrong; the message says how. Exit code 2."""


class Option:
    """One option: `Option("-n --namespace", "NAME", "Namespace.")`; without a metavar it is a switch.

    `convert` makes a value of the text or raises ValueError; `complete` names what completes it (see `completing`),
    `suggest` are values to offer.
    """

    __slots__ = ("choices", "complete", "convert", "default", "flags", "help", "many", "metavar", "name", "suggest")

    def __init__(
        self,
        flags: str,
        metavar: str = "",
        help: str = "",
        *,
        name: str = "",
        default: Any = None,
        choices: Sequence[str] = (),
        convert: Callable[[str], Any] | None = None,
        many: bool = False,
        complete: str = "",
        suggest: Sequence[str] = (),
    ) -> None:
        self.flags = flags.split()
        self.metavar, self.help, self.choices, self.convert = metavar, help, choices, convert
        self.name = name or self.flags[-1].lstrip("-").replace("-", "_")
        self.many, self.complete, self.suggest = many, complete, suggest
        self.default: Any = default if default is not None or metavar else False

    @property
    def is_switch(self) -> bool:
        return not self.metavar

    def value(self, text: str, flag: str) -> Any:
        """What the text means; Usage when it means nothing."""
        if self.is_switch:
            if text not in ("true", "false"):
                raise Usage(f"{flag} is true or false, not {text!r}")
            return text == "true"
        if self.choices and text not in self.choices:
            raise Usage(f"{flag} is one of {', '.join(self.choices)}, not {text!r}")
        if self.convert is None:
            return text
        try:
            return self.convert(text)
        except ValueError as error:
            raise Usage(f"{flag}: {error}") from None


class Argument:
    """What stands without a dash: `least` to `most` of them (None: any number). `name` is the function's parameter."""

    __slots__ = ("complete", "least", "metavar", "most", "name")

    def __init__(self, name: str, metavar: str, least: int = 1, most: int | None = 1, complete: str = "models") -> None:
        self.name, self.metavar, self.least, self.most, self.complete = name, metavar, least, most, complete


class Verb:
    """A verb: the function at `place` (`module:name`) is called with the values of its argument and options by name.

    `options` is None for a verb that parses its words itself.
    """

    __slots__ = ("argument", "examples", "options", "place", "summary")

    def __init__(
        self,
        place: str,
        summary: str,
        argument: Argument | None = None,
        options: Sequence[Option] | None = None,
        examples: str = "",
    ) -> None:
        self.place, self.summary, self.argument = place, summary, argument
        self.options, self.examples = options, examples

    def load(self) -> Any:
        """The function, which is imported now."""
        import importlib

        module, _, name = self.place.partition(":")
        return getattr(importlib.import_module(module), name)


def find(options: Sequence[Option], flag: str) -> Option | None:
    """The option that is written `flag` (`-n` or `--namespace`)."""
    return next((option for option in options if flag in option.flags), None)


def split(words: Sequence[str], options: Sequence[Option]) -> int:
    """How many words at the beginning are options of these, with their values: where the verb is."""
    at = 0
    while at < len(words) and words[at].startswith("-") and words[at] not in ("-", "--"):
        flag, equals, _ = words[at].partition("=")
        option = find(options, flag if flag.startswith("--") else flag[:2])
        at += 1
        attached = equals if flag.startswith("--") else len(flag) > 2
        if option is not None and not option.is_switch and not attached:
            at += 1
    return min(at, len(words))


def parse(options: Sequence[Option], argument: Argument | None, words: Sequence[str]) -> dict[str, Any]:
    """The values that a verb's function takes; options and names may be mixed. Raises Usage."""
    values: dict[str, Any] = {option.name: ([] if option.many else option.default) for option in options}
    names: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            names += rest
            break
        if not word.startswith("-") or word == "-":
            names.append(word)
        else:
            _take(options, word, rest, values)
    if argument is None:
        if names:
            raise Usage(f"it takes no {names[0]!r}")
        return values
    if len(names) < argument.least:
        raise Usage(f"missing: {argument.metavar}")
    if argument.most is not None and len(names) > argument.most:
        raise Usage(f"one {argument.metavar} at a time, not also {names[argument.most]!r}")
    single = argument.most == 1
    values[argument.name] = (names[0] if names else None) if single else tuple(names)
    return values


def _take(options: Sequence[Option], word: str, rest: list[str], values: dict[str, Any]) -> None:
    """One word of options: `--name=value`, `--name value`, `-n value`, `-nvalue`, `-Aw`."""
    if word.startswith("--"):
        flag, equals, text = word.partition("=")
        option = find(options, flag)
        if option is None:
            raise Usage(f"there is no option {flag}{_near(options, flag)}")
        attached = text if equals else None
    else:
        flag, text = word[:2], word[2:]
        option = find(options, flag)
        if option is None:
            raise Usage(f"there is no option {flag}")
        if option.is_switch and text and not text.startswith("="):
            values[option.name] = True
            _take(options, f"-{text}", rest, values)
            return
        attached = text.removeprefix("=") if text else None
    if option.is_switch:
        value: Any = True if attached is None else option.value(attached, flag)
    else:
        if attached is None:
            if not rest:
                raise Usage(f"{flag} needs a value: {flag} {option.metavar}")
            attached = rest.pop(0)
        value = option.value(attached, flag)
    if option.many:
        values[option.name].append(value)
    else:
        values[option.name] = value


def _near(options: Sequence[Option], flag: str) -> str:
    import difflib

    known = [name for option in options for name in option.flags if name.startswith("--")]
    near = difflib.get_close_matches(flag, known, n=1)
    return f": did you mean {near[0]}?" if near else ""


def usage_line(name: str, verb: Verb) -> str:
    """`wake MODEL... [OPTIONS]`."""
    argument = verb.argument
    words = [name]
    if argument is not None:
        words.append(argument.metavar if argument.least else f"[{argument.metavar}]")
    return " ".join([*words, "[OPTIONS]"] if verb.options else words)


def help_text(name: str, verb: Verb, width: int) -> str:
    """The whole help of a verb; `name` with the program in front."""
    parts = [f"Usage: {usage_line(name, verb)}", *paragraphs(verb.load().__doc__ or "", width)]
    if verb.examples:
        parts.append("Examples:\n" + "\n".join(f"  {line.strip()}" for line in verb.examples.strip().splitlines()))
    if verb.options:
        parts.append(
            "Options:\n" + "\n".join(table([(_left(option), _right(option)) for option in verb.options], width))
        )
    return "\n\n".join(parts)


def _left(option: Option) -> str:
    short = [flag for flag in option.flags if len(flag) == 2]
    text = ", ".join(option.flags) if short else f"    {option.flags[0]}"
    return f"{text} {option.metavar}".rstrip()


def _right(option: Option) -> str:
    text = option.help
    if isinstance(option.default, str) and option.default not in ("", "none"):
        text += f" Default: {option.default}."
    return text


def paragraphs(text: str, width: int) -> list[str]:
    """The paragraphs of a docstring, wrapped."""
    import textwrap

    return [
        part if part.startswith("  ") else textwrap.fill(" ".join(part.split()), width)
        for part in (part.rstrip() for part in textwrap.dedent(_first_line_dedented(text)).strip().split("\n\n"))
    ]


def _first_line_dedented(text: str) -> str:
    first, newline, rest = text.partition("\n")
    import textwrap

    return first.strip() + newline + textwrap.dedent(rest)


def table(rows: Sequence[tuple[str, str]], width: int) -> list[str]:
    """Two columns, the right one wrapped."""
    import textwrap

    left = min(max((len(row[0]) for row in rows), default=0), 32)
    lines = []
    for name, text in rows:
        wrapped = textwrap.wrap(text, max(width - left - 4, 24)) or [""]
        if len(name) > left:
            lines.append(f"  {name}")
        else:
            lines.append(f"  {name.ljust(left)}  {wrapped.pop(0)}".rstrip())
        lines += [f"  {'':{left}}  {line}" for line in wrapped]
    return lines


def help_width() -> int:
    """Columns for help: the terminal's, at most `HELP_WIDTH`."""
    try:
        columns = int(os.environ.get("COLUMNS") or 0) or os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, ValueError):
        columns = 80
    return max(min(columns, HELP_WIDTH), 40)
