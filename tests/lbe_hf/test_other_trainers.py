"""The penalty in the trainers of other libraries, each run as its users run it."""

from pathlib import Path
from typing import Any

import others
import pytest
import tiny
import torch
from others import CASES
from tiny import assert_same, gradients_of_first_step
from torch import Tensor
from transformers import Trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),  # TRL's and sentence-transformers'
    pytest.mark.filterwarnings("ignore:.*processing_class:FutureWarning"),
]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> others.Case:
    return CASES[request.param]


class FirstBatch:
    """What the first call of `compute_loss` is given, as it was before the call."""

    def __init__(self, trainer: Any) -> None:
        self.inputs: dict[str, Any] = {}
        compute_loss = trainer.compute_loss

        def keep(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            self.inputs = self.inputs or {
                key: value.clone() if isinstance(value, Tensor) else value for key, value in inputs.items()
            }
            return compute_loss(model, inputs, *args, **kwargs)

        trainer.compute_loss = keep


def count_forward_passes(trainer: Any) -> list[None]:
    """Grows with each forward pass of the trained model, by what looks up its tokens first."""
    passes: list[None] = []
    transformer = next(module for module in trainer.model.modules() if hasattr(module, "get_input_embeddings"))
    encoder = getattr(transformer, "encoder", transformer)  # of T5, whose decoder looks up tokens too
    (encoder if hasattr(encoder, "block") else transformer.get_input_embeddings()).register_forward_pre_hook(
        lambda *_: passes.append(None)
    )
    return passes


def weights(trainer: Any) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in trainer.model.state_dict().items()}


def test_beta_zero_is_the_trainer_alone_and_beta_matters(case: others.Case, tmp_path: Path) -> None:
    results: list[Any] = []
    for regularized, beta in ((False, 0.0), (True, 0.0), (True, 1.0)):
        trainer = case.trainer(tmp_path, regularized, lbe_beta=beta, max_steps=5)
        passes = count_forward_passes(trainer)
        trainer.train()
        losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        results.append((weights(trainer), losses, len(passes)))
    assert_same(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]
    assert results[0][2] == results[1][2] == results[2][2] >= 5
    assert any(not torch.equal(results[1][0][name], tensor) for name, tensor in results[2][0].items())


def test_gradient_of_the_first_step_is_that_of_the_formula(case: others.Case, tmp_path: Path) -> None:
    dropout = {"model": tiny.bert()} if case.arguments is others.LBETrainingArguments else {}
    made = {**case.make(tmp_path), **dropout}
    for module in made["model"].modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    case = others.Case(case.regularized, case.arguments, lambda folder: made, case.by_hand)
    trainer = case.trainer(tmp_path, lbe_beta=1.0, lbe_alpha=0.9, max_steps=1, learning_rate=0.0)
    first = FirstBatch(trainer)
    ours = gradients_of_first_step(trainer)
    trainer.model.zero_grad()
    task_loss, passes = case.by_hand(trainer, first.inputs)
    by_layer: dict[Any, list[Tensor]] = {}
    one_encoder = "first_input_ids" in first.inputs  # and not an encoder and a decoder
    for number, (states, mask) in enumerate(passes):
        for layer, state in enumerate(states):
            by_layer.setdefault(layer if one_encoder else (number, layer), []).append(
                tiny.reference_entropy(state, mask)
            )
    entropies = [sum(found) / len(found) for found in by_layer.values()]
    penalty = tiny.reference_penalty(entropies, torch.full((len(entropies),), 0.9), 0.2, beta=1.0)
    (task_loss * (1 + penalty)).backward()
    expected = tiny.gradients(trainer.model)
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    assert_same(ours, expected, rtol=1e-3, atol=1e-5 * largest)
    line = trainer.state.log_history[0]
    assert line["task_loss"] == pytest.approx(task_loss.item(), rel=1e-4)
    assert line["lbe_loss"] == pytest.approx((task_loss * penalty).item(), rel=1e-3)


