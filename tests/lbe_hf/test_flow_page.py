"""The pages, as text and in a browser."""

import dataclasses
import importlib.util
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")

import matplotlib.image

from lbe_hf.diagnosis import InformationFlow
from lbe_hf.flow_history import FlowHistory
from lbe_hf.flow_page import history_page
from lbe_hf.layer_statistics import LayerStatistics
from lbe_hf.verdict import judge


def flow_of(*shares: float) -> InformationFlow:
    healthy = LayerStatistics("", 0.5, 0.5, 4.0, 0.0, 0.0, 31)
    layers = [
        dataclasses.replace(healthy, name=f"hidden_states[{index}]", variance_share=share)
        for index, share in enumerate(shares)
    ]
    return InformationFlow(layers, [], judge(layers))


def collapsing(layers: int) -> FlowHistory:
    history = FlowHistory()
    for step in range(10, 310, 10):
        flow = flow_of(*[0.5] * (layers // 2), *[0.5 if step < 200 else 0.0] * (layers // 2))
        history.add(step, flow.layers, flow.findings, flow.verdict)
    return history


def test_pages_need_no_other_file_and_show_what_was_found() -> None:
    flow, history = flow_of(0.5, 0.0), collapsing(8)
    for text, message in (
        (flow.to_html("A title <b>"), flow.findings[0].message),
        (history_page("A title <b>", history), history.events[0].message),
    ):
        assert text.count("<svg") == 1
        assert message in text
        assert "A title &lt;b&gt;" in text
        assert not any(sign in text for sign in ('src="', "<script", "<link", "A title <b>"))
    assert "No step was measured." in history_page("", FlowHistory())


def test_without_matplotlib_a_page_has_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find_spec(name))
    assert "<svg" not in flow_of(0.5, 0.5).to_html()


@pytest.mark.parametrize("width", [500, 1200])
def test_in_a_browser_nothing_is_cut_off(width: int, tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium: the pages were not opened in a browser")
    file, picture = tmp_path / "page.html", tmp_path / "page.png"
    measure = "<script>document.title = document.documentElement.scrollWidth</script>"
    file.write_text(history_page("Information flow", collapsing(48)) + measure, encoding="utf-8")
    headless = [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},1600"]

    def run(*arguments: str) -> str:
        command = [*headless, f"--user-data-dir={tmp_path / 'profile'}", *arguments, file.as_uri()]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout

    assert int(run("--dump-dom").partition("<title>")[2].partition("</title>")[0]) <= width
    run(f"--screenshot={picture}")
    pixels: Any = matplotlib.image.imread(picture)
    assert pixels.shape[1] == width
    assert len({tuple(pixel) for pixel in pixels[::8, ::8].reshape(-1, pixels.shape[2]).tolist()}) > 20
