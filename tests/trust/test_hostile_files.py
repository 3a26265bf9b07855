"""Broken and hostile files: each ends in one clear error, and nothing happens on the way."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

import policies
import surgery
from exporters import from_peft, open_session
from exporters.peft_bridge import to_peft
from surgery import adapter_file
from surgery.operations.plan import Plan
from tests.trust.architectures import build
from tests.trust.conftest import Tally
from tests.trust.faults import contents
from tests.trust.promises import photograph
from tests.trust.settings import examples
from tests.trust.small import WHOLE, adapted

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([0, -1, 10**15, 10**400, "", "../../x", "weight", "items", "a.b", "\0"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "a.safetensors"
    return surgery.save(adapted("srlora"), path).read_bytes()


@contextmanager
def untouched(model: nn.Module, folder: Path) -> Iterator[None]:
    """One SurgeryError, the model as it was, no file but the one given, nothing unpickled."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something was unpickled")

    before, files = photograph(model), contents(folder)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("load", "loads", "Unpickler"):
            patch.setattr(pickle, name, refuse)
        patch.setattr(torch, "load", refuse)
        with pytest.raises(surgery.SurgeryError) as caught:
            yield
    error = caught.value
    assert error.what and error.remedy and len(str(error)) < 5000
    assert photograph(model) == before
    assert contents(folder) == files


def _refused(content: bytes, folder: Path, tally: Tally) -> None:
    path = folder / "a.safetensors"
    path.write_bytes(content)
    for model in (build(WHOLE), _ADAPTED):
        with untouched(model, folder):
            surgery.load(model, path)
        tally["files"] += 1


_ADAPTED = adapted("srlora")


def test_every_kind_of_damage_to_bytes(file: bytes, tmp_path: Path, tally: Tally) -> None:
    """One flipped bit, one changed byte, a hole, a cut, a piece too many, two pieces exchanged."""

    @examples(60)
    @given(st.data())
    def holds(data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(file) - 1))
        to = data.draw(st.integers(0, len(file) - 1))
        low, high = sorted((at, to))
        damage = data.draw(st.sampled_from(["bit", "byte", "hole", "cut", "more", "exchange"]))
        content = bytearray(file)
        if damage == "bit":
            content[at] ^= 1 << data.draw(st.integers(0, 7))
        elif damage == "byte":
            content[at] = data.draw(st.integers(0, 255))
        elif damage == "hole":
            content[low:high] = bytes(high - low)
        elif damage == "cut":
            del content[low:high]
        elif damage == "more":
            content[at:at] = file[low:high]
        else:
            content = bytearray(file[high:] + file[low:high] + file[:low])
        if bytes(content) != file and not _means_the_same(bytes(content), file):
            _refused(bytes(content), tmp_path, tally)

    holds()


def _means_the_same(content: bytes, file: bytes) -> bool:
    """White space in the header may change."""
    length = struct.unpack("<Q", file[:8])[0]
    try:
        same = json.loads(content[8 : 8 + length]) == json.loads(file[8 : 8 + length])
    except ValueError:
        return False
    return same and content[:8] == file[:8] and content[8 + length :] == file[8 + length :]


def _header(file: bytes) -> tuple[dict[str, Any], bytes]:
    length = struct.unpack("<Q", file[:8])[0]
    return json.loads(file[8 : 8 + length]), file[8 + length :]


