"""Fused operators: one graph pattern a class, each with a strict match and a reason when it does not."""
