"""Log lines and warnings of a regularized run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from textwrap import shorten

from transformers.utils import logging

from .checks import UNMEASURED
from .log_lines import layer_entries
from .monitor import Means
from .regularizer import LBERegularizer

logger = logging.get_logger(__name__)

COLLAPSED_ENTROPY = 1e-3
"""Batch entropy in nats below which the last layers of a model are reported. An earlier layer is not reported if a
later one has a higher entropy: its activations then only have a small scale."""

NEGLIGIBLE = 1e-3
"""Fraction of the task loss below which the penalty of a whole run is reported as negligible."""

DOMINANT = 1.0
"""Fraction of the task loss above which the penalty up to the first log line is reported: the targets do not suit the
model. Later it may exceed an additive task loss because that has become small."""

_SKIPPED = (
    "The penalty was not applied to {share:.0%} of the batches since the last log line, because their task loss was "
    "zero, negative or not finite, and task_loss * (1 + penalty) would not move the entropies towards their targets. "
    "lbe_form='additive' works with any task loss."
)


class Reporter:
    """Reports on one training run.

    Args:
        prints: whether this process logs warnings.
    """

    def __init__(self, prints: bool) -> None:
        self._prints = prints
        self.warned: set[str] = set()
        """Kinds of the warnings so far."""
        self._collapsed: set[str] = set()
        self._logged = False

    def warn_once(self, kind: str, message: str) -> None:
        """Log a warning unless there was one of this kind."""
        if kind not in self.warned and self._prints:
            logger.warning(message)
        self.warned.add(kind)

    def log_line(
        self, means: Means, regularizer: LBERegularizer, names: Sequence[str], *, each_layer: bool
    ) -> dict[str, float]:
        """Additional entries of a log line, with entropies in nats. Also warns about problems visible in the means.

        Args:
            means: means since the last log line.
            names: names of the layers.
            each_layer: include the entropy and the target of each layer.
        """
        if means.unmeasured > 0:
            self.warn_once("unmeasured", UNMEASURED)
        if means.skipped > 0 and regularizer.beta > 0:
            self.warn_once("skipped", _SKIPPED.format(share=means.skipped))
        self._warn_of_collapsed_layers(names, means.entropies)
        if not self._logged:
            self._warn_of_a_dominant_penalty(means, regularizer)
        self._logged = True
        entropies = means.entropies
        line = {
            "task_loss": means.task_loss,
            "lbe_loss": means.lbe_loss,
            "alpha_mean": regularizer.alpha.mean().item(),
        }
        if entropies:
            line["entropy_mean"] = sum(entropies) / len(entropies)
            line["entropy_min"] = min(entropies)
            line["entropy_last"] = entropies[-1]
        if each_layer:
            line |= layer_entries("entropy", entropies)
            line |= layer_entries("target", regularizer.target.tolist() if regularizer.beta > 0 else [])
        return line

    def _warn_of_collapsed_layers(self, names: Sequence[str], entropies: Sequence[float]) -> None:
        count = sum(1 for _ in takewhile(lambda entropy: entropy < COLLAPSED_ENTROPY, reversed(entropies)))
        collapsed = names[len(entropies) - count : len(entropies)]
        new = [name for name in collapsed if name not in self._collapsed]
        self._collapsed.update(new)
        if new and self._prints:
            listed = shorten(", ".join(new), width=200, placeholder=" ...")
            logger.warning(
                f"The last {count} of {len(entropies)} layers have a batch entropy below {COLLAPSED_ENTROPY} nats: "
                "they have collapsed, or the scale of their activations is small; information_flow tells which. "
                f"New: {listed}"
            )

    def _warn_of_a_dominant_penalty(self, means: Means, regularizer: LBERegularizer) -> None:
        if means.lbe_loss > DOMINANT * abs(means.task_loss) > 0:
            self.warn_once(
                "dominant",
                f"The penalty is {means.lbe_loss / abs(means.task_loss):.1f} times the task loss and dominates "
                f"training: {_ranges(means, regularizer)}. Unless layers have collapsed, set lbe_alpha near their "
                f"batch entropy, or lower lbe_beta, now {regularizer.beta}.",
            )

    def end(self, means: Means | None, regularizer: LBERegularizer) -> None:
        """Warn if the penalty was negligible over the whole run, and name a remedy."""
        if regularizer.beta == 0 or means is None or means.task_loss == 0:
            return
        share = abs(means.lbe_loss / means.task_loss)
        if not share < NEGLIGIBLE:  # also if a batch had a loss that is NaN
            return
        if means.unmeasured == 1:
            what = "no batch could be measured. Use larger batches, or lbe_samples='token'."
        elif means.skipped > 0.5:
            what = (
                f"the task loss was zero, negative or not finite in {means.skipped:.0%} of the batches. "
                "Use lbe_form='additive'."
            )
        else:
            what = (
                f"{_ranges(means, regularizer)}. If the model trains well, it needs no penalty: lbe_beta=0. Otherwise "
                f"raise lbe_beta, now {regularizer.beta}, or regularize other modules with lbe_target_modules."
            )
        self.warn_once(
            "negligible",
            f"The penalty was only {share:.1e} of the task loss over this run, too small to have an effect: {what}",
        )


def _ranges(means: Means, regularizer: LBERegularizer) -> str:
    targets = regularizer.target.tolist()
    return (
        f"the batch entropy of the layers was {min(means.entropies):.2f} to {max(means.entropies):.2f} nats, "
        f"their targets are {min(targets):.2f} to {max(targets):.2f} (lbe_alpha)"
    )
