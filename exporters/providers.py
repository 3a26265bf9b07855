"""Which ONNX Runtime is installed, and what it can run on here."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from functools import cache
from importlib import metadata

import onnx
from onnx import helper

from exporters.errors import ExportError

PACKAGES = ("onnxruntime", "onnxruntime-gpu")
CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
_LIBRARIES = {TENSORRT: " and NVIDIA's tensorrt"}


def require_runtime() -> str:
    """Return name and version of the one installed ONNX Runtime.

    Raises:
        ExportError: If neither or both of its packages are installed. They overwrite each
            other's files, and pip does not notice.
    """
    found = {name: version for name in PACKAGES if (version := _version(name))}
    if len(found) == 1:
        return " ".join(*found.items())
    both = len(found) > 1
    raise ExportError(
        "ONNX Runtime is installed twice" if both else "ONNX Runtime is not installed",
        where=", ".join(f"{name} {version}" for name, version in found.items()) or None,
        why="both packages write the same files, whichever came last wins"
        if both
        else "every exported file is run once before it is handed over",
        remedy=f"{'pip uninstall onnxruntime onnxruntime-gpu, then ' if both else ''}"
        "pip install 'model-surgery[cpu]' (or [gpu])",
    )


def require_providers(wanted: Sequence[str], found: Sequence[str]) -> None:
    """Refuse to go on without one of those wanted.

    Raises:
        ExportError: With the first that is missing.
    """
    missing = next((provider for provider in wanted if provider not in found), None)
    if missing is not None:
        raise ExportError(
            f"{missing} is not available",
            why=f"this ONNX Runtime has {', '.join(found)}",
            remedy=f"pip install 'model-surgery[gpu]'{_LIBRARIES.get(missing, '')} on a machine with a "
            "GPU, or open the file with options=SessionOptions()",
        )


@cache
def starts(provider: str) -> bool:
    """Whether a provider is built in and its libraries load, too."""
    import onnxruntime as ort

    if provider == CPU:
        return True
    if provider not in ort.get_available_providers():
        return False
    told = ort.SessionOptions()
    told.log_severity_level = 4
    try:
        # Where a provider fails, ONNX Runtime prints so and goes on without it.
        with contextlib.redirect_stdout(io.StringIO()):
            session = ort.InferenceSession(_smallest(), told, providers=[provider])
    except Exception:  # onnxruntime's classes have no common root of their own
        return False
    return provider in session.get_providers()


def _smallest() -> bytes:
    """A model of one node."""
    x, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "smallest", [x], [y])
    opsets = [helper.make_opsetid("", 20)]
    content: bytes = helper.make_model(
        graph, opset_imports=opsets, ir_version=10
    ).SerializeToString()
    return content


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
