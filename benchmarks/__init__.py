"""Speed against the peers and the limit; `python -m benchmarks --help` lists the commands."""