def _with_header(header: Any, body: bytes, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


@pytest.mark.parametrize(
    "header",
    [b"", b"{", b"[]", b"null", b"{}", b"[" * 100_000, b"\xff\xfe", b'{"a":1}', b"9" * 10_000],
    ids=["empty", "open", "list", "null", "nothing", "deep", "no text", "number", "long number"],
)
def test_headers_that_are_none(header: bytes, file: bytes, tmp_path: Path, tally: Tally) -> None:
    _refused(_with_header(header, _header(file)[1]), tmp_path, tally)


@pytest.mark.parametrize("length", [0, 1, 2**20, 2**31, 2**63 - 1, 2**64 - 1])
def test_lengths_that_lie(length: int, file: bytes, tmp_path: Path, tally: Tally) -> None:
    _refused(struct.pack("<Q", length) + file[8:], tmp_path, tally)


def test_tensors_that_lie(file: bytes, tmp_path: Path, tally: Tally) -> None:
    @examples(40)
    @given(st.data())
    def holds(data: st.DataObject) -> None:
        header, body = _header(file)
        names = sorted(set(header) - {"__metadata__"})
        name, other = (data.draw(st.sampled_from(names)) for _ in range(2))
        entry = header[name]
        change = data.draw(st.sampled_from(["dtype", "shape", "offsets", "name", "swap", "drop"]))
        if change == "dtype":
            kinds = ["F64", "I32", "BF16", "F8_E4M3", "F8_E8M0", "F4", "BOOL", "C64", "X", 3]
            entry["dtype"] = data.draw(st.sampled_from(kinds))
        elif change == "shape":
            entry["shape"] = data.draw(st.lists(st.sampled_from([-1, 0, 1, 2**40, 8]), max_size=3))
        elif change == "offsets":
            entry["data_offsets"] = data.draw(st.lists(st.integers(-1, 2**64), max_size=3))
        elif change == "name":
            header["../" + data.draw(st.text(max_size=5))] = header.pop(name)
        elif change == "swap":
            header[name], header[other] = header[other], header[name]
            here, there = (body[slice(*header[n]["data_offsets"])] for n in (name, other))
            assume(here != there)  # two scores that are zero may change places
        else:
            del header[name]
        if header != _header(file)[0]:
            _refused(_with_header(header, body), tmp_path, tally)

    holds()


def test_plans_that_lie_under_an_honest_seal(tmp_path: Path, tally: Tally) -> None:
    """Any value anywhere in the metadata; then it is refused, or was none of anybody's business."""
    model = adapted("srlora")
    path = surgery.save(model, tmp_path / "a.safetensors")
    whole = json.loads(_header(path.read_bytes())[0]["__metadata__"]["model-surgery"])
    tensors = adapter_file.read_file(path).tensors
    places = [place for place in _places(whole) if place[0] in ("plan", "base", "version")]

    @examples(80)
    @given(st.sampled_from(places), JSON)
    def holds(place: tuple[Any, ...], value: Any) -> None:
        about = copy.deepcopy(whole)
        inner = about
        for part in place[:-1]:
            inner = inner[part]
        inner[place[-1]] = value
        del about["sha256"]
        try:
            about["sha256"] = adapter_file.digest(about, tensors)
            content = safetensors.torch.save(tensors, {"model-surgery": json.dumps(about)})
        except ValueError:  # no JSON
            return
        path.write_bytes(content)
        for target in (build(WHOLE), _ADAPTED):
            _refused_or_loaded(target, path, model)
            tally["files"] += 1

    holds()


def _refused_or_loaded(target: nn.Module, path: Path, model: nn.Module) -> None:
    before = photograph(target)
    try:
        surgery.load(target, path)
    except surgery.SurgeryError:
        assert photograph(target) == before
    else:
        adapters = [(n, p) for n, p in model.named_parameters() if ".adapters." in n]
        assert all(torch.equal(target.get_parameter(name), p) for name, p in adapters)


def _places(data: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if place:
        yield place
    inner = (
        data.items()
        if isinstance(data, dict)
        else enumerate(data if isinstance(data, list) else ())
    )
    for key, value in inner:
        yield from _places(value, (*place, key))


@pytest.mark.parametrize(
    "change",
    [
        {"rows": [[0, 10**15, 1]]},
        {"rows": [[0, 4, 1], [0, 4, 1]]},
        {"rows": [[0, 8, 0]]},
        {"rows": [[-8, 0, 1]]},
        {"module": "../../etc"},
        {"module": "stack.0.mixer"},
        {"parameter": "items"},
        {"parameter": "__class__"},
        {"in_features": 10**15, "out_features": 10**15},
    ],
    ids=str,
)
def test_a_plan_that_fits_no_weight(change: dict[str, Any], tally: Tally) -> None:
    model = adapted("lora")
    plain = Plan.to_dict(model.__dict__["_surgery"].plan)
    plain["operations"][0]["projection"] |= change
    target = build(WHOLE)
    before = photograph(target)
    with pytest.raises(surgery.PlanError):
        surgery.apply(target, plan=Plan.from_dict(plain))
    assert photograph(target) == before
    tally["cases"] += 1


@pytest.mark.parametrize("slot", ["", "items", "a.b", "../x", "query_", "value", "QUERY"])
def test_a_slot_that_is_none(slot: str) -> None:
    plain = Plan.to_dict(adapted("lora").__dict__["_surgery"].plan)
    assert plain["operations"][0]["slot"] == "query"
    plain["operations"][0]["slot"] = slot
    with pytest.raises(surgery.PlanError):
        surgery.apply(build(WHOLE), plan=Plan.from_dict(plain))


def test_a_pickle_is_not_opened(tmp_path: Path, tally: Tally) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return (open, (str(tmp_path / "exploded"), "w"))  # type: ignore[return-value]

    _refused(pickle.dumps(Bomb()), tmp_path, tally)
    torch.save(Bomb(), tmp_path / "b")
    _refused((tmp_path / "b").read_bytes(), tmp_path, tally)
    assert not (tmp_path / "exploded").exists()


WORDS = st.sampled_from(
    ["select", "roles", "query", "adapter", "rank", "alpha", "kind", "lora", "depth", "last 4",
     "train", "head", "extends", "vit-attn-qv", "options", "target_rank", "modules", "name", "when"]
)  # fmt: skip
SCALARS = WORDS | st.text(max_size=12) | st.sampled_from(
    ["0x" + "f" * 6000, "9" * 5000, "1e999", ".inf", ".nan", "-1", "1:1:1", "2020-02-30", "!!int x",
     "!!python/object/apply:os.system ['true']", "&a [*a]", "<<: {a: b}", "? a", "!!binary aGk=",
     "!!set {a}", "!!omap [a: b]", "~", "[[[[", "{", "- - -", "'", "%TAG", "---", "...", "\t", "\x85"]
)  # fmt: skip
YAML = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4).map(lambda parts: f"[{', '.join(parts)}]")
        | st.lists(st.tuples(SCALARS, inner), max_size=4).map(
            lambda pairs: "{" + ", ".join(f"{key}: {value}" for key, value in pairs) + "}"
        )
    ),
    max_leaves=12,
)
FILES = st.lists(st.tuples(SCALARS, YAML), max_size=6).map(
    lambda pairs: "\n".join(f"{key}: {value}" for key, value in pairs)
)


