"""Benchmarks of FluxIR: `python -m bench SUBJECT`. Nothing here is part of the package.

Every subject is a module with `run(quick) -> Report`. Rounds of what is compared are interleaved, so that a busy
minute of the machine meets all of them; medians and ratios of medians are reported, and the raw times are kept.
"""
