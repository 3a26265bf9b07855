"""The main job: ``python -m examples.demo``.

A pretrained DINOv2-S/14 gets adapters on query and value, learns to read handwritten digits, has the adapters folded
into its weights and leaves as two verified ONNX files. Everything is measured against the frozen backbone under a
linear head, and drawn in one HTML report.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.panel import Panel
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import exporters
import surgery
from examples import assets, digits, dinov2, findings, probe, report, training
from examples.assets import ASSETS, REPOSITORY, replacing
from examples.digits import Images, Split
from examples.results import Accuracy, Results, Training
from examples.stages import Stages
from examples.terminal import closing_table
from examples.training import Recipe
from surgery.adapters import registry
from surgery.adapters.recompose import Recomposed
from surgery.training import Recomposer

POLICY = "vit-attn-qv"
IMAGE_SIZE = 112
NAMES = {"lora": "LoRA", "symlora": "SymLoRA", "srlora": "SRLoRA"}
RATES = {"lora": 3e-3, "symlora": 3e-3, "srlora": 3e-3}
"""Peak learning rates, chosen on the validation images; see docs/demo.md."""


@dataclass(frozen=True)
class Options:
    """What the command line asked for."""

    adapter: str
    rank: int
    steps: int
    seed: int
    out: Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job, print the closing table, write the report; the exit status."""
    console = Console()
    options = parse(arguments)
    try:
        with Stages(console) as stages:
            results = demo(options, stages)
    except surgery.SurgeryError as error:
        console.print(Panel(str(error), title="The demo stopped", border_style="red"))
        return 1
    except KeyboardInterrupt:
        console.print(
            "Stopped. Nothing half-written was left; downloads are kept for the next run."
        )
        return 130
    page = options.out / "report.html"
    report.write(results, page)
    with replacing(options.out / "results.json") as temporary:
        temporary.write_text(json.dumps(results.to_dict(), indent=2), encoding="utf-8")
    console.print(closing_table(results))
    console.print(f"Report: [link={page.resolve().as_uri()}]{page}[/link]")
    return 0


def parse(arguments: Sequence[str] | None) -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    parser.add_argument("--adapter", default="symlora", help="symlora (default), srlora, lora, ...")
    parser.add_argument(
        "--rank", type=_positive, default=8, help="rank of every adapter (default 8)"
    )
    parser.add_argument(
        "--steps", type=_positive, default=150, help="optimizer steps (default 150)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of head, adapters and image order")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "demo-output", metavar="DIR")
    return Options(**vars(parser.parse_args(arguments)))


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number


def demo(options: Options, stages: Stages) -> Results:
    """The whole job; files go to ``options.out``."""
    recipe = Recipe(RATES.get(options.adapter, 1e-3), steps=options.steps)
    registry.get(options.adapter)
    torch.manual_seed(options.seed)
    with stages.stage("Fetch weights and images"):
        assets.require("dinov2-s14", "mnist-5k")
    with stages.stage("Load weights and images"):
        images = digits.load()
        model = dinov2.build(digits.CLASSES, image_size=IMAGE_SIZE)
        preprocess = digits.Preprocess(model, IMAGE_SIZE)
    with stages.stage("Read the model, plan"):
        layout = _layout(model)
        anatomy = surgery.read(model)
        plan = surgery.plan(
            model, POLICY, anatomy=anatomy, adapter=options.adapter, rank=options.rank
        )
    frozen = baseline(model, images, preprocess, stages)
    with stages.stage("Apply"):
        surgery.apply(model, plan=plan, seed=options.seed)
    losses, switches = adapt(model, images.train, preprocess, recipe, options, stages)
    with stages.stage("Fold"):
        fold = surgery.fold(model, check_inputs=preprocess(images.test.pixels[:16]))
    with stages.stage("Read the test images", len(images.test)) as progress:
        logits = training.run(model, images.test, preprocess, progress=progress)
    accuracy = findings.accuracy(images.test, frozen, logits.argmax(1))
    with stages.stage("Export and verify"):
        exported = export(model, options.out, preprocess(images.test.pixels[:100]), accuracy)
    with stages.stage("Measure latency"):
        latency = exporters.benchmark(model, findings.paths(exported))
    return Results(
        adapter=NAMES.get(options.adapter, options.adapter),
        policy=POLICY,
        rank=options.rank,
        weights=ASSETS["dinov2-s14"].description,
        images=ASSETS["mnist-5k"].description,
        seed=options.seed,
        accuracy=accuracy,
        training=Training(
            losses=tuple(losses),
            switches=tuple(switches),
            steps=recipe.steps,
            batch=recipe.batch,
            learning_rate=recipe.learning_rate,
            images=len(images.train),
            adapter_weights=plan.adapter_parameters,
            head_weights=plan.extra_parameters,
            total_weights=plan.base_parameters,
        ),
        organs=findings.organs(anatomy, plan),
        checks=findings.checks(fold, _layout(model) == layout, exported),
        files=findings.files(exported),
        latency=findings.latency(latency),
        stages=tuple(stages.done),
        peak_memory=findings.peak_memory(),
        environment=findings.environment(),
    )


def baseline(
    model: VisionTransformer, images: Split, preprocess: nn.Module, stages: Stages
) -> Tensor:
    """Answers (n,) of a logistic regression on the frozen features of the test images."""

    def features(pixels: Tensor) -> Tensor:
        pooled: Tensor = model.forward_head(model.forward_features(pixels), pre_logits=True)
        return pooled

    total = len(images.train) + len(images.test)
    with stages.stage("Frozen features, linear head", total) as progress:
        train = training.run(features, images.train, preprocess, progress=progress)
        test = training.run(features, images.test, preprocess, progress=progress)
        head = probe.fit(train, images.train.labels, digits.CLASSES)
    return head.answers(test)


def adapt(
    model: nn.Module,
    images: Images,
    preprocess: nn.Module,
    recipe: Recipe,
    options: Options,
    stages: Stages,
) -> tuple[list[float], list[int]]:
    """Fine-tune; the loss of every step, and the steps at which SRLoRA recomposed."""
    optimizer = training.optimizer_of(model, recipe)
    recomposer: Recomposer | None = None
    if issubclass(registry.get(options.adapter), Recomposed):
        recomposer = Recomposer(model, optimizer, total_steps=recipe.steps)
    with stages.stage("Fine-tune", recipe.steps * recipe.batch) as progress:
        losses = training.fine_tune(
            model,
            images,
            preprocess,
            optimizer,
            recipe,
            seed=options.seed,
            before_step=recomposer.step if recomposer else None,
            progress=progress,
        )
    return losses, [done.step for done in recomposer.history] if recomposer else []


def export(
    model: nn.Module, out: Path, samples: Tensor, accuracy: Accuracy
) -> exporters.ExportReport:
    """One fused and one portable file, both verified, with their facts inside."""
    out.mkdir(parents=True, exist_ok=True)
    return exporters.to_onnx(
        model,
        out / "digits.onnx",
        overwrite=True,
        samples=samples,
        labels=[str(label) for label in range(digits.CLASSES)],
        metadata={
            "backbone": ASSETS["dinov2-s14"].description,
            "images": ASSETS["mnist-5k"].description,
            "test_accuracy": round(accuracy.adapted / accuracy.total, 4),
        },
    )


def _layout(model: nn.Module) -> tuple[list[type[nn.Module]], list[str]]:
    return [type(module) for module in model.modules()], list(model.state_dict())


if __name__ == "__main__":
    sys.exit(main())
