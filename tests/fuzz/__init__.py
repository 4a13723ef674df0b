"""Fuzzers: what people and servers may feed the program, seeded so that a finding can be repeated.

Each module has `fuzz(cases, seed, ...) -> Report`. `python -m bench.fuzz` runs thousands, the tests here a few hundred.
"""
