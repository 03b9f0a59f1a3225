"""Prints the options of `vllm serve` in the form of localcluster/engine/flags.txt; runs with vLLM's own Python.

Each line: names, number of values (`-`, `1`, `?`, `+`, `append`), type of a value and its choices, between tabs.
"""

import argparse

from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

TYPES = {
    "int": "int",
    "float": "float",
    "loads": "json",
    "human_readable_int": "size",
    "human_readable_int_or_auto": "size",
}


def line(action: argparse.Action) -> str:
    """One option."""
    if action.nargs == 0:
        return "\t".join([" ".join(action.option_strings), "-", ""])
    kind = TYPES.get(getattr(action.type, "__name__", ""), "str")
    choices = "=" + ",".join(map(str, action.choices)) if action.choices else ""
    arity = "append" if isinstance(action, argparse._AppendAction) else action.nargs or "1"
    return "\t".join([" ".join(action.option_strings), str(arity), kind + choices])


for found in make_arg_parser(FlexibleArgumentParser())._actions:
    if found.option_strings and not isinstance(found, argparse._HelpAction):
        print(line(found))
