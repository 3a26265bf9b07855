"""Benchmarks: each prints a table and keeps its figures under benchmarks/results/."""
