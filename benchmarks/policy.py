"""What the admission policy costs: one write of a sidecar to its GPU, with and without it, on a real kube-apiserver.

The same pod, the same token, the same patch; only the policy's binding comes and goes. `added_ms_N`: more time for a
write at N occupants, median with the binding less median without, rounds side by side.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

from tests.chart.conftest import NAMESPACE, account, apply, make_gpu, patch_gpu, render
from tests.testbeds.admin import Admin
from tests.testbeds.kube import RealApi

ME = "llama-0-11111111"
POLICY = "greenthread-sidecar"
BINDINGS = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings"


def occupant(number: int) -> dict[str, Any]:
    name = ME if number == 0 else f"other{number}-0-22222222"
    return {"namespace": NAMESPACE, "podName": name, "modelName": name.split("-")[0], "state": "sleeping"}


def write(who: Admin, gpu: str, count: int) -> list[float]:
    """Seconds of each of `count` writes."""
    took = []
    for number in range(count):
        stamp = f"2026-11-22T10:{number // 60 % 60:02}:{number % 60:02}Z"
        began = time.perf_counter()
        status, answer = patch_gpu(
            who, gpu, [{"op": "add", "path": "/status/occupants/0/lastAccessed", "value": stamp}]
        )
        took.append(time.perf_counter() - began)
        assert status == 200, answer
    return took


def switch(api: RealApi, who: Admin, gpu: str, binding: dict[str, Any], on: bool) -> None:
    """Makes or removes the binding, and returns when that is in force."""
    if on:
        api.request("POST", BINDINGS, binding)
    else:
        api.request("DELETE", f"{BINDINGS}/{POLICY}")

    def forbidden() -> bool:
        # a field of the agent, each time with another value: what changes nothing is allowed
        value = time.monotonic_ns() % 10**9
        return patch_gpu(who, gpu, [{"op": "add", "path": "/status/availableMemoryBytes", "value": value}])[0] == 403

    deadline = time.monotonic() + 30
    while forbidden() is not on:
        assert time.monotonic() < deadline, "the binding does not come into force"
        time.sleep(0.05)


def measure(rounds: int, writes: int) -> dict[str, float]:
    result: dict[str, float] = {}
    with RealApi() as api:
        api.kubectl("create", "namespace", NAMESPACE)
        apply(api, render())
        api.request("POST", "/api/v1/nodes", {"metadata": {"name": "node-a"}})
        sidecar = account(api, NAMESPACE, "greenthread-sidecar", ME, "node-a")
        binding = api.request("GET", f"{BINDINGS}/{POLICY}")[1]
        binding["metadata"] = {"name": POLICY}
        for occupants in (1, 8, 32):
            gpu = make_gpu(api, "node-a", occupants, occupants=[occupant(n) for n in range(occupants)])
            times: dict[bool, list[float]] = {True: [], False: []}
            for _ in range(rounds):
                for on in (True, False):
                    switch(api, sidecar, gpu, binding, on)
                    write(sidecar, gpu, 10)
                    times[on] += write(sidecar, gpu, writes)
            with_it, without = (1e3 * statistics.median(times[on]) for on in (True, False))
            result |= {f"ms_{occupants}": round(without, 2), f"added_ms_{occupants}": round(with_it - without, 2)}
            switch(api, sidecar, gpu, binding, True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--writes", type=int, default=150)
    options = parser.parse_args()
    result = measure(options.rounds, options.writes)
    print("occupants   write without   added by the policy")
    for occupants in (1, 8, 32):
        print(f"{occupants:9}   {result[f'ms_{occupants}']:10.2f} ms   {result[f'added_ms_{occupants}']:12.2f} ms")
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
