"""Templates whatever they are; that they print what kubectl prints is tests/conformance's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubectl_greenthread.jsonpath import BadPath, render, select

VALUE = {"a": [1, {"b": "x"}, None, True, 1.5], "c": {"d": {}}}


def test_values_are_printed_as_they_are() -> None:
    assert render("{.a[0]} {.a[1].b} {.a[3]} {.a[4]} {.c}", VALUE) == '1 x true 1.5 {"d":{}}'
    assert render("no braces", VALUE) == "no braces"
    assert select("c.d", VALUE) == [{}]
    assert select(".nothing", VALUE) == []


BAD = ("{", "{.a", "{.a[}", "{end}", "{range .a[*]}{.b}", "{.a['x]}", "{.a[1:2:0]}", "{.a[x]}", "{.a[?(@.b==)]}",
       "{.a[?(@.b==y)]}")  # fmt: skip


@pytest.mark.parametrize("template", BAD)
def test_bad_templates_are_refused(template: str) -> None:
    with pytest.raises(BadPath):
        render(template, VALUE)


@given(st.text(alphabet="{}[]()?@.*$'\"\\ab01:,=< rangeend", max_size=40))
def test_no_template_breaks_it(template: str) -> None:
    try:
        assert isinstance(render(template, VALUE), str)
    except BadPath:
        pass


def test_ranges_in_ranges_have_an_end() -> None:
    with pytest.raises(BadPath, match="too many ranges"):
        render("{range .a[*]}" * 200 + "{end}" * 200, VALUE)
