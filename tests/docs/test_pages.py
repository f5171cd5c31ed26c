"""The code of the pages runs as printed, and gives the output that is printed below it."""

import contextlib
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e-?\d+)?(?![\w.])")


def blocks(page: Path) -> list[tuple[str, str]]:
    """Each block of Python that is followed by a block of text, with that text."""
    return re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def run(code: str, names: dict[str, object]) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(code, names)
    # A trainer prints its log lines as well, which are no part of what the page shows.
    return "".join(line for line in out.getvalue().splitlines(keepends=True) if not line.startswith("{"))


def test_collapsed_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    pairs = blocks(ROOT / "docs" / "collapsed_layers.md")
    assert len(pairs) == 4
    for code, expected in pairs:
        printed = run(code, names)
        if "Trainer(" in code:  # runs of a training differ between machines: where it collapses, and how far
            place = re.compile(r"Step \d+|at step \d+|hidden_states\[\d+\]|(?<=variance share )[\d.e-]+")
            printed, expected = place.sub("#", printed), place.sub("#", expected)
        assert [float(number) for number in NUMBER.findall(printed)] == pytest.approx(
            [float(number) for number in NUMBER.findall(expected)], rel=0.02
        )
        assert re.sub(r"\s+", " ", NUMBER.sub("#", printed)) == re.sub(r"\s+", " ", NUMBER.sub("#", expected))
    assert (tmp_path / "runs" / "collapse" / "information_flow.json").is_file()
