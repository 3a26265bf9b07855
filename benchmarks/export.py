"""How fast the exported file is, and how right: ours beside the usual ways, side by side in one run.

    python -m benchmarks.export                    # everything
    python -m benchmarks.export --prepare vit-s    # only make the files
    python -m benchmarks.export vit-s bert-base    # only these

Models have their real sizes and random weights. Files are made once and kept in ``--folder``. Every
contender gets its turn in every round, so that a busy machine slows all alike; times are medians.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import timm
import torch
import transformers as hf
from onnxruntime.transformers.optimizer import optimize_model
from onnxscript.rewriter.ort_fusions import optimize_for_ort
from rich.console import Console
from rich.table import Table
from torch import nn

import exporters
from benchmarks.record import RESULTS, keep
from exporters.inputs import Inputs, collect
from exporters.parity import relative_error
from exporters.runtime import optimized_operators, recommended_options, run

PLAIN = "plain dynamo export"
OURS = "ours"


@dataclass(frozen=True)
class Subject:
    """A model to measure.

    Attributes:
        build: Makes it.
        kind: ``model_type`` for ONNX Runtime's optimizer.
        heads, width: What that optimizer wants to be told.
        length: Of token inputs.
    """

    build: Callable[[], nn.Module]
    kind: str
    heads: int
    width: int
    length: int = 0

    def inputs(self, model: nn.Module) -> Inputs:
        """Inputs at batch 2, all tokens real."""
        found = collect(model)
        if not self.length:
            return found
        longer = found.resized({"sequence": self.length})
        ones = {n: torch.ones_like(t) for n, t in longer.tensors.items() if "mask" in n}
        return Inputs({**longer.tensors, **ones}, longer.constants, longer.axes)


def _llama() -> nn.Module:
    model: nn.Module = hf.LlamaForCausalLM(
        hf.LlamaConfig(
            hidden_size=512,
            intermediate_size=1376,
            num_hidden_layers=8,
            num_attention_heads=8,
            num_key_value_heads=2,
            vocab_size=8192,
        )
    )
    return model


def _minilm() -> nn.Module:
    model: nn.Module = hf.BertModel(
        hf.BertConfig(
            hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
        )
    )
    return model


SUBJECTS = {
    "vit-s": Subject(lambda: timm.create_model("vit_small_patch16_224"), "vit", 6, 384),
    "bert-base": Subject(lambda: hf.BertModel(hf.BertConfig()), "bert", 12, 768, 128),
    "minilm": Subject(_minilm, "bert", 12, 384, 128),
    "dinov2-s": Subject(
        lambda: timm.create_model("vit_small_patch14_dinov2", img_size=224), "vit", 6, 384
    ),
    "swin-t": Subject(lambda: timm.create_model("swin_tiny_patch4_window7_224"), "swin", 0, 0),
    "clip-vision": Subject(lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig()), "clip", 12, 768),
    "gqa-decoder": Subject(_llama, "gpt2", 8, 512, 128),
    "vit-b": Subject(lambda: timm.create_model("vit_base_patch16_224"), "vit", 12, 768),
}


def prepare(name: str, folder: Path) -> dict[str, Any]:
    """Make the files of one model that are not there yet; say what became of its attention."""
    about = folder / f"{name}.json"
    if about.exists():
        found: dict[str, Any] = json.loads(about.read_text())
        return found
    torch.manual_seed(0)
    subject = SUBJECTS[name]
    model = subject.build().eval()
    inputs = subject.inputs(model)
    plain = folder / f"{name}.plain.onnx"
    _plain(model, inputs, plain)
    failures = {}
    ways: dict[str, Callable[[Path], Any]] = {
        "ORT transformers optimizer": lambda path: _ort_optimizer(plain, subject, path),
        "onnxscript optimize_for_ort": lambda path: _onnxscript(plain, path),
        OURS: lambda path: exporters.to_onnx(
            model, path, example_inputs=inputs.kwargs, overwrite=True
        ),
        f"{OURS}, int8": lambda path: exporters.to_onnx(
            model, path, example_inputs=inputs.kwargs, overwrite=True, precision="int8"
        ),
    }
    files = {PLAIN: plain.name}
    sites = ""
    for way, make in ways.items():
        path = folder / f"{name}.{way.replace(' ', '-').replace(',', '')}.onnx"
        try:
            made = make(path)
        except Exception as error:  # whatever a tool raises is its result
            failures[way] = f"{type(error).__name__}: {str(error).splitlines()[0][:150]}"
            continue
        files[way] = path.name
        sites = f"{made.fused}/{len(made.sites)}" if way == OURS else sites
    result = {"files": files, "failures": failures, "sites": sites}
    about.write_text(json.dumps(result, indent=2))
    return result


def _plain(model: nn.Module, inputs: Inputs, path: Path) -> None:
    dynamic = {
        name: dict.fromkeys(inputs.axes.get(name, {}), torch.export.Dim.AUTO)
        for name in inputs.tensors
    }
    shapes = {**dynamic, **dict.fromkeys(inputs.constants)}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (), path, kwargs=inputs.kwargs, dynamo=True, opset_version=20,
            dynamic_shapes=shapes, verbose=False, external_data=False,
        )  # fmt: skip


def _ort_optimizer(plain: Path, subject: Subject, path: Path) -> None:
    optimize_model(
        str(plain), model_type=subject.kind, num_heads=subject.heads, hidden_size=subject.width
    ).save_model_to_file(str(path))


def _onnxscript(plain: Path, path: Path) -> None:
    optimized, _ = optimize_for_ort(ir.load(plain), clear_metadata=True)
    ir.save(optimized, path)


def measure(name: str, folder: Path, batch: int, compiled: bool) -> dict[str, Any]:
    """Latency, error and attention operators of every contender at one batch size."""
    torch.manual_seed(0)
    prepared = prepare(name, folder)
    subject = SUBJECTS[name]
    model = subject.build().eval()
    inputs = subject.inputs(model).resized({"batch": batch})
    with torch.no_grad():
        expected = next(iter(_leaves(model(**inputs.kwargs))))
    paths = {way: folder / file for way, file in prepared["files"].items()}
    checks = {}
    for way, path in list(paths.items()):
        try:
            found = run(exporters.open_session(path, threads=2), inputs.feeds)[0]
        except Exception as error:  # a file that its own engine does not run
            prepared["failures"][way] = f"{type(error).__name__}: {str(error)[:150]}"
            del paths[way]
            continue
        checks[way] = {
            "error": relative_error(expected.numpy(), found),
            "operators": _attention(path),
        }
    calls = (
        {"rounds": 5, "calls": 6, "warmup": 2}
        if batch == 1
        else {"rounds": 3, "calls": 3, "warmup": 1}
    )
    report = exporters.benchmark(
        model, paths, inputs=inputs.kwargs, batch=batch, threads=2, compiled=compiled, **calls
    )
    rows = [
        {**asdict(row), "to_plain": report.ratio(row.name, PLAIN), **checks.get(row.name, {})}
        for row in report.rows
    ]
    about = {"sites": prepared["sites"], "failures": prepared["failures"], "notes": report.notes}
    return {"rows": rows, "sizes": report.sizes, "calls": report.calls, **about}


def _leaves(outputs: Any) -> list[torch.Tensor]:
    return [outputs] if isinstance(outputs, torch.Tensor) else list(outputs.values())


def _attention(path: Path) -> dict[str, int]:
    """Attention operators that ONNX Runtime really runs."""
    found = optimized_operators(path, recommended_options(path))
    return {kind: count for (_, kind), count in found.items() if kind.endswith("Attention")}


def as_table(name: str, batch: int, found: dict[str, Any]) -> Table:
    """One row a contender."""
    table = Table(title=f"{name}, batch {batch}: {found['sites']} sites", title_justify="left")
    for column in ("", "median ms", "to plain", "error", "attention run"):
        table.add_column(column)
    for row in found["rows"]:
        error = f"{row['error']:.0e}" if "error" in row else ""
        operators = ", ".join(f"{n} {op}" for op, n in row.get("operators", {}).items())
        cells = (f"{row['median_ms']:.1f}", f"{row['to_plain']:.2f}", error, operators)
        table.add_row(row["name"], *cells)
    for way, why in found["failures"].items():
        table.add_row(way, "-", "-", "", why)
    return table


def main() -> None:
    """Measure what was asked for, and keep it beside what was measured before."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", nargs="*", choices=[*SUBJECTS, []], default=[])
    parser.add_argument("--prepare", action="store_true", help="only make the files")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--folder", type=Path, help="where the files are kept")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(2)
    console = Console()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(exist_ok=True)
        for name in given.models or SUBJECTS:
            console.print(name, prepare(name, folder))
            for batch in () if given.prepare else (1, 8):
                found = measure(name, folder, batch, not given.no_compile)
                console.print(as_table(name, batch, found))
                _keep(f"{name}, batch {batch}", found)


def _keep(key: str, found: dict[str, Any]) -> None:
    path = RESULTS / "export.json"
    before = json.loads(path.read_text())["figures"] if path.exists() else {}
    keep("export", {**before, key: found})


if __name__ == "__main__":
    main()
