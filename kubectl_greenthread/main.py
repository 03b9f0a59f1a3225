"""The program: which verbs there are, and how every failure ends as one line and an exit code."""

from __future__ import annotations

import gc
import os
import sys

from kubectl_greenthread.arguments import Usage, Verb, help_text, help_width, parse, split, table
from kubectl_greenthread.options import GLOBAL, session_of
from kubectl_greenthread.verbs import VERBS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

EXTRAS = {"tui": "tui", "localcluster": "local"}
"""What to install, by the package a verb is in."""

SUMMARY = "Language models that share GPUs: they sleep with zero GPU memory and wake on the first request."
EXIT_CODES = (
    "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 timed out, 4 no such model, 5 not allowed, 130 interrupted."
)


def available() -> list[str]:
    """The verbs whose code is installed."""
    import importlib.util

    def is_there(verb: Verb) -> bool:
        return verb.options is not None or importlib.util.find_spec(verb.place.partition(":")[0]) is not None

    return [name for name, verb in VERBS.items() if is_there(verb)]


def load(name: str) -> Any:
    """A verb's function, or its click command. Usage if there is none, Failure if a package is missing for it."""
    verb = VERBS.get(name)
    if verb is None or (verb.options is None and name not in available()):
        raise Usage(_no_verb(name))
    try:
        return verb.load()
    except ModuleNotFoundError as error:
        extra = EXTRAS.get(verb.place.partition(".")[0])
        if extra is None:
            raise
        from kubectl_greenthread.failures import Failure

        raise Failure(f"`{name}` needs the package {error.name}: pip install 'greenthread[{extra}]'") from None


def _no_verb(name: str) -> str:
    import difflib

    near = difflib.get_close_matches(name, available(), n=1)
    return f"there is no verb {name}: " + (f"did you mean {near[0]}?" if near else "the help lists them")


def _help(program: str) -> str:
    width = help_width()
    verbs = [(name, VERBS[name].summary) for name in available()]
    parts = [
        f"Usage: {program} VERB [ARGUMENTS] [OPTIONS]",
        SUMMARY,
        "Verbs:\n" + "\n".join(table(verbs, width)),
        f"`{program} VERB --help` says what a verb does and which options it takes.",
        EXIT_CODES,
    ]
    return "\n\n".join(parts)


def _dispatch(args: list[str], program: str) -> int:
    at = split(args, GLOBAL)
    before, name, after = args[:at], args[at] if at < len(args) else "", args[at + 1 :]
    if name == "__complete":  # as cobra calls it
        from kubectl_greenthread.completing import answer

        sys.stdout.write(answer(after))
        return 0
    if name == "help":
        name, after = (after[0], ["--help"]) if after else ("", [])
    if not name:
        if before and before[-1] not in ("-h", "--help"):
            parse(GLOBAL, None, before)
        print(_help(program))
        return 0
    if name == "--":
        raise Usage(_no_verb("--"))
    verb = VERBS.get(name)
    if verb is None or verb.options is None:
        return _run_click(load(name), before, after, f"{program} {name}")
    words = [*before, *after]
    end = words.index("--") if "--" in words else len(words)
    if any(word in ("-h", "--help") for word in words[:end]):
        print(help_text(f"{program} {name}", verb, help_width()))
        return 0
    try:
        values = parse(verb.options, verb.argument, words)
    except Usage as error:
        raise Usage(f"{error} (see `{program} {name} --help`)") from None
    return load(name)(session_of(values), **values) or 0


def _run_click(command: Any, before: list[str], after: list[str], program: str) -> int:
    """A verb of another package, which uses click; options before its name count as defaults."""
    import click

    gc.enable()
    given = parse(GLOBAL, None, before)
    defaults = {name: value for name, value in given.items() if value}
    try:
        code = command.main(after, prog_name=program, standalone_mode=False, default_map=defaults)
        return code if isinstance(code, int) else 0
    except click.UsageError as error:
        raise Usage(f"{error.format_message().rstrip('.')} (see `{program} --help`)") from None
    except click.Abort:
        raise KeyboardInterrupt from None
    except click.ClickException as error:
        _complain(error.format_message())
        return error.exit_code


def program_name(argv0: str) -> str:
    """What the user typed: kubectl runs a plugin as `kubectl-greenthread`."""
    name = os.path.basename(argv0).removesuffix(".exe")
    if name.startswith("kubectl-"):
        return "kubectl " + name.removeprefix("kubectl-").replace("_", "-")
    return "greenthread" if name in ("__main__.py", "main.py") else name


def run(args: list[str], name: str) -> int:
    """Runs one command line; the exit code. Failures become one line on stderr."""
    try:
        code = _dispatch(args, name)
        sys.stdout.flush()
        return code
    except Usage as error:
        text = str(error)
        _complain(text if "--help`)" in text else f"{text} (see `{name} --help`)")
        return 2
    except KeyboardInterrupt:
        _complain("stopped")
        return 130
    except BrokenPipeError:
        return _reader_left()
    except Exception as error:
        return _failed(error, name)


def _failed(error: Exception, name: str) -> int:
    from greenthread.kube.errors import Forbidden, KubeError, NoSuchKind, NotFound
    from kubectl_greenthread.failures import Failure

    if isinstance(error, Failure):
        _complain(str(error))
        return error.exit_code
    if isinstance(error, KubeError):
        _complain(str(error))
        if isinstance(error, Forbidden):
            return 5
        return 4 if isinstance(error, NotFound) and not isinstance(error, NoSuchKind) else 1
    if os.environ.get("GREENTHREAD_DEBUG"):
        raise error
    if isinstance(error, OSError):
        _complain(str(error))
    else:
        _complain(f"a mistake in {name} itself, please report it: {type(error).__name__}: {error}"
                  " (GREENTHREAD_DEBUG=1 shows where)")  # fmt: skip
    return 1


def _reader_left() -> int:
    """The reader (`| head`) has enough; keeps Python's last flush from complaining."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _complain(message: str) -> None:
    sys.stdout.flush()
    print(f"error: {' '.join(message.split())}", file=sys.stderr)


def main() -> None:
    """Entry point of `greenthread` and `kubectl-greenthread`."""
    # a list of a thousand Models is a hundred thousand objects that all stay: looking for garbage among them takes as
    # long as reading them. What runs for long enables it again.
    gc.disable()
    leave(run(sys.argv[1:], program_name(sys.argv[0])))


def leave(code: int) -> NoReturn:
    """Ends the program: at once if only our own code ran, since taking the interpreter apart takes its time too."""
    if "click" in sys.modules or "readline" in sys.modules:
        sys.exit(code)
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        pass  # whoever read has gone, which was told
    os._exit(code)


if __name__ == "__main__":
    main()
