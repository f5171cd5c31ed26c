import shlex
from pathlib import Path
from typing import Any

import pytest
from hub_server import TOKEN

from glue_runs.finetune.arguments import changed_settings
from glue_runs.finetune.command import main as finetune
from glue_runs.grid.arguments import parse_grid
from glue_runs.grid.command import main as grid
from glue_runs.grid.plan import plan_runs
from glue_runs.redaction import printable, redact, report_error, without_token


def test_tokens_are_redacted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "an-odd-one")
    text = f"--a {TOKEN} an-odd-one given hf_api.create_repo hf_hub_download"
    expected = "--a <HUB_TOKEN> <HUB_TOKEN> <HUB_TOKEN> hf_api.create_repo hf_hub_download"
    assert redact(text, "given", None) == expected


def test_an_error_is_one_line_without_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    assert report_error(ValueError(f"first\n  second {TOKEN} given"), 2, "given") == 2
    assert capsys.readouterr() == ("", "error: first second <HUB_TOKEN> <HUB_TOKEN>\n")


def test_what_cannot_be_encoded_is_escaped() -> None:
    assert printable("caf\u00e9 \udcff") == "caf\u00e9 \\udcff"


@pytest.mark.parametrize("form", ["--hub_token x", "--hub_token=x", "--hub-token x", "--hub-token=x"])
def test_a_command_without_its_token(form: str) -> None:
    command = f"--seeds 1 {form} --push_to_hub --hub_tokn {TOKEN}"
    assert shlex.join(without_token(command.split())) == "--seeds 1 --push_to_hub --hub_tokn '<HUB_TOKEN>'"


def test_a_token_does_not_reach_the_runs() -> None:
    base = ["--tasks", "demo_rte", "--models", "m", "--precision", "fp32", "--seeds", "1"]
    push = ["--push_to_hub", "--hub_model_id_prefix", "me/x", "--hub_token", TOKEN]
    plans = [plan_runs(*parse_grid(argv)) for argv in (base, base + push)]
    assert [run.name for run in plans[0]] == [run.name for run in plans[1]]
    for run in plans[1]:
        assert TOKEN not in str((run.argv(), run.description))
    assert "hub_token" not in changed_settings(plans[1][0].argv())


@pytest.mark.parametrize("main", [finetune, grid])
@pytest.mark.parametrize(
    "arguments",
    [f"--hub_tokn {TOKEN}", f"--hub_token {TOKEN} --num_train_epochs many", f"--seed {TOKEN}", "{folder}/broken.yaml"],
)
def test_errors_tell_no_token(main: Any, arguments: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.yaml").write_text(f"hub_token: {TOKEN}: task_name: x\n")
    argv = arguments.format(folder=tmp_path).split()
    if argv[0].startswith("--"):
        tasks = ["--task_name", "demo_rte"] if main is finetune else ["--tasks", "demo_rte"]
        argv = [*tasks, "--output_dir", str(tmp_path / "out"), *argv]
    try:
        code: Any = main(argv)
    except SystemExit as stop:
        code = stop.code
    printed = "".join(capfd.readouterr())
    assert code == 2
    assert "error: " in printed
    assert TOKEN not in printed
    assert not any(TOKEN.encode() in path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
