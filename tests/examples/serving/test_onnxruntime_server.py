"""The plain server: the same numbers from many threads, and no PyTorch in its process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import exporters
from examples.serving.onnxruntime_server import Server

LABELS = ["cat", "dog", "bird"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[torch.nn.Module, Path]:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=3).eval()
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    exporters.to_onnx(model, path, labels=LABELS, target="portable", verify=False)
    return model, path


def test_many_threads_on_one_session_each_get_their_own_rows(exported):
    model, path = exported
    server = Server(path, warm=(1, 4))
    pictures = torch.randn(24, 3, 32, 32)
    with torch.no_grad():
        expected = model(pictures).numpy()
    batches = [{"x": pictures[i : i + 1 + i % 3].numpy()} for i in range(20)]
    found = server.many(batches, workers=4)
    for i, (output,) in enumerate(found):
        np.testing.assert_allclose(output, expected[i : i + 1 + i % 3], atol=1e-4)


def test_pictures_are_classified_by_what_the_file_says(exported):
    model, path = exported
    noise = np.random.default_rng(0).integers(0, 256, (3, 50, 40, 3), np.uint8)
    pictures = [Image.fromarray(pixels) for pixels in noise]
    transform = timm.data.create_transform(
        **timm.data.resolve_model_data_config(model) | {"input_size": (3, 32, 32)}
    )
    with torch.no_grad():
        shares = model(torch.stack([transform(p) for p in pictures])).softmax(-1)
    found = Server(path).classify(pictures)
    assert [label for label, _ in found] == [LABELS[i] for i in shares.argmax(-1)]
    np.testing.assert_allclose([s for _, s in found], shares.max(-1).values, atol=1e-4)


def test_it_runs_without_pytorch(exported, tmp_path):
    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
    code = (
        "import runpy, sys; sys.argv = ['server', *sys.argv[1:]]; "
        "runpy.run_module('examples.serving.onnxruntime_server', run_name='__main__'); "
        "assert not {'torch', 'onnx', 'transformers', 'timm'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code, str(exported[1]), str(tmp_path / "red.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert any(f"red.png: {label}" in done.stdout for label in LABELS)
