"""How a model's inputs are made: as the caller says, as a processor says, or as the model itself knows."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from typing import Any

from torch import nn

from exporters.errors import ExportError
from exporters.inputs import Inputs
from exporters.private import without_paths

_IMAGES, _IDS = "pixel_values", "input_ids"
_FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
_TOKENIZER_FACTS = (
    "model_max_length",
    "padding_side",
    "truncation_side",
    "model_input_names",
    "special_tokens_map",
    "pad_token_id",
    "chat_template",
)


def preprocessing(
    model: nn.Module,
    inputs: Inputs,
    processor: Any = None,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The metadata that says how inputs are made; empty if nobody knows.

    ``preprocessing`` is timm's data config, the configuration of an image processor or tokenizer, or
    ``{"image_processor", "tokenizer"}`` of a processor that has both. ``tokenizer`` is the whole
    tokenizer, see :func:`pack`.

    Args:
        model: Asked if nothing is given: timm models know their data config, transformers models know
            from which folder or cached repository they were loaded.
        inputs: What the model takes.
        processor: An image processor, tokenizer or processor of transformers.
        settings: A mapping in its place.

    Raises:
        ExportError: If both are given, or something else.
    """
    if settings is not None:
        if processor is not None or not isinstance(settings, Mapping):
            raise _unfit(settings, "preprocessing= takes a mapping, and processor= takes its place")
        return {"preprocessing": dict(settings)}
    processor = _own_processor(model, inputs) if processor is None else processor
    return _of_timm(model, inputs) if processor is None else _of_processor(processor)


def pack(tokenizer_json: str) -> str:
    """A tokenizer.json, deflated and in URL-safe base 64: vocabularies are long, and full of odd strings."""
    return base64.urlsafe_b64encode(zlib.compress(tokenizer_json.encode(), 9)).decode("ascii")


def _of_processor(given: Any) -> dict[str, Any]:
    parts = {name: getattr(given, name, None) for name in ("image_processor", "tokenizer")}
    parts = {name: part for name, part in parts.items() if part is not None}
    if not parts:
        return (
            _of_tokenizer(given) if hasattr(given, "convert_tokens_to_ids") else _of_images(given)
        )
    found = {name: _of_processor(part) for name, part in parts.items()}
    settings = {name: facts.pop("preprocessing") for name, facts in found.items()}
    return {"preprocessing": settings, **found.get("tokenizer", {})}


def _of_images(given: Any) -> dict[str, Any]:
    if hasattr(given, "to_dict"):
        return {"preprocessing": without_paths(given.to_dict())}
    raise _unfit(given, "it is no image processor, tokenizer or processor of transformers")


def _of_tokenizer(given: Any) -> dict[str, Any]:
    settings = {name: getattr(given, name, None) for name in _TOKENIZER_FACTS}
    limit = settings["model_max_length"]
    if limit is not None and limit > 10**9:  # transformers' word for "no limit"
        settings["model_max_length"] = None
    settings = {"tokenizer_class": type(given).__name__, **without_paths(settings)}
    fast = getattr(given, "backend_tokenizer", None)
    whole = {} if fast is None else {"tokenizer": pack(fast.to_str())}
    return {"preprocessing": settings, **whole}


def _own_processor(model: nn.Module, inputs: Inputs) -> Any:
    """The processor beside the weights that a transformers model was loaded from."""
    source = getattr(getattr(model, "config", None), "_name_or_path", None)
    if not source or not _beside(source):
        return None
    import transformers

    kinds = {_IMAGES: transformers.AutoImageProcessor, _IDS: transformers.AutoTokenizer}
    taken = [kind for name, kind in kinds.items() if name in inputs.tensors]
    kind = transformers.AutoProcessor if len(taken) == 2 else next(iter(taken), None)
    try:
        return None if kind is None else kind.from_pretrained(source, local_files_only=True)
    except (OSError, ValueError, KeyError):  # the configuration of something else
        return None


def _beside(source: str) -> bool:
    """Whether a folder, or a repository in the local cache, holds the configuration of a processor."""
    from transformers.utils import cached_file

    options = {"local_files_only": True, "_raise_exceptions_for_missing_entries": False,
               "_raise_exceptions_for_connection_errors": False}  # fmt: skip
    return any(cached_file(source, name, **options) is not None for name in _FILES)


def _of_timm(model: nn.Module, inputs: Inputs) -> dict[str, Any]:
    if not isinstance(getattr(model, "pretrained_cfg", None), Mapping):
        return {}
    from timm.data import resolve_model_data_config

    # The configuration tells the size of the pretrained weights, the inputs tell that of this model.
    shape = next(list(value.shape[1:]) for value in inputs.tensors.values())
    return {"preprocessing": {**resolve_model_data_config(model), "input_size": shape}}


def _unfit(given: Any, why: str) -> ExportError:
    return ExportError(
        "the preprocessing cannot be written into the file",
        where=type(given).__name__,
        why=why,
        remedy="pass preprocessing= a dict, such as timm.data.resolve_model_data_config(model)",
    )
