"""Make, show and hold simulated GPUs: `python -m localcluster.gpus create|show|hold`."""

from __future__ import annotations

import argparse
import os
import signal
import sys

from greenthread.units import human_bytes, parse_quantity
from localcluster.gpus.ledger import (
    DEFAULT_PRODUCT,
    DEFAULT_TOTAL_BYTES,
    ENVIRONMENT,
    Ledger,
    LedgerError,
    OutOfMemoryError,
    create,
    open_ledger,
)


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m localcluster.gpus", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("create", help=f"make a ledger (default file: ${ENVIRONMENT})")
    make.add_argument("file", nargs="?", default=os.environ.get(ENVIRONMENT))
    make.add_argument("--gpus", type=int, default=2)
    make.add_argument("--bytes", type=_size, default=DEFAULT_TOTAL_BYTES, help="memory of each, e.g. 96Gi")
    make.add_argument("--product", default=DEFAULT_PRODUCT)
    commands.add_parser("show", help="print the devices and who holds their memory")
    hold = commands.add_parser("hold", help="hold memory until a signal comes, like a program of somebody else's")
    hold.add_argument("--gpu", type=int, required=True)
    hold.add_argument("--bytes", type=_size, required=True, help="e.g. 4Gi")
    options = parser.parse_args(arguments)
    try:
        if options.command == "create":
            if not options.file:
                parser.error(f"name a file or set ${ENVIRONMENT}")
            _show(create(options.file, options.gpus, options.bytes, options.product))
        elif options.command == "show":
            _show(open_ledger())
            sys.stdout.flush()
        else:
            _hold(open_ledger(), options.gpu, options.bytes)
    except BrokenPipeError:
        # The reader has seen enough (`… show | head`); nothing more is to be written at the end either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (LedgerError, OutOfMemoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _size(text: str) -> int:
    try:
        return parse_quantity(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _show(ledger: Ledger) -> None:
    for device in ledger.devices():
        used = ledger.used_bytes(device.index)
        print(f"GPU {device.index}  {device.product}  {human_bytes(used)} of {human_bytes(device.total_bytes)} used")
        for usage in ledger.usage(device.index):
            print(f"  pid {usage.pid}  {human_bytes(usage.bytes)}")


def _hold(ledger: Ledger, gpu: int, size: int) -> None:
    stop = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop)
    ledger.allocate(gpu, size, "held")
    print(f"holding {human_bytes(size)} on GPU {gpu} (pid {os.getpid()}) until interrupted", flush=True)
    signal.sigwait(stop)


if __name__ == "__main__":
    sys.exit(main())
