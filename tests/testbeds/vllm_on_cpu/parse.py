"""Parses command lines of `vllm serve` (a JSON list of lists of words on stdin); runs with vLLM's own Python.

Prints what is wrong with each, "" for nothing, as a JSON list: what the argument parser says, what vLLM checks before
it loads a model, and names of parsers that nobody has registered.
"""

import contextlib
import io
import json
import sys

from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.reasoning import ReasoningParserManager
from vllm.tool_parsers import ToolParserManager
from vllm.utils.argparse_utils import FlexibleArgumentParser


def wrong(words: list[str]) -> str:
    """One command line, without `vllm serve`."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            args = make_arg_parser(FlexibleArgumentParser()).parse_args(words)
        validate_parsed_serve_args(args)
        if args.tool_call_parser:
            ToolParserManager.get_tool_parser(args.tool_call_parser)
        if args.reasoning_parser:
            ReasoningParserManager.get_reasoning_parser(args.reasoning_parser)
    except SystemExit:
        return said.getvalue()[-500:]
    except Exception as error:  # whatever it is, it is the answer
        return f"{type(error).__name__}: {error}"
    return ""


found = [wrong(words) for words in json.load(sys.stdin)]
print(json.dumps(found))
