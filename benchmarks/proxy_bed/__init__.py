"""What `benchmarks.proxy` measures with: the peers, our two proxies, one upstream for all, and the load."""
