"""The yard-stick: the default experiment against tuned trees and other tools at equal wall-clock, on real tables.

``python -m benchmarks.quality run`` measures what is missing and ``report`` prints what is there; see `tables` for the
data, `sides` for who takes part, and ``docs/decisions/0041-yard-stick.md`` for the rules.
"""
