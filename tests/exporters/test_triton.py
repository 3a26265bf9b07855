"""The model repository, against Triton's own protobuf schema and, slow, against the real server."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import timm
import torch
import transformers as hf
from google.protobuf import json_format, text_format
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import exporters
import surgery
from examples.serving.onnxruntime_server import Server
from exporters.errors import ExportError
from exporters.pbtxt import Word, entries, render
from tests.exporters.triton_server import running

LABELS = ["tabby cat", 'a "quoted" cat', "Katze, graue"]


def _schema() -> ModuleType:
    """``model_config.proto`` as tritonclient ships it; its package would import gRPC, too."""
    (place,) = importlib.util.find_spec("tritonclient").submodule_search_locations
    path = Path(place) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCHEMA = _schema()


def parsed(home: Path):
    return text_format.Parse((home / "config.pbtxt").read_text(), SCHEMA.ModelConfig())


class Tokens(nn.Module):
    """The mean embedding of the tokens that the mask keeps, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        kept = attention_mask[..., None].float()
        return self.head((self.table(input_ids) * kept).sum(1) / kept.sum(1))


class WithMean(nn.Linear):
    """Its second output has no batch."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = super().forward(x)
        return y, y.mean()


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Unverified exports; the tests only read them."""
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=3).eval()
    exporters.to_onnx(model, folder / "cats.onnx", labels=LABELS, verify=False)
    portable = {"target": "portable", "verify": False}
    small, given_ = nn.Sequential(nn.Linear(4, 4)).eval(), {"example_inputs": torch.randn(2, 4)}
    exporters.to_onnx(small, folder / "still.onnx", dynamic=False, **portable, **given_)
    exporters.to_onnx(WithMean(4, 3).eval(), folder / "mean.onnx", **portable, **given_)
    surgery.apply(small, {"name": "a", "select": [{"modules": "0"}]}, rank=2, **given_)
    exporters.to_onnx(small.eval(), folder / "base.onnx", adapters="runtime", **portable, **given_)
    tokens = {"input_ids": torch.ones(2, 5).long(), "attention_mask": torch.ones(2, 5).long()}
    exporters.to_onnx(Tokens().eval(), folder / "text.onnx", **portable, example_inputs=tokens)
    return folder


def test_inputs_outputs_and_batching_are_those_of_the_file(files, tmp_path):
    home = exporters.triton_repository(
        files / "cats.onnx", tmp_path / "repo", preferred=(4, 8), delay_us=200, threads=1
    )
    config = parsed(home)
    assert (config.name, config.backend, config.max_batch_size) == ("cats", "onnxruntime", 16)
    (taken,), (given_,) = config.input, config.output
    assert (taken.name, list(taken.dims)) == ("x", [3, 32, 32])
    assert taken.data_type == given_.data_type == SCHEMA.TYPE_FP32
    assert (given_.name, list(given_.dims)) == ("output", [3])
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 8]
    assert config.dynamic_batching.max_queue_delay_microseconds == 200
    assert config.instance_group[0].kind == SCHEMA.ModelInstanceGroup.KIND_CPU
    assert config.parameters["intra_op_thread_count"].string_value == "1"
    assert [w.batch_size for w in config.model_warmup] == [1, 16]
    assert (home / "labels.txt").read_text().splitlines() == LABELS
    assert given_.label_filename == "labels.txt"


