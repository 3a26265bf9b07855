"""Recomposition inside other people's training loops, one module a library."""