def test_the_policy_parser(tmp_path: Path, tally: Tally) -> None:
    """Any bytes, any text of the right words: a policy or one PolicyError that names the file."""
    path = tmp_path / "p.yaml"

    @examples(150)
    @given(FILES.map(lambda text: text.encode("utf-8", "replace")) | st.binary(max_size=60))
    def holds(content: bytes) -> None:
        path.write_bytes(content)
        _parsed(path)
        tally["files"] += 1

    holds()


def _parsed(path: Path) -> None:
    before = contents(path.parent)
    error = refusal(lambda: _used(policies.get(path)))
    assert error is None or error.remedy
    assert contents(path.parent) == before


def _used(policy: policies.Policy) -> None:
    again = policies.get(policy.to_dict())
    assert again.model_dump_json() == policy.model_dump_json()
    surgery.plan(build(WHOLE), policy, anatomy=_anatomy())


def refusal(work: Callable[[], object]) -> surgery.SurgeryError | None:
    """What ``work`` is refused with; any other error goes through."""
    try:
        work()
    except surgery.SurgeryError as error:
        return error
    return None


@pytest.mark.parametrize(
    "key", ["rank", "alpha", "target_rank", "gamma", "dropout", "init", "depth"]
)
@pytest.mark.parametrize(
    "value",
    ["0x" + "f" * 6000, "1" * 4000, "-1", "0", "1e999", ".nan", "[]", "{a: b}", "true", "x", "''"],
)
def test_enormous_and_odd_numbers(key: str, value: str, tmp_path: Path, tally: Tally) -> None:
    path = tmp_path / "p.yaml"
    kind = "lora" if key in ("dropout", "init") else "srlora"
    where = f"depth: {value}" if key == "depth" else f"adapter: {{kind: {kind}, {key}: {value}}}"
    path.write_text(f"select: [{{roles: [query], {where}}}]")
    error = refusal(lambda: _used(policies.get(path)))
    harmless = {("depth", "0"), ("dropout", "0"), ("gamma", "true")}
    assert (error is None) is ((key, value) in harmless)
    assert error is None or len(str(error)) < 6000
    tally["files"] += 1


_READ: list[surgery.Anatomy] = []


def _anatomy() -> surgery.Anatomy:
    if not _READ:
        _READ.append(surgery.read(build(WHOLE), torch.zeros(2, 5, WHOLE.width)))
    return _READ[0]


def test_policies_as_data(tally: Tally) -> None:
    @examples(100)
    @given(
        st.fixed_dictionaries(
            {},
            optional={
                "select": st.lists(
                    st.fixed_dictionaries({}, optional={"roles": JSON, "depth": JSON, "adapter": JSON,
                                                        "modules": JSON}), max_size=2) | JSON,
                "adapter": st.fixed_dictionaries(
                    {"kind": st.sampled_from(["lora", "srlora", "polar", "symlora"]) | JSON},
                    optional={"rank": JSON, "alpha": JSON, "target_rank": JSON, "gamma": JSON,
                              "dropout": JSON, "scaling": JSON, "init": JSON, "rectangular": JSON,
                              "beta1": JSON}),
                "train": JSON, "extends": JSON, "name": JSON,
            },
        )
    )  # fmt: skip
    def holds(data: dict[str, Any]) -> None:
        whole = {"select": [{"roles": ["query"]}], **data}
        for asked in (data, whole):
            refusal(lambda asked=asked: surgery.plan(build(WHOLE), asked, anatomy=_anatomy()))
            tally["cases"] += 1

    holds()


