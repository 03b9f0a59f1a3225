"""``python -m tests.drill``: the drill, its tables, and status 1 when something was lost, wrong or grew."""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

from greenthread.units import parse_duration
from tests.drill.drill import Drill, report
from tests.testbeds.embedded import EmbeddedApi
from tests.testbeds.kube import GARBAGE_COLLECTION, RealApi
from tests.testbeds.programs import Missing, need


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.drill", description=__doc__)
    parser.add_argument("--time", type=parse_duration, default=300.0, help="how long clients ask (default 5m)")
    parser.add_argument("--api", choices=["real", "embedded"], default="real")
    parser.add_argument("--seed", type=int, help="which models are hit and asked (default: drawn)")
    parser.add_argument("--logs", type=Path, help="copy all logs into this folder at the end")
    chosen = parser.parse_args()
    seed = chosen.seed if chosen.seed is not None else random.randrange(10**6)
    try:
        if chosen.api == "real":
            need("helm")  # makes the parts' accounts
            bed: RealApi | EmbeddedApi = RealApi(GARBAGE_COLLECTION)
        else:
            bed = EmbeddedApi()
    except Missing as missing:
        print(missing, file=sys.stderr)
        return 2
    print(f"a drill of {chosen.time:.0f} s on the {chosen.api} API, seed {seed}")
    with bed as api:
        result = Drill(api, chosen.time, seed, logs=chosen.logs).run()
    print(report(result))
    return 1 if result.mistakes else 0


if __name__ == "__main__":
    sys.exit(main())
