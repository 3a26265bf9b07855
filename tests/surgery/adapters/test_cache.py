"""Singular directions on the disk: the same bits, or computed anew."""

from __future__ import annotations

import multiprocessing
import os
import time

import pytest
import safetensors.torch
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from surgery.adapters import cache, get, svd
from surgery.errors import StateError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A cache of its own, in which every weight is worth keeping."""
    monkeypatch.setenv(cache.FOLDER, str(tmp_path))
    monkeypatch.setattr(cache, "WORTH_KEEPING", 1)
    return tmp_path / "svd"


@pytest.fixture
def computed(monkeypatch):
    """How often a decomposition was computed."""
    calls = []
    real = svd.decompose
    monkeypatch.setattr(svd, "decompose", lambda *a: calls.append(a) or real(*a))
    return calls


def weight(seed=0, shape=(40, 30)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def equal(one, other):
    return all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(one, other, strict=True))


def files(folder):
    return sorted(os.listdir(folder)) if folder.exists() else []


@settings(max_examples=10, deadline=None)
@given(
    kind=st.sampled_from(["pissa", "srlora", "sym-srlora", "polar"]),
    out=st.integers(2, 200),
    in_=st.integers(2, 200),
    seed=st.integers(0, 9),
)
@example(
    kind="sym-srlora", out=8, in_=9, seed=0
)  # what was computed lay otherwise than what was read
def test_adapters_start_with_the_same_bits(tmp_path_factory, kind, out, in_, seed):
    rank = min(4, out, in_)

    def start():
        adapter = get(kind)(in_, out, rank=rank)
        adapter.start(weight(seed, (out, in_)), torch.Generator().manual_seed(seed))
        return {**adapter.state_dict(), "delta": adapter.delta()}

    plain = start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(cache.FOLDER, str(tmp_path_factory.mktemp("cache")))
        patch.setattr(cache, "WORTH_KEEPING", 1)
        first = start()
        patch.setattr(svd, "decompose", lambda *_: pytest.fail("it was not kept"))
        again = start()
    for state in (first, again):
        assert all(torch.equal(state[name], tensor) for name, tensor in plain.items())


def test_a_second_start_reads_and_any_difference_computes(folder, computed):
    first = svd.leading(weight(), 4)
    assert equal(svd.leading(weight(), 4), first)
    assert len(computed) == 1
    others = [
        (weight(), 5),
        (weight(1), 4),
        (weight().double(), 4),
        (weight().view(30, 40), 4),
        (weight().add(torch.eye(40, 30) * 1e-7), 4),
    ]
    for other, count in others:
        svd.leading(other, count)
    assert len(computed) == 1 + len(others) == len(files(folder))
    assert equal(svd.leading(weight().T.contiguous().T, 4), first)  # the values count, not strides
    assert len(computed) == 1 + len(others)


def test_another_version_of_the_algorithm_computes(folder, computed, monkeypatch):
    svd.leading(weight(), 4)
    monkeypatch.setattr(cache, "ALGORITHM", cache.ALGORITHM + 1)
    svd.leading(weight(), 4)
    assert len(computed) == 2


def _cut(content):
    return content[: len(content) // 2]


def _flipped(content):
    return content[:-7] + bytes([content[-7] ^ 1]) + content[-6:]


def _foreign(content):
    return safetensors.torch.save({"u": torch.ones(2)})


def _resigned(content):
    """Tensors of another weight's entry, with their own digest."""
    tensors = safetensors.torch.load(content)
    key = "0" * 64
    triplets = (tensors["u"] * 2, tensors["s"], tensors["vh"])
    digest = torch.tensor(list(cache._digest(key, triplets)), dtype=torch.uint8)
    return safetensors.torch.save({**tensors, "u": triplets[0], "sha256": digest})