def test_resumed_in_the_middle_ends_bit_for_bit_as_left_alone(case: others.Case, tmp_path: Path) -> None:
    settings = {"lbe_beta": 1.0, "max_steps": 6, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-2}
    whole = case.trainer(tmp_path, **settings)
    whole.train()
    resumed = case.trainer(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    assert resumed.state.global_step == 6
    assert_same(weights(whole), weights(resumed))
    assert torch.equal(whole.lbe.alpha, resumed.lbe.alpha)
    assert not torch.equal(whole.lbe.alpha, torch.full_like(whole.lbe.alpha, 0.5))


def test_card_has_the_section(case: others.Case, tmp_path: Path) -> None:
    trainer = case.trainer(tmp_path, lbe_beta=1.0, lbe_log_entropy=True, save_strategy="steps", save_steps=2)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    text = (tmp_path / "run" / "README.md").read_text()
    assert text.count("## Layerwise batch-entropy regularization") == 1
    assert "| `lbe_beta` | 1.0 |" in text
    assert len(list((tmp_path / "run").glob("README*"))) == 1


@pytest.mark.parametrize("name", ["SentenceTransformerTrainer", "CrossEncoderTrainer"])
def test_card_that_is_written_with_the_model_has_the_section(tmp_path: Path, name: str) -> None:
    trainer = CASES[name].trainer(tmp_path, lbe_beta=1.0, save_strategy="steps", save_steps=2)
    trainer.train()
    for _ in range(2):
        trainer.save_model()
    text = (tmp_path / "run" / "README.md").read_text()
    assert text.count("## Layerwise batch-entropy regularization") == 1
    assert f'{type(trainer.model).__name__}("run")' in text
    assert "## Layerwise batch-entropy" in (tmp_path / "run" / "checkpoint-2" / "README.md").read_text()
    loaded = type(trainer.model)(str(tmp_path / "run"), device="cpu")
    assert_same(dict(loaded.state_dict()), weights(trainer))


def test_adapter_of_peft(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    case, moved = CASES["SFTTrainer"], {}
    for beta in (0.0, 1.0):
        made = {**case.make(tmp_path), "peft_config": peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"])}
        arguments = {"lbe_beta": beta, "max_steps": 2, "learning_rate": 0.1}
        torch.manual_seed(0)
        trainer = others.Case(case.regularized, case.arguments, lambda folder, made=made: made, case.by_hand).trainer(
            tmp_path, **arguments
        )
        passes = count_forward_passes(trainer)
        trainer.train()
        assert len(passes) == 2
        moved[beta] = {name: tensor for name, tensor in weights(trainer).items() if "lora_B" in name}
    assert any(not torch.equal(moved[0.0][name], moved[1.0][name]) for name in moved[0.0])
    for _ in range(3):
        trainer.save_model()
        text = (tmp_path / "run" / "README.md").read_text()
        assert text.count("## Layerwise batch-entropy regularization") == 1
        assert "library_name: peft" in text
    trainer.create_model_card()
    trainer.save_model()
    assert (tmp_path / "run" / "README.md").read_text().count("## Layerwise batch-entropy regularization") == 1
    assert len(list((tmp_path / "run").glob("README*"))) == 1


@pytest.mark.parametrize("name", ["DPOTrainer", "RewardTrainer"])
def test_a_batch_of_one_pair_of_answers_is_measured(tmp_path: Path, name: str) -> None:
    trainer = CASES[name].trainer(tmp_path, lbe_beta=1.0, per_device_train_batch_size=1, max_steps=1)
    trainer.train()
    assert trainer.state.log_history[0]["lbe_loss"] > 0


def test_modules_of_a_sentence_transformer(tmp_path: Path) -> None:
    """One target for each module, however many columns of text there are, and no padding in it."""
    targets = r"0|.*output\.dense"  # the first one returns a dictionary that begins with the token ids
    trainer = CASES["SentenceTransformerTrainer"].trainer(
        tmp_path, lbe_beta=1.0, lbe_target_modules=targets, max_steps=1, learning_rate=0.0, lbe_log_entropy=True
    )
    first = FirstBatch(trainer)
    for module in trainer.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    trainer.train()
    dense = [
        f"0.model.encoder.layer.{layer}.{part}.dense" for layer in (0, 1) for part in ("attention.output", "output")
    ]
    assert trainer.lbe_layer_names == [*dense, "0"]
    outputs: list[Tensor] = []
    handle = trainer.model.get_submodule(dense[1]).register_forward_hook(lambda *call: outputs.append(call[-1]))
    _, passes = others.similarity_by_hand(trainer, first.inputs)
    handle.remove()
    line = trainer.state.log_history[0]
    expected = [tiny.reference_entropy(output, mask) for output, (_, mask) in zip(outputs, passes, strict=True)]
    assert line["entropy/layer_01"] == pytest.approx(sum(expected).item() / 2, rel=1e-5)
    expected = [tiny.reference_entropy(states[-1], mask) for states, mask in passes]
    assert line["entropy/layer_04"] == pytest.approx(sum(expected).item() / 2, rel=1e-5)


@pytest.mark.parametrize("name", ["SentenceTransformerTrainer", "CrossEncoderTrainer", "SFTTrainer"])
def test_an_own_readme_is_kept(name: str, tmp_path: Path) -> None:
    """Sentence-transformers overwrites it whenever it saves a model."""
    trainer = CASES[name].trainer(tmp_path, lbe_beta=1.0)
    folder = Path(trainer.args.output_dir)
    folder.mkdir(exist_ok=True)
    (folder / "README.md").write_text("# My own text\n")
    for _ in range(2):  # as `push_to_hub` does
        trainer.save_model()
        trainer.create_model_card()
    assert (folder / "README-own.md").read_text() == "# My own text\n"
    assert not (folder / "README-own2.md").exists()
    assert "## Layerwise batch-entropy regularization" in (folder / "README.md").read_text()


def test_an_own_readme_is_kept_when_a_checkpoint_is_pushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sentence-transformers copies the card of the checkpoint over it, and leaves the rest to `Trainer`."""
    monkeypatch.setattr(Trainer, "_push_from_checkpoint", lambda *_: None)
    trainer = CASES["SentenceTransformerTrainer"].trainer(tmp_path, lbe_beta=1.0)
    trainer.push_in_progress = None
    folder, checkpoint = Path(trainer.args.output_dir), tmp_path / "run" / "checkpoint-2"
    trainer.save_model(str(checkpoint))
    (folder / "README.md").write_text("# My own text\n")
    trainer._push_from_checkpoint(str(checkpoint))
    assert (folder / "README.md").read_text() == (checkpoint / "README.md").read_text()
    assert (folder / "README-own.md").read_text() == "# My own text\n"
