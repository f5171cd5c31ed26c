import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from families import T5
from hub_client import run_script
from hub_server import Hub, card_errors
from tiny import bert, llama, token_rows
from torch import nn
from transformers import (
    BertForSequenceClassification,
    BertPreTrainedModel,
    BertTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
)

from lbe_hf import LBETrainer, LBETrainerMixin
from lbe_hf.model_card import keep_own_card, name_card, save_card, usage

Make = Callable[..., Any]
SETTINGS: dict[str, Any] = {"lbe_beta": 0.5, "lbe_alpha": 0.3, "lbe_log_entropy": True, "learning_rate": 1e-2}


def card_of(trainer: Trainer) -> str:
    return Path(trainer.args.output_dir, "README.md").read_text()


def table(card: str, first: str) -> list[list[str]]:
    """Cells of the table whose first column has this title."""
    lines = card.split(f"| {first} |")[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip().strip("`") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_nothing_that_trainer_writes_is_lost(make_trainer: Make, tmp_path: Path) -> None:
    rows = token_rows(8)
    cards = []
    for cls in (Trainer, LBETrainer):
        trainer = make_trainer(
            cls, bert(), rows, {"eval_dataset": rows}, output_dir=str(tmp_path / cls.__name__ / "x")
        )
        trainer.train()
        trainer.evaluate()
        trainer.create_model_card(
            tags="mine", language="en", license="mit", tasks="text-classification", model_name="x",
            dataset_tags="glue", dataset="GLUE RTE", dataset_args="rte", finetuned_from="me/base",
        )  # fmt: skip
        cards.append(card_of(trainer))
    plain, ours = (re.sub(r"\d\.\d{4}", "#", card) for card in cards)
    (_, plain_data, plain_text), (_, our_data, our_text) = plain.split("---\n", 2), ours.split("---\n", 2)
    assert our_text.startswith(plain_text)
    data = yaml.safe_load(plain_data)
    data["tags"] += ["lbe_hf", "layerwise-batch-entropy"]
    assert yaml.safe_load(our_data) == data
    assert card_errors(cards[1]) == []


def test_what_the_card_says_is_what_was_used(make_trainer: Make) -> None:
    modules = r".*\.layer\.\d+\.output\.dense|.*\.pooler"
    trainer = make_trainer(
        LBETrainer, bert(), token_rows(16), **SETTINGS, lbe_target_modules=modules, lbe_alpha_min=0.1
    )
    trainer.train()
    trainer.create_model_card()
    card = card_of(trainer)
    assert dict(row[:2] for row in table(card, "setting")) == {
        "lbe_beta": "0.5", "lbe_alpha": "0.3", "lbe_alpha_min": "0.1", "lbe_alpha_learning_rate": "that of the model",
        "lbe_form": "product",
                "lbe_target_modules": modules.replace("|", r"\|"), "lbe_layers": "all", "lbe_samples": "sequence",
        "lbe_ignore_padding": "True",
    }  # fmt: skip
    last = [line for line in trainer.state.log_history if "loss" in line][-1]
    expected = [
        [name, "0.3000", f"{alpha:.4f}", f"{last[f'entropy/layer_{index:02d}']:.4f}"]
        for index, (name, alpha) in enumerate(zip(trainer.lbe_layer_names, trainer.lbe.alpha.tolist(), strict=True))
    ]
    assert table(card, "layer") == expected
    assert {row[2] for row in expected} != {"0.3000"}  # the targets have learned
    assert "Improving the Trainability of Deep Neural Networks" in card
    assert (Path(trainer.args.output_dir) / "lbe_entropy.png").read_bytes().startswith(b"\x89PNG")


def test_card_before_training_and_without_penalty(make_trainer: Make, tmp_path: Path) -> None:
    trainer = make_trainer(LBETrainer, bert(), token_rows(8), lbe_beta=0.0)
    trainer.create_model_card()
    assert [row[:2] for row in table(card_of(trainer), "setting")] == [["lbe_beta", "0.0"]]
    trainer.train()
    trainer.create_model_card()
    assert "but without the penalty" in card_of(trainer)
    assert "| layer |" not in card_of(trainer)
    measuring = make_trainer(LBETrainer, bert(), token_rows(8), lbe_beta=0.0, lbe_log_entropy=True)
    measuring.train()
    measuring.create_model_card()
    assert [len(row) for row in table(card_of(measuring), "layer")] == [2] * 4  # names and entropies


def test_without_matplotlib(make_trainer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(LBETrainer, bert(), token_rows(8), **SETTINGS)
    trainer.train()
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    trainer.create_model_card()
    assert "lbe_entropy.png" not in card_of(trainer)
    assert not (Path(trainer.args.output_dir) / "lbe_entropy.png").exists()


def test_an_own_readme_is_kept(make_trainer: Make, warnings_of: Any) -> None:
    trainer = make_trainer(LBETrainer, bert(), token_rows(8), **SETTINGS)
    folder = Path(trainer.args.output_dir)
    (folder / "README.md").write_text("# My model\n")
    trainer.train()
    for _ in range(3):  # what it wrote itself is no reason for a copy
        trainer.create_model_card(tags=["mine"])
    assert (folder / "README-own.md").read_text() == "# My model\n"
    edited = card_of(trainer).replace("More information needed", "It classifies.", 1)
    (folder / "README.md").write_text(edited)
    trainer.create_model_card()
    assert (folder / "README-own2.md").read_text() == edited
    licensed = card_of(trainer).replace("library_name", "license: mit\nlibrary_name")
    (folder / "README.md").write_text(licensed)
    trainer.create_model_card()
    assert (folder / "README-own3.md").read_text() == licensed
    assert len(list(folder.glob("README*"))) == 4
    assert [text.split()[-1] for text in warnings_of() if "its content is kept" in text] == [
        "README-own.md.",
        "README-own2.md.",
        "README-own3.md.",
    ]
    assert card_of(trainer).count("## Layerwise batch-entropy regularization") == 1


@pytest.mark.parametrize("own", ["---\nlicense: mit\n---\n# My model\n", "# My model\n---\nbetween rules\n---\n# G\n"])
@pytest.mark.parametrize("push", [False, True])
def test_an_own_readme_that_the_trainer_replaces_is_kept(push: bool, own: str, make_trainer: Make) -> None:
    """As sentence-transformers does it whenever it saves a model, or pushes a checkpoint."""

    class Upstream(Trainer):
        def _save(self, output_dir: str | None = None, *args: Any, **kwargs: Any) -> None:
            super()._save(output_dir, *args, **kwargs)
            Path(output_dir or self.args.output_dir, "README.md").write_text("---\ntags:\n- x\n---\n# Generated\n")

        def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
            Path(self.args.output_dir, "README.md").write_text("# Of the checkpoint\n")

    class Ours(LBETrainerMixin, Upstream):
        pass

    trainer = make_trainer(Ours, bert(), token_rows(8), **SETTINGS)
    folder = Path(trainer.args.output_dir)
    (folder / "README.md").write_text(own)
    for _ in range(2):
        trainer._push_from_checkpoint("unused") if push else trainer.save_model()
    assert (folder / "README-own.md").read_text() == own
    assert card_of(trainer).startswith("# Of the checkpoint" if push else "---\ntags:\n- x\n- lbe_hf")
    assert ("## Layerwise batch-entropy regularization" in card_of(trainer)) is not push


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT's
def test_peft_writes_cards_that_nobody_misses(make_trainer: Make) -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(bert(), peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    trainer = make_trainer(LBETrainer, model, token_rows(8), **SETTINGS)
    trainer.train()
    for _ in range(3):
        trainer.save_model()
        trainer.create_model_card(tags=["mine"])
    card = card_of(trainer)
    assert [path.name for path in Path(trainer.args.output_dir).glob("README*")] == ["README.md"]
    assert "library_name: peft" in card
    assert {"lora", "lbe_hf"} <= set(yaml.safe_load(card.split("---\n")[1])["tags"])


def test_damaged_and_edited_cards(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    assert keep_own_card(path, bert()) is None
    signed = "<!-- written by lbe_hf, 0123 -->\n"
    contents = [f"---\n- no\n- mapping\n---\n{signed}", "---\n{\n---\n", f"---\nname: a: b\n---\n{signed}"]
    for content in (*(text.encode() for text in contents), "# Größe".encode("latin-1")):
        path.write_bytes(content)
        copy = keep_own_card(path, bert())
        assert copy is not None
        assert copy.read_bytes() == content
        assert keep_own_card(path, bert()) == copy  # once is enough
    path.write_text('edited: from_pretrained("x")')
    name_card(path, "me/y")
    assert path.read_text() == 'edited: from_pretrained("x")'


def test_usage() -> None:
    tokenizer = BertTokenizerFast(vocab={"[UNK]": 0})
    assert usage(bert(), tokenizer, "me/x").splitlines() == [
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
        'model = AutoModelForSequenceClassification.from_pretrained("me/x")',
        'tokenizer = AutoTokenizer.from_pretrained("me/x")',
    ]
    assert "AutoModelForCausalLM" in usage(llama(), None, "me/x")

    t5 = T5ForConditionalGeneration(T5Config(**T5))  # there is no AutoModelForConditionalGeneration
    assert usage(t5, None, "x").splitlines()[0] == "from transformers import T5ForConditionalGeneration"


def test_usage_of_a_class_of_the_user_loads_the_nearest_exported_one(tmp_path: Path) -> None:
    class WithExtraHead(BertForSequenceClassification):
        pass

    model = WithExtraHead(bert().config)
    model.save_pretrained(tmp_path)
    loaded: dict[str, Any] = {}
    exec(usage(model, None, str(tmp_path)), loaded)
    assert type(loaded["model"]) is BertForSequenceClassification
    assert torch.equal(loaded["model"].classifier.weight, model.classifier.weight)


def test_usage_of_a_sentence_transformers_class_of_the_user() -> None:
    library = pytest.importorskip("sentence_transformers")

    class Mine(library.SentenceTransformer):  # type: ignore[misc,name-defined]
        pass

    assert usage(Mine(modules=[nn.Identity()], device="cpu"), None, "x").splitlines() == [
        "from sentence_transformers import SentenceTransformer",
        "",
        'model = SentenceTransformer("x")',
    ]


def test_usage_of_a_class_that_no_library_exports(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(BertPreTrainedModel):
        pass

    class Net(nn.Linear):
        pass

    Net.__module__ = "__main__"  # defined in the script of the user
    monkeypatch.setattr("__main__.Net", Net, raising=False)
    for model in (Own(bert().config), Net(2, 2), bert().bert.encoder):
        code = usage(model, None, "x")
        assert code.startswith(f"# {type(model).__name__} cannot be imported from transformers: ")
        assert "\n" not in code


def test_the_hub_validates_the_card(hub: Hub, make_trainer: Make, tmp_path: Path) -> None:
    trainer = make_trainer(LBETrainer, bert(), token_rows(8), **SETTINGS)
    trainer.train()
    trainer.create_model_card(dataset_tags="glue", dataset="GLUE", finetuned_from="me/base")
    validate = "import sys, huggingface_hub as h; h.ModelCard.load(sys.argv[1]).validate()"
    good = Path(trainer.args.output_dir, "README.md")
    bad = tmp_path / "bad.md"
    bad.write_text(good.read_text().replace("base_model: me/base", "base_model: a local folder"))
    assert run_script(hub, tmp_path, validate, str(good)).code == 0
    refused = run_script(hub, tmp_path, validate, str(bad))
    assert "a local folder is no name on the Hub" in refused.stderr


def test_save_card_keeps_one_signature(tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    card = ModelCard("---\nlicense: mit\n---\n# x\n")
    for section in ("## a\n", "## b\n", ""):
        save_card(card, tmp_path / "README.md", section)
    text = (tmp_path / "README.md").read_text()
    assert text.count("written by lbe_hf") == 1
    assert text.index("## a") < text.index("## b") < text.index("<!--")
