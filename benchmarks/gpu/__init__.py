"""What a sleep and a wake cost on this machine's GPU: its link, the memory path, checkpoint, disk, real engines.

    python -m benchmarks.gpu --json [--out DIR] [--parts a,b,...] [--again]

    a  link        pinned copies by chunk size and number of streams: what the link can do
    b  memory      vllm_sleep's memory path alone: first sleep, sleep, wake, bytes left, with its settings varied
    c  checkpoint  the driver's checkpoint and restore of a process, by vllm_sleep's launcher
    d  disk        raw reads around the page cache, and a wake from vllm_sleep's file
    e  engine      `vllm serve` with models made here: ours beside vLLM's own backend, 100 cycles each
    f  swap        two such models swapped by requests under `greenthread up`, memory recorded every 100 ms

a to d need torch, triton, cuda-bindings and nvidia-ml-py in one Python (this one, or the one that `vllm` on the PATH
runs with, or `--python`); e and f need `vllm` on the PATH, and GreenThread installed. What is missing skips a part,
with the reason. a to d take a few minutes together, e and f at most 5 each.

Each part is a process with a deadline of its own. At its end it stops, and says so ("cut": true). With `--out` every
case is kept as soon as it is measured, in DIR/<part>.json: the same command continues where the last one stopped, and
measures nothing twice unless told `--again`. Without it, models are made in a temporary folder and removed.

The last line is `{"gpu": {…}, "parts": {"a": {…}, …}, "targets": [{"name", "target", "measured", "met"}, …]}`. What was
not measured is null there. Sizes are in GB of 10⁹ bytes, unless the name says otherwise.
"""
