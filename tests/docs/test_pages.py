"""The code of the pages runs as printed, and gives the output that is printed below it."""

import contextlib
import io
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e-?\d+)?(?![\w.])")
PLACE = re.compile(r"Step \d+|at step \d+|hidden_states\[\d+\]|(?<=variance share )[\d.e-]+")


def blocks(page: str) -> list[tuple[str, str | None]]:
    """Each block of Python of the page, with the block of text right below it, if there is one."""
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    found = re.findall(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", text, re.DOTALL)
    return [(code, output or None) for code, output in found]


def run(code: str, names: dict[str, object]) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(code, names)
    # A trainer prints its log lines as well, which are no part of what the page shows.
    return "".join(line for line in out.getvalue().splitlines(keepends=True) if not line.startswith("{"))


def check(code: str, expected: str, names: dict[str, object]) -> None:
    """Run the code; the output is as expected, numbers within 2%."""
    printed = run(code, names)
    if "Trainer(" in code:  # runs of a training differ between machines: where it collapses, and how far
        printed, expected = PLACE.sub("#", printed), PLACE.sub("#", expected)
    assert [float(number) for number in NUMBER.findall(printed)] == pytest.approx(
        [float(number) for number in NUMBER.findall(expected)], rel=0.02
    )
    assert re.sub(r"\s+", " ", NUMBER.sub("#", printed)) == re.sub(r"\s+", " ", NUMBER.sub("#", expected))


def test_collapsed_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    pairs = [(code, output) for code, output in blocks("collapsed_layers") if output is not None]
    assert len(pairs) == 4
    for code, expected in pairs:
        check(code, expected, names)
    assert (tmp_path / "runs" / "collapse" / "information_flow.json").is_file()


def test_quickstart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    train, load, watch = (code for code, _ in blocks("quickstart"))
    loss = float(run(train, names))
    assert loss < 0.67  # always giving the shares of the labels
    trained = names["trainer"].model  # type: ignore[attr-defined]
    run(load, names)
    loaded = names["model"].state_dict()  # type: ignore[attr-defined]
    assert all(loaded[name].equal(value) for name, value in trained.state_dict().items())
    assert "No layer has collapsed." in run(watch, names)


def test_method() -> None:
    names: dict[str, object] = {}
    for code, expected in blocks("method"):
        check(code, expected or "", names)
    assert re.fullmatch(str(names["lbe_target_modules"]), "bert.encoder.layer.11.output.dense")


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # TRL sets it by its old name
def test_trainers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import others
    import tiny
    from datasets import Dataset

    monkeypatch.chdir(tmp_path)
    module = ModuleType("page")  # its classes are pickled with a checkpoint
    monkeypatch.setitem(sys.modules, "page", module)
    names: dict[str, object] = vars(module)
    names["dataset"] = Dataset.from_dict({"text": others.texts(0)})
    names["model"], names["tokenizer"] = tiny.llama(), others.tokenizer()
    sentences = others.similarity(tmp_path)
    names["sentence_model"], names["scored_pairs"] = sentences["model"], sentences["train_dataset"]
    names["loss"] = sentences["loss"]
    trl, sentence_transformers, own_loop = (code for code, _ in blocks("trainers"))
    for code in (trl, sentence_transformers):
        run(code.replace("output_dir", "use_cpu=True, output_dir"), names)
        assert (names["trainer"].lbe.alpha != 0.5).all()  # type: ignore[attr-defined]
    run(own_loop, names)
    regularizer = names["regularizer"]
    assert (regularizer.alpha != 0.5).all()  # type: ignore[attr-defined]
