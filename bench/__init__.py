"""Measures the service beside its rivals, and alone over time. docs/bench.md says how to run it."""
