"""Worked examples on real weights and real images. ``python -m examples.demo`` is the main job."""
