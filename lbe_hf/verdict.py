"""Derives findings, each with a remedy, from the statistics of the layers.

`python results/verdicts/study.py` counts the false alarms and the hits of these thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, takewhile
from typing import Literal, get_args

from .batch_inputs import BatchInputs
from .layer_statistics import DEAD_SHARE, LayerStatistics
from .leaf_modules import ModuleStatistics

Kind = Literal["data", "nonfinite", "collapsed", "cone", "redundant", "dead_units"]

KINDS: tuple[Kind, ...] = get_args(Kind)
"""Ordered so that possible causes come first."""

COLLAPSED_SHARE = 1e-4
"""Variance share below which a layer counts as collapsed: samples differ by about a hundredth of their norm."""

CONE_SHARE = 0.02
"""Variance share at the output below which it is reported as a cone: a mean cosine similarity of about 0.98."""

REDUNDANT_RANK = 1.5
"""Effective rank below which a layer counts as redundant: 1 means that all samples lie on one line."""

REDUNDANT_MAX_RANK = 7
"""Upper bound of the effective rank below which a small rank is not reported: few examples, or few classes."""

DEAD_UNITS = 0.95
"""Fraction of dead units from which a layer or module is reported; one half is common in deep ReLU networks."""

_TRAINING_REMEDY = (
    "Lower the learning rate. In a deep model without skip connections use normalization layers or He's "
    "initialization; in one with post-layer normalization try LBETrainer with lbe_alpha=0.5 and lbe_beta=2."
)


@dataclass(frozen=True)
class Finding:
    """A fault, or an observation that may not be one."""

    kind: Kind
    layer: str
    """Name of the first affected layer or module; empty for the data."""
    value: float
    """The value of the statistic that exceeded its threshold."""
    message: str
    remedy: str

    @property
    def is_fault(self) -> bool:
        """False for redundant layers, which also occur when a task is solved."""
        return self.kind != "redundant"

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}"


def judge(
    layers: Sequence[LayerStatistics], modules: Sequence[ModuleStatistics] = (), inputs: Sequence[BatchInputs] = ()
) -> list[Finding]:
    """Findings in the order of `KINDS`; empty for a healthy model.

    Consequences of another finding are omitted: layers are not judged if all examples are the same, and neither are
    layers after a collapsed one.

    Args:
        layers: statistics in the order of the forward pass.
        modules: statistics in the order of the forward pass.
        inputs: inputs of the measured batches.
    """
    found = _data(inputs) or _nonfinite(layers, modules)
    if found:
        return found
    findings: list[Finding] = []
    for _, stream in groupby(layers, key=lambda layer: layer.name.partition("[")[0] if "[" in layer.name else ""):
        findings += _stream(list(stream), modules)
    findings += _dead_units(layers, modules, findings)
    return sorted(findings, key=lambda finding: KINDS.index(finding.kind))


def _data(inputs: Sequence[BatchInputs]) -> list[Finding]:
    if any(batch.nonfinite for batch in inputs):
        message = "Data: the inputs have NaN or infinite values."
        return [Finding("data", "", 1.0, message, "Look for them in the dataset.")]
    if inputs and all(batch.only_padding == 1 for batch in inputs):
        message = "Data: all examples are padding, because the attention mask has no real token."
        return [Finding("data", "", 1.0, message, "Check the tokenizer, the padding side and the attention mask.")]
    if inputs and all(batch.alike for batch in inputs):
        message = "Data: all examples of each batch are the same, so no layer can distinguish them."
        return [Finding("data", "", 1.0, message, "Check how the dataset is read, tokenized and batched.")]
    return []


def _nonfinite(layers: Sequence[LayerStatistics], modules: Sequence[ModuleStatistics]) -> list[Finding]:
    module = next((module for module in modules if module.nonfinite > 0), None)
    layer = next((layer for layer in layers if layer.nonfinite > 0), None)
    first = layer or module
    if first is None:
        return []
    where = f", caused by {module.name}" if module is not None and module is not first else ""
    message = f"NaN, infinite or overflowing values from {first.name} on ({first.nonfinite:.0%} of its values{where})."
    remedy = (
        "Look for NaN in the weights. If it appeared in training, lower the learning rate, clip gradients or use bf16."
    )
    return [Finding("nonfinite", first.name, first.nonfinite, message, remedy)]


def _stream(layers: list[LayerStatistics], modules: Sequence[ModuleStatistics]) -> list[Finding]:
    """Findings on consecutive layers."""
    collapsed = _last_run([layer.variance_share < COLLAPSED_SHARE for layer in layers])
    if collapsed:
        first = layers[-collapsed]
        # If the signal fades gradually, a constant module is a consequence: the first layer still has some variance.
        dead = [module.name for module in modules if module.dead_units == 1]
        killer = dead[0] if dead and first.variance_share <= DEAD_SHARE else None
        where = f"; {killer} has a constant output" if killer and killer != first.name else ""
        message = (
            f"Collapsed from {first.name} on: all examples have the same activations (variance share "
            f"{first.variance_share:.2g}, below {COLLAPSED_SHARE:g}{where}), and no later layer distinguishes them."
        )
        return [Finding("collapsed", first.name, first.variance_share, message, _TRAINING_REMEDY)]
    findings = []
    last = layers[-1]
    cone = _last_run([layer.variance_share < CONE_SHARE for layer in layers])
    if cone:
        first = layers[-cone]
        message = (
            f"Cone from {first.name} on: at the output two examples have a cosine similarity of about "
            f"{1 - last.variance_share:.3f} (variance share {last.variance_share:.2g}, below {CONE_SHARE})."
        )
        remedy = "Centre or whiten embeddings before comparing them, or train with a contrastive loss."
        findings.append(Finding("cone", first.name, last.variance_share, message, remedy))
    redundant = _last_run(
        [layer.effective_rank < REDUNDANT_RANK and layer.max_rank >= REDUNDANT_MAX_RANK for layer in layers]
    )
    if redundant:
        first = layers[-redundant]
        message = (
            f"Redundant from {first.name} on: the examples differ in about one direction (effective rank "
            f"{first.effective_rank:.2f}, of at most {first.max_rank:.0f})."
        )
        remedy = (
            "This is normal for a solved task with few classes; before training it means that information is lost."
        )
        findings.append(Finding("redundant", first.name, first.effective_rank, message, remedy))
    return findings


def _dead_units(
    layers: Sequence[LayerStatistics], modules: Sequence[ModuleStatistics], findings: Sequence[Finding]
) -> list[Finding]:
    if any(finding.kind == "collapsed" for finding in findings):
        return []
    parts: list[LayerStatistics | ModuleStatistics] = [*layers, *modules]
    dead = [part for part in parts if part.dead_units >= DEAD_UNITS]
    if not dead:
        return []
    first = dead[0]
    more = f" ({len(dead) - 1} more layers or modules are affected)" if len(dead) > 1 else ""
    message = (
        f"Dead units in {first.name}: {first.dead_units:.0%} of its features have the same value for every "
        f"example{more}."
    )
    remedy = (
        "Look for zero weights that are frozen or were not loaded; after ReLU lower the learning rate or the bias."
    )
    return [Finding("dead_units", first.name, first.dead_units, message, remedy)]


def _last_run(flags: Sequence[bool]) -> int:
    """Length of the run of true values at the end: if a later layer has variance, an earlier one did not lose it."""
    return sum(1 for _ in takewhile(bool, reversed(flags)))
