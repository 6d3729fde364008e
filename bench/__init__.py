"""Benchmarks: every figure is a ratio against a baseline measured in the same run, so that the machine's speed cancels out."""
