import pytest
import torch
from transformers.utils import logging

from glue_runs.errors import InputError
from glue_runs.finetune.arguments import parse
from glue_runs.finetune.precision import choose_precision


@pytest.mark.parametrize(("supported", "expected"), [(True, "bf16"), (False, "fp32")])
def test_cpu(monkeypatch: pytest.MonkeyPatch, supported: bool, expected: str) -> None:
    for name in ("avx512_bf16", "amx_tile"):
        monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda: supported, raising=False)
    precision, reason = choose_precision(use_cpu=True)
    assert precision == expected
    assert "this CPU has" in reason


def test_pytorch_that_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("avx512_bf16", "amx_tile"):
        monkeypatch.delattr(torch.cpu, f"_is_{name}_supported", raising=False)
    assert choose_precision(use_cpu=True)[0] == "fp32"


def test_given_precision_is_taken() -> None:
    for precision in ("fp32", "bf16"):
        args = parse(["--task_name", "rte", "--precision", precision, "--use_cpu"])[2]
        assert (args.bf16, args.fp16) == (precision == "bf16", False)
    assert parse(["--task_name", "rte", "--bf16", "--use_cpu"])[2].precision == "bf16"


def test_automatic_choice_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(
        "glue_runs.finetune.arguments.choose_precision", lambda use_cpu: ("fp32", f"of a test, {use_cpu}")
    )
    logging.enable_propagation()
    parse(["--task_name", "rte", "--use_cpu"])
    logging.disable_propagation()
    assert "Precision: fp32, because of a test, True." in caplog.text


def test_unknown_precision(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("arguments") / "run.json"
    path.write_text('{"task_name": "rte", "precision": "fp8"}')
    with pytest.raises(InputError, match=r"run.json cannot be used: argument --precision: invalid choice: 'fp8'"):
        parse([str(path)])
