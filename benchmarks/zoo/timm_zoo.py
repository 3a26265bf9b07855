"""timm: every model name, two of each run of equal blocks, at its full width and on small images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg_value, model_entrypoint
from torch import Tensor, nn

from benchmarks.zoo.constant_start import constant_start
from benchmarks.zoo.examine import Specimen
from benchmarks.zoo.shorten import shorten
from surgery.anatomy.inputs import example_inputs

_SHARES = (4, 2, 1)
_MULTIPLE = 32
# Giants that do not fit into memory before their repeated blocks are left out, and how each is built shorter.
_SHORTER: dict[str, dict[str, Any]] = {
    "swinv2_cr_giant_224": {"depths": (2, 2, 2, 2)},
    "swinv2_cr_giant_384": {"depths": (2, 2, 2, 2)},
    "vit_5b_patch16_sapiens2": {"depth": 2, "num_kv_heads": (32, 16)},
}


class Timm:
    """The names of ``timm.list_models()``."""

    def names(self) -> list[str]:
        """One of each family first, then the rest."""
        everything = timm.list_models()
        firsts = {self.family(name): name for name in reversed(everything)}
        first = sorted(firsts.values())
        return first + [name for name in everything if name not in set(first)]

    def family(self, name: str) -> str:
        """The module of timm that defines it."""
        return str(model_entrypoint(name).__module__).rpartition(".")[2]

    def specimens(self, name: str) -> Iterator[Specimen]:
        """Instances on a quarter, a half and the whole of the published image size, as far as they run."""
        made: set[str] = set()
        for share in _SHARES:
            specimen = _smallest(name, share)
            if specimen is not None and specimen.small not in made:
                made.add(specimen.small)
                yield specimen
        if not made:
            yield Specimen(timm.create_model(name))


def _smallest(name: str, share: int) -> Specimen | None:
    """The shortest instance that runs on images of one size."""
    height, width = (side // share for side in get_pretrained_cfg_value(name, "input_size")[1:])
    sized = {"img_size": (height, width)} if share > 1 else {}
    shorter = _SHORTER.get(name, {"depth": 2})
    options: dict[str, Any]
    for options in (shorter | sized, sized, shorter, {}):
        specimen = _shortened(name, options, share)
        if specimen is not None:
            return specimen
    return None


def _shortened(name: str, options: dict[str, Any], share: int) -> Specimen | None:
    """None if the model does not take the options or does not run with blocks left out."""
    try:
        with constant_start():
            model = timm.create_model(name, **options).eval()
    except Exception:
        return None
    removed = shorten(model)
    images = example_inputs(model).args[0]
    if share > 1:
        images = torch.rand(*images.shape[:2], *options.get("img_size", _fewer(images, share)))
    if not _runs(model, images):
        return None
    made = [f"{key} {value}" for key, value in options.items()]
    made += [f"{removed} repeated blocks left out"] if removed else []
    made += ["{2} x {3} pixels".format(*images.shape)]
    return Specimen(model, images, ", ".join(made))


def _fewer(images: Tensor, share: int) -> tuple[int, ...]:
    """Sides for models that take images of any size: a multiple of 32, which every stride divides."""
    return tuple(max(side // share // _MULTIPLE, 1) * _MULTIPLE for side in images.shape[2:])


def _runs(model: nn.Module, images: Tensor) -> bool:
    try:
        with torch.no_grad():
            model(images)
    except Exception:
        return False
    return True
