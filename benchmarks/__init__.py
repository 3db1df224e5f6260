"""Benchmarks: every figure is a ratio between things measured in the same run."""
