"""Exported files on existing engines: ONNX Runtime by itself, and Ray Serve. See docs/serving.md."""
