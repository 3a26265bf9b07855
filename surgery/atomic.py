"""A file is there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

if TYPE_CHECKING:
    from torch import Tensor


def replace_file(path: Path, content: bytes) -> None:
    """Put ``content`` at ``path`` in one step; what was there before stays until then.

    Raises:
        OSError: If it cannot be written.
        ValueError: If the path has no name, or holds a null.
    """
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(beside, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A new safetensors file that may be read by whom any new file may: safetensors asks for its owner alone.

    Raises:
        OSError: If it cannot be written, or is there already.
    """
    from safetensors.torch import save_file

    path.touch(exist_ok=False)
    mode = path.stat().st_mode
    with disk_errors():
        save_file(dict(tensors), path, {"format": "pt"})
    path.chmod(mode)


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """safetensors reports a full disk in an exception of its own: give it back as the OSError that it is."""
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
