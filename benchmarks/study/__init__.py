"""Are they any good? Adapters against each other on a real backbone and a real task."""
