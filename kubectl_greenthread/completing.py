"""Completes a command line: verbs, options, and names from the kubeconfig and the cluster. Speaks cobra's protocol.

Whatever goes wrong here is silence: a shell must never print an error because somebody pressed Tab.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from kubectl_greenthread.arguments import Argument, Option, find, split
from kubectl_greenthread.options import CONNECTION, GLOBAL
from kubectl_greenthread.verbs import REASONS, VERBS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from greenthread.kube.blocking import Client

NO_FILES, FILES = 4, 0
"""cobra's directives: that nothing else fits, and that the shell may offer files."""
PATIENCE = 2.0
"""Seconds for the cluster to answer."""
MOST = 500
"""Names that are asked for."""
METADATA = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"

Candidates = list[tuple[str, str]]
"""What may stand there, and what it is."""


def complete(words: Sequence[str]) -> tuple[Candidates, int]:
    """Candidates for the last word, which may be empty, and cobra's directive."""
    *before, current = words or [""]
    at = split(before, GLOBAL)
    if at >= len(before):
        if waiting := _waits_for_value(before, GLOBAL):
            return _values(waiting, before, current)
        if current.startswith("-"):
            return _options(GLOBAL, before, current)
        return _matching(((name, verb.summary) for name, verb in VERBS.items()), current), NO_FILES
    verb = VERBS.get(before[at])
    if verb is None:
        return [], NO_FILES
    options = verb.options if verb.options is not None else (*CONNECTION, GLOBAL[-1])
    if waiting := _waits_for_value(before, options):
        return _values(waiting, before, current)
    if current.startswith("-"):
        return _options(options, before, current)
    if verb.options is None or verb.argument is None:
        return [], NO_FILES
    return _arguments(verb.argument, options, before[at + 1 :], before, current)


def _waits_for_value(before: Sequence[str], options: Sequence[Option]) -> Option | None:
    """The option whose value the next word is."""
    if not before or not before[-1].startswith("-") or "=" in before[-1]:
        return None
    option = find(options, before[-1])
    return option if option is not None and not option.is_switch else None


def _options(options: Sequence[Option], before: Sequence[str], current: str) -> tuple[Candidates, int]:
    flag, equals, start = current.partition("=")
    if equals:
        option = find(options, flag)
        if option is None:
            return [], NO_FILES
        found, directive = _values(option, before, start)
        return [(f"{flag}={value}", text) for value, text in found], directive
    given = {word.partition("=")[0] for word in before}
    offered = [
        (name, option.help)
        for option in options
        if option.many or not given.intersection(option.flags)
        for name in option.flags
        if name.startswith("--") or current == name
    ]
    return _matching(offered, current), NO_FILES


def _arguments(
    argument: Argument, options: Sequence[Option], rest: Sequence[str], before: Sequence[str], current: str
) -> tuple[Candidates, int]:
    names: list[str] = []
    skip = False
    for word in rest:
        if skip:
            skip = False
        elif word.startswith("-") and word != "-":
            option = find(options, word)
            skip = option is not None and not option.is_switch
        else:
            names.append(word)
    if argument.most is not None and len(names) >= argument.most:
        return [], NO_FILES
    prefix = ""
    if argument.complete in ("models", "gpus") and "/" in current:
        kind, _, current = current.partition("/")
        prefix = f"{kind}/"
    taken = {name.rpartition("/")[2] for name in names}
    found = [name for name in _named(argument.complete, before) if name not in taken]
    return [(f"{prefix}{name}", text) for name, text in _matching(((name, "") for name in found), current)], NO_FILES


def _values(option: Option, before: Sequence[str], current: str) -> tuple[Candidates, int]:
    if option.complete == "files":
        return [], FILES
    if option.complete == "reasons":  # a list with commas
        done, comma, last = current.rpartition(",")
        return [(f"{done}{comma}{name}", "") for name in REASONS if name.startswith(last)], NO_FILES
    names = option.choices or option.suggest or _named(option.complete, before)
    return _matching(((name, "") for name in names), current), NO_FILES


def _matching(offered: Iterable[tuple[str, str]], start: str) -> Candidates:
    return [(name, text) for name, text in offered if name.startswith(start)]


def _named(kind: str, before: Sequence[str]) -> Iterable[str]:
    """Names of what is in the kubeconfig or in the cluster."""
    given = _given(before)
    if kind in ("contexts", "clusters", "users"):
        from greenthread.kube.config import names_in_kubeconfig

        return names_in_kubeconfig(kind, given.get("kubeconfig"))
    if kind == "recipes":
        from kubectl_greenthread.recipes import names

        return names()
    if kind == "shells":
        return ("bash", "zsh", "fish")
    if kind in ("models", "gpus", "namespaces"):
        return _in_cluster(kind, given)
    return ()


def _given(before: Sequence[str]) -> dict[str, str]:
    """The connection options on the line so far; -A as the namespace `*`."""
    found: dict[str, str] = {}
    for at, word in enumerate(before):
        flag, equals, value = word.partition("=")
        if not flag.startswith("--") and len(flag) > 2:
            flag, value, equals = flag[:2], word[2:].removeprefix("="), "="
        option = find(CONNECTION, flag)
        if option is not None and (equals or at + 1 < len(before)):
            found[option.name] = value if equals else before[at + 1]
    return found


def _in_cluster(kind: str, given: dict[str, str]) -> list[str]:
    from greenthread.kube.blocking import Client
    from greenthread.kube.config import load_config
    from greenthread.kube.resources import GPUS, MODELS, NAMESPACES

    config = load_config(given.get("kubeconfig"), given.get("context"), given.get("cluster"), given.get("user"))
    client = Client(config, PATIENCE)
    resource = {"models": MODELS, "gpus": GPUS, "namespaces": NAMESPACES}[kind]
    namespace = (given.get("namespace") or config.namespace) if kind == "models" else None
    return _names(client, resource.path(namespace))


def _names(client: Client, path: str) -> list[str]:
    import json

    with client.open("GET", path, {"limit": str(MOST)}, {"accept": METADATA}, timeout=PATIENCE) as stream:
        if stream.status != 200:
            return []
        items: list[dict[str, Any]] = json.loads(stream.read_all()).get("items") or []
    return sorted(str(item["metadata"]["name"]) for item in items)


def answer(words: Sequence[str]) -> str:
    """The whole answer: a candidate a line, with its description after a tab, and the directive at the end."""
    try:
        found, directive = complete(words)
    except Exception:  # a shell shows whatever is printed: silence is the only right answer
        found, directive = [], NO_FILES
    lines = [f"{name}\t{text}" if text else name for name, text in found]
    return "\n".join([*lines, f":{directive}"]) + "\n"


def main() -> None:
    """Entry point of `kubectl_complete-greenthread`, which kubectl runs with the words after `kubectl greenthread`."""
    sys.stdout.write(answer(sys.argv[1:]))
