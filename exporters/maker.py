"""One file from the captured program as it is: translated, written, opened at its best, verified."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from exporters import convert
from exporters.capture import Captured
from exporters.hooks import expose
from exporters.learned import Learned
from exporters.metadata import of_file
from exporters.parity import Reference
from exporters.precision import TOLERANCES, Precision, lower
from exporters.profiles import Profile, complete, in_words, provider_options
from exporters.providers import CPU, CUDA
from exporters.ranges import described
from exporters.recipe import PROVIDERS, Target
from exporters.report import FileReport
from exporters.runtime import Operators, SessionOptions, available, optimized_operators
from exporters.staging import Stage
from exporters.verify import WithAdapter, verify


@dataclass(frozen=True)
class Maker:
    """Makes and verifies files on a stage.

    Attributes:
        aside: The stage.
        captured: The program; it may be rewritten between two files.
        facts: The metadata.
        truth: What the model computes; None leaves verification out.
        precision: Of the files.
        profile: Sizes that a TensorRT file is to be run at.
        learned: What is to be fed at run time, if it is not in the weights.
        adapter: Its file on the stage, with what base and adapter compute together.
        notes: What a reader should know about the files made so far.
    """

    aside: Stage
    captured: Captured
    facts: Mapping[str, str]
    truth: Reference | None
    precision: Precision
    profile: Profile | None = None
    learned: Learned | None = None
    adapter: WithAdapter | None = None
    notes: list[str] = field(default_factory=list)

    def make(self, path: Path, target: Target, expected: Operators | None = None) -> FileReport:
        """Make one file.

        Args:
            path: Where it will be published.
            target: What it is fused for.
            expected: Operators outside of ai.onnx that it must hold.
        """
        started = time.perf_counter()
        staged = self.aside.folder / path.name
        translated = convert.to_ir(self.captured)
        if self.learned is not None:
            expose(translated, self.learned)
        translated, notes = lower(translated, self.precision)
        self.notes.extend(notes)
        convert.save(translated, staged)
        options = self._best_options(staged, target)
        axes = described(self.captured.limits, self.captured.inputs.sizes)
        about = of_file(self.facts, options, target, self.precision, convert.OPSET, axes)
        convert.describe(staged, about)
        found = None
        if self.truth is not None:
            here = self._available(options)
            tolerance = TOLERANCES[self.precision]
            wanted = expected or Counter()
            found = verify(
                staged, self.truth, wanted, here, tolerance, self.adapter,
                timed=options.providers == (CPU,),
            )  # fmt: skip
            self.notes.extend((*self.truth.notes, *found.notes))
        return FileReport(
            path,
            target,
            self.precision,
            self.aside.size(path.name),
            len(translated.graph),
            time.perf_counter() - started,
            options,
            found,
        )

    def _best_options(self, path: Path, target: Target) -> SessionOptions:
        options = SessionOptions(PROVIDERS[target])
        if target == "tensorrt":
            profile = complete(self.captured, self.profile)
            self.notes.append(f"engines are built for {in_words(profile)}")
            told = provider_options(self.captured.inputs, profile, self.precision)
            return replace(options, provider_options=told)
        return self._exact(options) if target == "cuda" else _best_on_cpu(path, options)

    def _exact(self, options: SessionOptions) -> SessionOptions:
        """CUDA keeps 10 bits of what fp32 products multiply, TF32, unless it is told not to."""
        if options.providers[0] != CUDA or self.precision == "fp16":
            return options
        return replace(options, provider_options={"use_tf32": "0"})

    def _available(self, options: SessionOptions) -> SessionOptions:
        here = available(options)
        if here == options:
            return options
        note = f"{options.providers[0]} is not here: verified on {here.providers[0]}"
        self.notes.append(note)
        return self._exact(here)


def _best_on_cpu(path: Path, options: SessionOptions) -> SessionOptions:
    """ONNX Runtime's skip-layer-norm kernel is slower than Add and LayerNormalization on CPUs."""
    try:
        found = optimized_operators(path, options)
    except Exception:  # a file that does not open is verification's to report
        return options
    slow = ("com.microsoft", "SkipLayerNormalization") in found
    return replace(options, disabled_optimizers=("SkipLayerNormFusion",) if slow else ())
