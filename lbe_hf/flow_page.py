"""Information flow as HTML: a fragment for notebooks, and self-contained pages."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader

from .flow_history import FlowHistory

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def fragment(verdict: Sequence[str], table: Sequence[Sequence[str]]) -> str:
    """The lines of the verdict, then the table; its first row is the header."""
    return str(_template().module.measurement(verdict, table))


def page(title: str, verdict: Sequence[str], table: Sequence[Sequence[str]], figure: Figure | None) -> str:
    """Page of one measurement."""
    return _render(title=title, verdict=verdict, table=table, figures=[] if figure is None else [_svg(figure)])


def history_page(title: str, history: FlowHistory) -> str:
    """Page of a training run: the events, and heat maps of layers by steps (needs the extra `plot`)."""
    from .figures import draw_flow_by_step

    figures = [_svg(draw_flow_by_step(history))] if history.steps else []
    return _render(title=title, history=history, figures=figures)


def can_draw() -> bool:
    """Whether the extra `plot` is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def _render(**values: Any) -> str:
    return str(_template().render(**values))


@lru_cache
def _template() -> Any:
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    return environment.get_template("flow_page_template.html")


def _svg(figure: Figure) -> str:
    """The figure as an SVG element, without the XML header."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]
