"""The program: which verbs there are, and how every failure ends as one line and an exit code."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from typing import Any

import click

from greenthread.kube.errors import KubeError, NoSuchKind, NotFound
from kubectl_greenthread.failures import Failure
from kubectl_greenthread.options import connection_options, set_defaults

VERBS = {
    "top": ("kubectl_greenthread.top:command", "Who is on the GPUs, who waits, and why."),
    "status": ("kubectl_greenthread.status:command", "All that is known of one model."),
    "wake": ("kubectl_greenthread.wake:command", "Wake models."),
    "sleep": ("kubectl_greenthread.sleep:command", "Put models to sleep; they free their GPU memory."),
    "pin": ("kubectl_greenthread.pin:command", "Keep models on their GPUs: they are never preempted."),
    "unpin": ("kubectl_greenthread.unpin:command", "Let models give way again."),
    "preempt": ("kubectl_greenthread.preempt:command", "Make a model give its GPU memory to others."),
    "live": ("tui.app:live", "Watch GPUs and models in the terminal."),
    "dashboard": ("tui.app:dashboard", "Open the dashboard."),
    "up": ("localcluster.up:command", "Run GreenThread on this machine, without Kubernetes."),
    "demo": ("localcluster.demo:command", "Show the whole thing on simulated GPUs in two minutes."),
    "version": ("kubectl_greenthread.version:command", "Print the version."),
}
"""Name → where its click command is, and what it does. Looked up only when used."""

EXTRAS = {"tui": "tui", "localcluster": "local"}
"""What to install, by the package a verb is in."""

EXIT_CODES = """\
\b
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 timed out, 4 no such model, 130 interrupted."""


class Verbs(click.Group):
    """Verbs that are imported when they are used, so that start-up stays short."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name, (place, _) in VERBS.items() if _is_there(place)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS or not _is_there(VERBS[cmd_name][0]):
            return None
        module, _, name = VERBS[cmd_name][0].partition(":")
        try:
            command = getattr(importlib.import_module(module), name)
        except ModuleNotFoundError as error:
            extra = EXTRAS.get(module.partition(".")[0])
            if extra is None:
                raise
            raise Failure(f"`{cmd_name}` needs the package {error.name}: pip install 'greenthread[{extra}]'") from None
        assert isinstance(command, click.Command)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            import difflib

            near = difflib.get_close_matches(name, self.list_commands(ctx), n=1)
            advice = f"did you mean {near[0]}?" if near else f"try `{ctx.command_path} --help`"
            raise click.UsageError(f"there is no verb {name}: {advice}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(name, VERBS[name][1]) for name in self.list_commands(ctx)])


def _is_there(place: str) -> bool:
    module = place.partition(":")[0]
    return importlib.util.find_spec(module) is not None


@click.group(
    cls=Verbs,
    invoke_without_command=True,
    subcommand_metavar="VERB [ARGUMENTS]",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=EXIT_CODES,
)
@connection_options
@click.pass_context
def cli(ctx: click.Context, /, **given: Any) -> None:
    """Language models that share GPUs: they sleep with zero GPU memory and wake on the first request."""
    set_defaults(ctx, given, list(VERBS))
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def program_name(argv0: str) -> str:
    """What the user typed: kubectl runs a plugin as `kubectl-greenthread`."""
    name = os.path.basename(argv0).removesuffix(".exe")
    if name.startswith("kubectl-"):
        return "kubectl " + name.removeprefix("kubectl-").replace("_", "-")
    return "greenthread" if name in ("__main__.py", "main.py") else name


def run(args: list[str], name: str) -> int:
    """Runs one command line; the exit code. Failures become one line on stderr."""
    try:
        code = cli.main(args, prog_name=name, standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else name
        _complain(f"{error.format_message().rstrip('.')} (see `{where} --help`)")
        return 2
    except click.Abort:
        _complain("stopped")
        return 130
    except click.ClickException as error:
        _complain(error.format_message())
        return error.exit_code
    except KubeError as error:
        _complain(str(error))
        return 4 if isinstance(error, NotFound) and not isinstance(error, NoSuchKind) else 1
    except KeyboardInterrupt:
        _complain("stopped")
        return 130
    except Exception as error:
        if isinstance(error, BrokenPipeError):
            return _reader_left()
        if os.environ.get("GREENTHREAD_DEBUG"):
            raise
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
    click.echo(f"error: {' '.join(message.split())}", err=True)


def main() -> None:
    """Entry point of `greenthread` and `kubectl-greenthread`."""
    sys.exit(run(sys.argv[1:], program_name(sys.argv[0])))


if __name__ == "__main__":
    main()
