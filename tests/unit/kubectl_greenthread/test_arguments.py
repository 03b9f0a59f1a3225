"""The command line is read as kubectl reads it."""

from __future__ import annotations

import pytest

from kubectl_greenthread.arguments import Argument, Option, Usage, parse, split
from kubectl_greenthread.options import GLOBAL
from kubectl_greenthread.top import SORT_KEYS
from kubectl_greenthread.verbs import COLUMNS, VERBS

OPTIONS = (
    Option("-n --namespace", "NAME"),
    Option("-A --all-namespaces"),
    Option("-w --watch"),
    Option("-o --output", "FORMAT", choices=("json", "yaml")),
    Option("--tail", "N", convert=int),
    Option("--label", "L", many=True),
)
NAMES = Argument("names", "MODEL...", 0, None)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["-n", "x"], {"namespace": "x"}),
        (["-nx"], {"namespace": "x"}),
        (["-n=x"], {"namespace": "x"}),
        (["--namespace", "x"], {"namespace": "x"}),
        (["--namespace=x=y"], {"namespace": "x=y"}),
        (["-Aw"], {"all_namespaces": True, "watch": True}),
        (["-Awn", "x"], {"all_namespaces": True, "watch": True, "namespace": "x"}),
        (["--watch=false"], {"watch": False}),
        (["a", "-w", "b"], {"names": ("a", "b"), "watch": True}),
        (["--", "-w"], {"names": ("-w",), "watch": False}),
        (["-"], {"names": ("-",)}),
        (["--label", "a", "--label=b"], {"label": ["a", "b"]}),
        (["-n", "x", "-n", "y"], {"namespace": "y"}),
    ],
)
def test_forms(words: list[str], wanted: dict[str, object]) -> None:
    values = parse(OPTIONS, NAMES, words)
    assert {name: values[name] for name in wanted} == wanted


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--namespac", "x"], "there is no option --namespac: did you mean --namespace?"),
        (["-x"], "there is no option -x"),
        (["-n"], "-n needs a value: -n NAME"),
        (["-o", "xml"], "-o is one of json, yaml, not 'xml'"),
        (["--watch=maybe"], "--watch is true or false"),
        (["--tail", "x"], "--tail: invalid literal"),
    ],
)
def test_mistakes(words: list[str], message: str) -> None:
    with pytest.raises(Usage, match=message.replace("?", r"\?").replace("(", r"\(")):
        parse(OPTIONS, NAMES, words)


def test_how_many_names() -> None:
    with pytest.raises(Usage, match="missing: MODEL"):
        parse((), Argument("name", "MODEL"), [])
    with pytest.raises(Usage, match="one MODEL at a time, not also 'b'"):
        parse((), Argument("name", "MODEL"), ["a", "b"])
    with pytest.raises(Usage, match="it takes no 'a'"):
        parse((), None, ["a"])
    assert parse((), Argument("name", "MODEL", 0, 1), [])["name"] is None


@pytest.mark.parametrize(
    ("words", "at"),
    [(["-n", "x", "top"], 2), (["--context=x", "top", "-A"], 1), (["top"], 0), (["-v"], 1), (["-n"], 1)],
)
def test_options_may_stand_before_the_verb(words: list[str], at: int) -> None:
    assert split(words, GLOBAL) == at


def test_every_verbs_options_are_its_functions_parameters() -> None:
    import inspect

    for name, verb in VERBS.items():
        if verb.options is None:
            continue
        from kubectl_greenthread.options import session_of

        values = parse(verb.options, None, []) | ({verb.argument.name: None} if verb.argument else {})
        session_of(values)
        parameters = list(inspect.signature(verb.load()).parameters)
        assert parameters[0] == "session", name
        assert set(parameters[1:]) == set(values), name
        assert verb.load().__doc__, name


def test_top_can_be_sorted_by_every_column_that_is_offered() -> None:
    assert set(COLUMNS) == {*SORT_KEYS, "req/s"}