def test_adapter_names(tally: Tally) -> None:
    @examples(60)
    @given(
        st.text(max_size=40) | st.sampled_from(["lroa", "../lora", "lora\0", "LORA", "os.system"])
    )
    def holds(name: str) -> None:
        kind = {"select": [{"roles": ["query"]}], "adapter": name}
        option = {**kind, "adapter": {"kind": "lora", name: 1}}
        for asked in (kind, option):
            refusal(lambda asked=asked: surgery.plan(build(WHOLE), asked, anatomy=_anatomy()))
            tally["cases"] += 1

    holds()


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX file with its weights beside it."""
    weight = onnx.numpy_helper.from_array(torch.randn(64, 64).numpy(), "w")
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])], "g",
        [value("x", 1, ["n", 64])], [value("y", 1, ["n", 64])], [weight],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    model.ir_version = 10
    path = tmp_path_factory.mktemp("onnx") / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="m.onnx.data")
    assert open_session(path).run(None, {"x": np.ones((1, 64), "float32")})
    return path


@pytest.mark.parametrize("damage", ["missing", "cut", "elsewhere", "a folder"])
def test_onnx_files_without_their_weights(
    damage: str, model_file: Path, tmp_path: Path, tally: Tally
) -> None:
    folder = tmp_path / "below"
    shutil.copytree(model_file.parent, folder)
    path, data = folder / "m.onnx", folder / "m.onnx.data"
    if damage == "cut":
        data.write_bytes(data.read_bytes()[:100])
    elif damage == "elsewhere":
        data.rename(tmp_path / "secret")
        model = onnx.load(path, load_external_data=False)
        model.graph.initializer[0].external_data[0].value = "../secret"
        path.write_bytes(model.SerializeToString())
    else:
        data.unlink()
        data.mkdir() if damage == "a folder" else None
    before = contents(folder)
    error = refusal(lambda: open_session(path))
    assert error is not None and "cannot open" in error.what and len(str(error)) < 1000
    assert contents(folder) == before
    tally["files"] += 1


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return to_peft(adapted("lora"), tmp_path_factory.mktemp("peft"), task_type="SEQ_CLS")


def test_peft_checkpoints_of_other_shapes(checkpoint: Path, tmp_path: Path, tally: Tally) -> None:
    config = json.loads((checkpoint / "adapter_config.json").read_text())
    tensors = safetensors.torch.load_file(checkpoint / "adapter_model.safetensors")
    names = sorted(tensors)
    odd = ["base_model.model.x.lora_A.weight", "base_model.model..lora_B.weight", "../../x", ""]

    @examples(80)
    @given(st.data())
    def holds(data: st.DataObject) -> None:
        facts, held = dict(config), dict(tensors)
        if data.draw(st.booleans()):
            key = data.draw(st.sampled_from(sorted(facts)))
            facts[key] = data.draw(JSON | st.just({"(a+)+": 1, "(.*)*$": 2}))
        else:
            name = data.draw(st.sampled_from(names))
            shape = data.draw(st.lists(st.sampled_from([0, 1, 2, 8, 24, 99]), max_size=3))
            dtype = data.draw(
                st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool])
            )
            held[data.draw(st.sampled_from([name, *odd]))] = torch.zeros(shape, dtype=dtype)
        _peft(tmp_path, json.dumps(facts).encode(), safetensors.torch.save(held))
        tally["files"] += 1

    holds()


def test_peft_checkpoints_of_any_bytes(checkpoint: Path, tmp_path: Path, tally: Tally) -> None:
    config = (checkpoint / "adapter_config.json").read_bytes()
    whole = (checkpoint / "adapter_model.safetensors").read_bytes()

    @examples(40)
    @given(st.booleans(), st.binary(max_size=40), st.integers(0, len(whole)))
    def holds(first: bool, junk: bytes, at: int) -> None:
        if first:
            _peft(tmp_path, junk if at % 2 else config[:at] + junk, whole)
        else:
            _peft(tmp_path, config, whole[:at] + junk + whole[at + len(junk) :])
        tally["files"] += 1

    holds()


def _peft(folder: Path, config: bytes, tensors: bytes) -> None:
    (folder / "adapter_config.json").write_bytes(config)
    (folder / "adapter_model.safetensors").write_bytes(tensors)
    model, files = build(WHOLE), contents(folder)
    before = photograph(model)
    error = refusal(lambda: from_peft(model, folder))
    assert error is None or (error.remedy and photograph(model) == before)
    assert contents(folder) == files
