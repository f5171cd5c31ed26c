"""What the statistics of the layers mean: findings in plain words, the first cause first, each with a remedy.

`python benchmarks/verdicts.py` counts the false alarms and the hits of these thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from .batch_inputs import BatchInputs
from .layer_statistics import DEAD_SHARE, LayerStatistics
from .leaf_modules import ModuleStatistics

Kind = Literal["data", "nonfinite", "collapsed", "cone", "redundant", "dead_units"]

KINDS: tuple[Kind, ...] = ("data", "nonfinite", "collapsed", "cone", "redundant", "dead_units")
"""Ordered: what comes first may be the cause of what comes later."""

COLLAPSED_SHARE = 1e-4
"""Variance share below which the samples are taken to be the same: a hundredth of their size is all that differs."""

CONE_SHARE = 0.02
"""Variance share at the output below which samples differ little: two of them have a cosine similarity of 0.98."""

REDUNDANT_RANK = 1.5
"""Effective rank below which all samples lie close to one line: 1 would be a line, 2 a plane in equal parts."""

REDUNDANT_MAX_RANK = 7
"""Largest possible effective rank below which a small one means nothing: few examples, or the logits of a few
classes."""

DEAD_UNITS = 0.95
"""Share of dead units from which a layer or module is reported: in deep ReLU networks half of them is common."""

_TRAINING_REMEDY = (
    "Lower the learning rate or warm it up; in a deep model without skip connections or with the normalization after "
    "each sublayer try LBETrainer with lbe_alpha=0.5 and lbe_beta=2."
)


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing."""

    kind: Kind
    layer: str
    """Name of the layer or module where it starts; empty for the data."""
    value: float
    """The number by which it was found."""
    message: str
    remedy: str

    @property
    def is_fault(self) -> bool:
        """Whether something is lost; a redundant layer may be what a solved task looks like."""
        return self.kind != "redundant"

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}"


def judge(
    layers: Sequence[LayerStatistics], modules: Sequence[ModuleStatistics] = (), inputs: Sequence[BatchInputs] = ()
) -> list[Finding]:
    """Findings in the order of `KINDS`; empty for a healthy model.

    What follows from an earlier finding is left out: with examples that are all alike no layer is judged, and after
    a layer that has collapsed no later one.

    Args:
        layers: in the order of the forward pass.
        modules: in the order of the forward pass.
        inputs: of the batches that were measured.
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
        return [Finding("data", "", 1.0, message, "Look for them in the data set.")]
    if inputs and all(batch.only_padding == 1 for batch in inputs):
        message = "Data: every example is all padding, the attention mask has no real token."
        return [Finding("data", "", 1.0, message, "Check the tokenizer, the padding side and the attention mask.")]
    if inputs and all(batch.alike for batch in inputs):
        message = "Data: all examples of a batch are the same, so that no layer can tell them apart."
        return [Finding("data", "", 1.0, message, "Check how the data set is read, tokenized and batched.")]
    return []


def _nonfinite(layers: Sequence[LayerStatistics], modules: Sequence[ModuleStatistics]) -> list[Finding]:
    module = next((module for module in modules if module.nonfinite > 0), None)
    layer = next((layer for layer in layers if layer.nonfinite > 0), None)
    first = layer or module
    if first is None:
        return []
    where = f", made by {module.name}" if module is not None and module is not first else ""
    message = f"NaN or infinite from {first.name} on ({first.nonfinite:.0%} of its values{where})."
    remedy = "Look for NaN in the weights; if training made it, lower the learning rate, clip gradients, or use bf16."
    return [Finding("nonfinite", first.name, first.nonfinite, message, remedy)]


def _stream(layers: list[LayerStatistics], modules: Sequence[ModuleStatistics]) -> list[Finding]:
    """Findings on layers that follow one on the other."""
    collapsed = _last_run([layer.variance_share < COLLAPSED_SHARE for layer in layers])
    if collapsed:
        first = layers[-collapsed]
        # Where the signal fades from layer to layer, a module without any variance comes later and is no cause.
        dead = [module.name for module in modules if module.dead_units == 1]
        killer = dead[0] if dead and first.variance_share <= DEAD_SHARE else None
        where = f"; {killer} gives a constant output" if killer and killer != first.name else ""
        message = (
            f"Collapsed from {first.name} on: the examples give the same activations (variance share "
            f"{first.variance_share:.2g}, below {COLLAPSED_SHARE:g}{where}), and no later layer tells them apart."
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
            f"{first.effective_rank:.2f}, where {first.max_rank:.0f} is possible)."
        )
        remedy = "A solved task of few classes looks so, too; before training the layer passes on one number."
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
    more = f" ({len(dead) - 1} more such layers or modules)" if len(dead) > 1 else ""
    message = (
        f"Dead units in {first.name}: {first.dead_units:.0%} of its features have the same value for every "
        f"example{more}."
    )
    remedy = "Look for weights of zero there, frozen or never loaded; after ReLU lower the learning rate or the bias."
    return [Finding("dead_units", first.name, first.dead_units, message, remedy)]


def _last_run(flags: Sequence[bool]) -> int:
    """How many of the last ones are true: a later layer with variance refutes that an earlier one lost it."""
    count = 0
    while count < len(flags) and flags[-1 - count]:
        count += 1
    return count
