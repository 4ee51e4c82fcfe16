"""Benchmarks; run them as modules from the root of a clone."""
