"""The whole zoo, read and proved: every timm name and every transformers type, one JSON line each."""