@pytest.mark.parametrize(
    "damage", [_cut, _flipped, _foreign, _resigned, lambda _: b"", lambda _: b"\x00" * 999]
)
def test_a_damaged_or_foreign_file_is_computed_anew_and_mended(folder, computed, damage, caplog):
    first = svd.leading(weight(), 4)
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert equal(svd.leading(weight(), 4), first)
    assert len(computed) == 2
    assert "computed anew" in caplog.text
    assert path.read_bytes() == whole


def test_an_interrupted_write_leaves_nothing(folder, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        svd.leading(weight(), 4)
    assert files(folder) == []


def test_a_disk_that_takes_nothing_is_no_error(folder, computed, monkeypatch):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    for _ in range(2):
        svd.leading(weight(), 4)
    assert files(folder) == [] and len(computed) == 2
    monkeypatch.setenv(cache.FOLDER, "/dev/null")
    svd.leading(weight(), 4)


def _race(barrier, queue):
    torch.set_num_threads(1)  # a fork has none of the threads that its parent started
    barrier.wait()
    found = [svd.leading(weight(seed), 4) for seed in range(20)]
    queue.put([t.numpy().tobytes() for triplet in found for t in triplet])


def test_processes_that_race_get_the_same_bits(folder):
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(3), context.Queue()
    racers = [context.Process(target=_race, args=(barrier, queue)) for _ in range(3)]
    for racer in racers:
        racer.start()
    first, *others = (queue.get(timeout=60) for _ in racers)
    for racer in racers:
        racer.join()
    assert others == [first, first]
    assert len(files(folder)) == 20 and not any(name.startswith(".") for name in files(folder))


def test_what_was_used_least_recently_goes_first(folder, monkeypatch):
    svd.leading(weight(0), 4)
    (path,) = folder.iterdir()
    size = path.stat().st_size
    monkeypatch.setenv(cache.SIZE, str(3.5 * size / 2**30))
    for seed in (1, 2):
        svd.leading(weight(seed), 4)
    for age, seed in enumerate((2, 1, 0)):  # 0 is the oldest by then, and is read again
        os.utime(cache.entry(weight(seed), 4).path, (age + 1, age + 1))
    svd.leading(weight(2), 4)
    abandoned = folder / ".killed"
    abandoned.write_bytes(b"half")
    os.utime(abandoned, (1, 1))
    living = folder / ".writing"
    living.write_bytes(b"half")
    svd.leading(weight(3), 4)
    kept = [seed for seed in range(4) if cache.entry(weight(seed), 4).path.exists()]
    assert kept == [0, 2, 3]
    assert living.exists() and not abandoned.exists()
    monkeypatch.setenv(cache.SIZE, str(0.5 * size / 2**30))  # larger than the whole cache
    svd.leading(weight(4), 4)
    assert not cache.entry(weight(4), 4).path.exists()


def test_small_weights_and_an_empty_or_off_setting_keep_nothing(folder, monkeypatch):
    assert cache.entry(weight(), 4) is not None
    for said in ("off", "OFF", "0", ""):
        monkeypatch.setenv(cache.FOLDER, said)
        assert cache.folder() is None and cache.entry(weight(), 4) is None
    monkeypatch.delenv(cache.FOLDER)
    monkeypatch.setattr(cache, "WORTH_KEEPING", weight().numel() + 1)
    assert cache.folder().parent.name == "model-surgery"
    assert cache.entry(weight(), 4) is None


@pytest.mark.parametrize("said", ["much", "inf"])
def test_a_limit_that_is_no_number_is_refused(folder, monkeypatch, said):
    monkeypatch.setenv(cache.SIZE, said)
    with pytest.raises(StateError, match=cache.SIZE):
        svd.leading(weight(), 4)


def test_reading_is_noted(folder):
    svd.leading(weight(), 4)
    (path,) = folder.iterdir()
    os.utime(path, (1, 1))
    svd.leading(weight(), 4)
    assert path.stat().st_mtime > time.time() - 60
