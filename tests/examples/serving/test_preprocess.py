"""Preprocessing without PyTorch, against the libraries whose settings it follows."""

from __future__ import annotations

import json

import numpy as np
import pytest
import timm.data
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from examples.serving.preprocess import image_transform, text_encoder
from exporters.preprocessing import _of_processor


@pytest.fixture(params=[(60, 40), (40, 60), (33, 33)], ids=str)
def picture(request) -> Image.Image:
    """Smooth noise, as photographs are: filters differ most on what no camera takes."""
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    return Image.fromarray(noise).resize(request.param, Image.Resampling.BICUBIC)


@pytest.mark.parametrize(("crop", "mode"), [(1.0, "center"), (0.9, "center"), (0.9, "squash")])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(3, 32, 32), (3, 24, 32)], ids=str)
def test_timms_settings_give_timms_pixels(size, interpolation, crop, mode, picture):
    settings = {
        "input_size": size, "interpolation": interpolation, "crop_pct": crop,
        "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4), "crop_mode": mode,
    }  # fmt: skip
    expected = timm.data.create_transform(**settings, is_training=False)(picture).numpy()
    found = image_transform(json.loads(json.dumps(settings)))(picture)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    "processor",
    [
        hf.ViTImageProcessor(size={"height": 24, "width": 32}),
        hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 24, "width": 24}),
    ],
    ids=["vit", "clip"],
)
def test_transformers_settings_give_its_pixels(processor, picture):
    expected = np.asarray(processor(picture, return_tensors="np")["pixel_values"][0])
    settings = json.loads(json.dumps(_of_processor(processor)["preprocessing"]))
    found = image_transform(settings)(picture)
    assert found.shape == expected.shape
    # Pillow rounds to whole steps of 1/255 between its two passes, torchvision after both.
    step = 1 / 255 / min(settings["image_std"])
    assert np.abs(found - expected).max() <= 2.01 * step


def test_a_tokenizers_settings_give_its_tokens():
    words = {"[PAD]": 0, "[UNK]": 1, "cats": 2, "and": 3, "dogs": 4}
    whole = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    whole.pre_tokenizer = pre_tokenizers.Whitespace()
    theirs = hf.PreTrainedTokenizerFast(
        tokenizer_object=whole, pad_token="[PAD]", unk_token="[UNK]", model_max_length=4
    )
    told = json.loads(json.dumps(_of_processor(theirs)))
    texts = ["cats and dogs", "birds", "cats and dogs and cats and dogs"]
    expected = theirs(texts, padding=True, truncation=True, return_tensors="np")
    found = text_encoder(told, ["input_ids", "attention_mask"])(texts)
    assert found.keys() == {"input_ids", "attention_mask"}
    for name, values in found.items():
        np.testing.assert_array_equal(values, expected[name])


@pytest.mark.parametrize(
    "settings",
    [
        {"other": 1},
        {"input_size": [3, 8, 8], "interpolation": "bicubic", "crop_mode": "border"},
        {"image_mean": [0] * 3, "image_std": [1] * 3, "do_pad": True},
    ],
)
def test_what_is_not_done_is_refused(settings):
    with pytest.raises(ValueError, match=r"not done here|is described"):
        image_transform(settings)