class Branches(nn.Module):
    """Another graph for more than eight rows; signals of 40 and more."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 2, 40)

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        y = self.conv(signal).mean(-1)
        return y if signal.shape[0] <= 8 else 2 * y


def test_batches_stay_within_what_the_file_holds_for(tmp_path):
    file = tmp_path / "m.onnx"
    exporters.to_onnx(
        Branches().eval(),
        file,
        target="portable",
        example_inputs=torch.randn(4, 1, 50),
        dynamic={"signal": {0: "batch", 2: "time"}},
        verify=False,
    )
    told = exporters.facts(file)["axes"]
    assert told["batch"] == {"least": 1, "most": 8, "traced": 2}
    assert (told["time"]["traced"], told["time"]["most"]) == (50, None)
    config = parsed(exporters.triton_repository(file, tmp_path / "repo"))
    assert config.max_batch_size == 8
    assert [w.batch_size for w in config.model_warmup] == [1, 8]
    assert list(config.model_warmup[0].inputs["signal"].dims) == [1, 50]
    with pytest.raises(ExportError, match="up to 8"):
        exporters.triton_repository(file, tmp_path / "repo", max_batch=9, overwrite=True)


def test_the_version_is_the_file_and_runs(files, tmp_path):
    home = exporters.triton_repository(files / "cats.onnx", tmp_path, name="vit.cats", version=3)
    assert {path.name for path in home.iterdir()} == {"config.pbtxt", "labels.txt", "3"}
    assert (home / "3/model.onnx").read_bytes() == (files / "cats.onnx").read_bytes()
    assert ort.InferenceSession(home / "3/model.onnx").get_inputs()[0].name == "x"


@pytest.mark.parametrize(
    ("file", "engine", "accelerators"),
    [("cats.portable.onnx", "cuda", []), ("cats.portable.onnx", "tensorrt", ["tensorrt"])],
)
def test_a_gpu_is_used_as_the_engine_wants_it(file, engine, accelerators, files, tmp_path):
    config = parsed(
        exporters.triton_repository(files / file, tmp_path, engine=engine, max_batch=8, name="m")
    )
    assert config.instance_group[0].kind == SCHEMA.ModelInstanceGroup.KIND_GPU
    found = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert [a.name for a in found] == accelerators
    if accelerators:
        settings_ = dict(found[0].parameters)
        assert settings_["precision_mode"] == "FP32"
        assert settings_["trt_profile_min_shapes"] == "x:1x3x32x32"
        assert settings_["trt_profile_opt_shapes"] == "x:4x3x32x32"
        assert settings_["trt_profile_max_shapes"] == "x:8x3x32x32"


def test_token_inputs_are_dynamic_and_warmed_up_with_tokens(files, tmp_path):
    config = parsed(exporters.triton_repository(files / "text.onnx", tmp_path))
    assert {i.name: (list(i.dims), i.data_type) for i in config.input} == {
        "input_ids": ([-1], SCHEMA.TYPE_INT64),
        "attention_mask": ([-1], SCHEMA.TYPE_INT64),
    }
    taken = config.model_warmup[0].inputs
    assert all(list(value.dims) == [8] for value in taken.values())
    assert taken["input_ids"].zero_data
    assert taken["attention_mask"].input_data_file == "ones_int64_8"
    assert (tmp_path / "text/warmup/ones_int64_8").read_bytes() == np.ones(8, np.int64).tobytes()


def sent(home: Path, warmup) -> dict[str, np.ndarray]:
    """What the server makes of a warm-up: it hands the one row on as often as the batch has rows."""
    kinds = {SCHEMA.TYPE_INT64: np.int64, SCHEMA.TYPE_FP32: np.float32}
    found = {}
    for name, value in warmup.inputs.items():
        shape, kind = tuple(value.dims), kinds[value.data_type]
        row = np.zeros(shape, kind)
        if value.input_data_file:
            content = (home / "warmup" / value.input_data_file).read_bytes()
            row = np.frombuffer(content, kind).reshape(shape)
        found[name] = np.stack([row] * warmup.batch_size) if warmup.batch_size else row
    return found


@pytest.mark.parametrize("cache", [True, "right"])
def test_a_file_with_a_cache_runs_what_it_is_warmed_up_with(cache, tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 60}
    config = hf.LlamaConfig(**sizes, num_attention_heads=2, max_position_embeddings=16)
    model = hf.LlamaForCausalLM(config).eval()
    exporters.to_onnx(model, tmp_path / "m.onnx", cache=cache, verify=False, portable=False)
    home = exporters.triton_repository(tmp_path / "m.onnx", tmp_path / "repo", max_batch=3)
    session = exporters.open_session(home / "1/model.onnx")
    for warmup in parsed(home).model_warmup:
        given_ = sent(home, warmup)
        assert all(value.size for value in given_.values())
        logits, *_ = session.run(None, given_)
        assert logits.shape == (warmup.batch_size, 1, 60) and np.isfinite(logits).all()
    server = Server(tmp_path / "m.onnx", warm=(1, 3))
    assert [len(feeds["input_ids"]) for feeds in server.warm_up((1, 3))] == [1, 3]
    assert all(np.isfinite(server(feeds)[0]).all() for feeds in server.warm_up((1, 3)))


def test_a_fixed_batch_is_not_batched(files, tmp_path):
    config = parsed(exporters.triton_repository(files / "still.onnx", tmp_path))
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    shape = onnx.load(files / "still.onnx").graph.input[0].type.tensor_type.shape.dim
    assert list(config.input[0].dims) == [d.dim_value for d in shape]


def test_where_one_output_has_no_batch_every_dimension_is_told(files, tmp_path):
    config = parsed(exporters.triton_repository(files / "mean.onnx", tmp_path))
    assert config.max_batch_size == 0
    assert [list(v.dims) for v in (*config.input, *config.output)] == [[-1, 4], [-1, 3], [1]]
    (warm,) = config.model_warmup
    assert warm.batch_size == 0 and list(warm.inputs["x"].dims) == [8, 4]


def test_weights_beside_the_file_travel_with_it(files, tmp_path):
    model = onnx.load(files / "cats.onnx")
    onnx.save(
        model, tmp_path / "big.onnx", save_as_external_data=True, location="big.onnx.data",
        size_threshold=1024,
    )  # fmt: skip
    home = exporters.triton_repository(tmp_path / "big.onnx", tmp_path / "repo")
    assert {path.name for path in (home / "1").iterdir()} == {"model.onnx", "big.onnx.data"}
    ort.InferenceSession(home / "1/model.onnx")


def test_further_versions_share_the_configuration(files, tmp_path):
    first = exporters.triton_repository(files / "cats.onnx", tmp_path, name="m")
    before = (first / "config.pbtxt").read_bytes()
    exporters.triton_repository(files / "cats.onnx", tmp_path, name="m", version=2)
    assert (first / "config.pbtxt").read_bytes() == before
    with pytest.raises(ExportError, match="version 2 exists"):
        exporters.triton_repository(files / "cats.onnx", tmp_path, name="m", version=2)
    with pytest.raises(ExportError, match="other inputs, outputs or settings"):
        exporters.triton_repository(files / "cats.onnx", tmp_path, name="m", version=3, delay_us=9)
    assert {path.name for path in first.iterdir()} == {"config.pbtxt", "labels.txt", "1", "2"}
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    exporters.triton_repository(
        files / "cats.onnx", tmp_path, name="m", version=2, delay_us=9, overwrite=True
    )
    assert parsed(first).dynamic_batching.max_queue_delay_microseconds == 9


@pytest.mark.parametrize(
    ("file", "options", "reason"),
    [
        ("cats.onnx", {"engine": "tensorrt"}, "cats.portable.onnx"),
        ("cats.onnx", {"engine": "cuda"}, "fused for cpu"),
        ("cats.onnx", {"engine": "npu"}, "unknown engine"),
        ("base.onnx", {}, "adapters at run time"),
        ("nothing.onnx", {}, "cannot be served"),
        ("cats.onnx", {"name": "../m"}, "cannot be the name"),
        ("cats.onnx", {"name": ".."}, "cannot be the name"),
        ("cats.onnx", {"name": "é" * 150}, "cannot be the name"),
        ("cats.onnx", {"engine": ["cpu"]}, "unknown engine"),
        ("cats.onnx", {"version": 0}, "make no sense"),
        ("cats.onnx", {"version": "1"}, "make no sense"),
        ("cats.onnx", {"version": 2.5}, "make no sense"),
        ("cats.onnx", {"max_batch": 1.5}, "make no sense"),
        ("cats.onnx", {"max_batch": True}, "make no sense"),
        ("cats.onnx", {"delay_us": -5}, "make no sense"),
        ("cats.onnx", {"threads": -5}, "make no sense"),
        ("cats.onnx", {"threads": "a"}, "make no sense"),
        ("cats.onnx", {"preferred": ("4",)}, "make no sense"),
        ("cats.onnx", {"max_batch": 4, "preferred": (8,)}, "make no sense"),
    ],
)
def test_what_cannot_be_served_is_refused(file, options, reason, files, tmp_path):
    with pytest.raises(ExportError, match=reason):
        exporters.triton_repository(files / file, tmp_path / "repo", **options)
    assert not list((tmp_path / "repo").glob("*"))


@settings(max_examples=50, deadline=None)
@given(
    name=st.text(st.characters(exclude_categories=("Cs",)), min_size=1),
    dims=st.lists(st.integers(-1, 2**40), max_size=4),
    batch=st.integers(0, 2**20),
)
def test_text_is_read_back_as_it_was_meant(name, dims, batch):
    tensor = {"name": name, "data_type": Word("TYPE_INT64"), "dims": dims, "optional": True}
    parameters = entries({name: {"string_value": name}})
    text = render(
        {"name": name, "max_batch_size": batch, "input": [tensor], "parameters": parameters}
    )
    config = text_format.Parse(text, SCHEMA.ModelConfig())
    assert (config.name, config.max_batch_size, list(config.input[0].dims)) == (name, batch, dims)
    assert config.input[0].optional
    assert config.parameters[name].string_value == name


@pytest.mark.slow
@pytest.mark.download
def test_the_real_server_reads_the_configuration(files, tmp_path):
    """PyPI's tritonserver has no ONNX backend: it reads everything, and then misses just that."""
    exporters.triton_repository(files / "cats.onnx", tmp_path, preferred=(4, 8), threads=1)
    exporters.triton_repository(
        files / "cats.portable.onnx", tmp_path, engine="tensorrt", name="trt"
    )
    with running(tmp_path) as server:
        for name in ("cats", "trt"):
            assert "unable to find backend library for backend 'onnxruntime'" in server.reason(name)
    broken = tmp_path / "cats/config.pbtxt"
    broken.write_text(broken.read_text() + "no_such_field: 1\n")
    with running(tmp_path) as server:
        assert "unable to find backend" not in server.reason("cats")


@pytest.mark.slow
@pytest.mark.download
def test_the_real_server_warms_the_model_up_in_its_python_backend(files, tmp_path):
    """With ONNX Runtime inside a Python model; the warm-up runs the file at both batch sizes."""
    home = exporters.triton_repository(
        files / "cats.onnx", tmp_path, max_batch=8, preferred=(8,), threads=1
    )
    wanted = parsed(home)
    text = (home / "config.pbtxt").read_text()
    (home / "config.pbtxt").write_text(text.replace('"onnxruntime"', '"python"'))
    shutil.copyfile(Path(__file__).with_name("triton_model.py"), home / "1/model.py")
    with running(tmp_path) as server:
        assert server.ready("cats")
        read = json_format.ParseDict(
            json.loads(server.get("v2/models/cats/config")), SCHEMA.ModelConfig()
        )
        sizes = json.loads((home / "1/batches.json").read_text())
    assert sum(sizes) == 1 + 8  # this backend is handed a batch one request at a time
    for field in ("input", "output", "dynamic_batching", "model_warmup", "max_batch_size"):
        assert getattr(read, field) == getattr(wanted, field)
