"""Information flow over the course of a training run, and the steps at which faults appeared."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from .layer_statistics import LayerStatistics, for_json
from .verdict import Finding

STATISTICS = [field.name for field in fields(LayerStatistics) if field.name != "name"]


@dataclass(frozen=True)
class Event:
    """The first fault of its kind in a run."""

    step: int
    """Number of optimizer steps when it was found."""
    healthy_at: int | None
    """Step of the last measurement without it; None if it was found in the first measurement."""
    kind: str
    layer: str
    message: str
    remedy: str

    def __str__(self) -> str:
        since = "first measurement" if self.healthy_at is None else f"not present at step {self.healthy_at}"
        return f"Step {self.step} ({since}): {self.message} {self.remedy}"


@dataclass
class FlowHistory:
    """Measurements of one training run, oldest first."""

    steps: list[int] = field(default_factory=list)
    layers: list[list[LayerStatistics]] = field(default_factory=list)
    """Statistics of the layers, for each step."""
    events: list[Event] = field(default_factory=list)
    verdict: list[str] = field(default_factory=list)
    """Verdict of the last measurement."""

    def add(
        self, step: int, layers: Sequence[LayerStatistics], findings: Sequence[Finding], verdict: Sequence[str]
    ) -> list[Event]:
        """Record a measurement of the same layers, and return an event for each fault of a new kind."""
        known = {event.kind for event in self.events}
        before = self.steps[-1] if self.steps else None
        new = [
            Event(step, before, finding.kind, finding.layer, finding.message, finding.remedy)
            for finding in findings
            if finding.is_fault and finding.kind not in known
        ]
        self.steps.append(step)
        names = [layer.name for layer in self.layers[0]] if self.layers else [layer.name for layer in layers]
        found = {layer.name: layer for layer in layers}
        self.layers.append([found.get(name, LayerStatistics.unmeasured(name)) for name in names])
        self.events += new
        self.verdict = list(verdict)
        return new

    def to_dict(self) -> dict[str, Any]:
        """Names of the layers, and for each statistic a list with the values of the layers at each step."""
        return {
            "names": [layer.name for layer in self.layers[-1]] if self.layers else [],
            "steps": self.steps,
            **{
                statistic: [[for_json(getattr(layer, statistic)) for layer in layers] for layers in self.layers]
                for statistic in STATISTICS
            },
            "events": [asdict(event) for event in self.events],
            "verdict": self.verdict,
        }

    def save(self, path: Path) -> None:
        """Write as JSON, atomically."""
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(self.to_dict(), allow_nan=False), encoding="utf-8")
        unfinished.replace(path)

    @staticmethod
    def load(path: Path) -> FlowHistory:
        """Read a file written by `save`.

        Raises:
            OSError: the file cannot be read.
            ValueError: the file was not written by `save`.
        """
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            layers = [
                [
                    LayerStatistics(name, **dict(zip(STATISTICS, map(_nan_for_none, values), strict=True)))
                    for name, *values in zip(record["names"], *of_step, strict=True)
                ]
                for of_step in zip(*(record[statistic] for statistic in STATISTICS), strict=True)
            ]
            events = [Event(**event) for event in record["events"]]
            return FlowHistory(record["steps"], layers, events, record["verdict"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path} is not a record of an InformationFlowCallback.") from error


def _nan_for_none(value: float | None) -> float:
    return math.nan if value is None else value
