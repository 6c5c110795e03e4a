"""Benchmarks: how long edits take and how much memory, beside EasyEdit and the method's limit.

`make bench` runs them all; nothing here is part of the test suite.
"""
