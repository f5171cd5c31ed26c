"""What is corrected of the upstream normalization, and what equals Trainer to the bit."""

import types
from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
import transformers
from tiny import InOrder, assert_same, bert, causal_rows, gradients_of_first_step, llama, token_rows
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForCausalLM,
    BartForConditionalGeneration,
    BertForSequenceClassification,
    LlamaForCausalLM,
    PreTrainedModel,
    Trainer,
)

from lbe_hf import LBETrainer, LBETrainerMixin
from lbe_hf.loss_normalization import ignores_num_items

Make = Callable[..., Any]


class Inner(PreTrainedModel):
    """Hands the labels and the number of items on to a language model; has a `loss_fct` all the same."""

    config_class = type(llama().config)
    _supports_sdpa = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.inner = llama()
        self.loss_fct = nn.CrossEntropyLoss()

    def forward(self, input_ids: Tensor, labels: Tensor, **kwargs: Any) -> Any:
        return self.inner(input_ids, labels=labels, **kwargs)


class Renamed(LlamaForCausalLM):
    def forward(self, input_ids: Tensor, labels: Any = None, **kwargs: Any) -> Any:
        logits = self.lm_head(self.model(input_ids).last_hidden_state)
        targets = labels.clone()
        return {"loss": self.loss_function(logits, targets, self.config.vocab_size, **kwargs), "logits": logits}


class Hidden(Inner):
    def forward(self, input_ids: Tensor, **kwargs: Any) -> Any:
        return self.inner(input_ids, **kwargs)  # with the labels among them


class Dictionary(Inner):
    def forward(self, input_ids: Tensor, labels: Any = None, **kwargs: Any) -> Any:
        return self.loss_of(self.inner(input_ids).logits, labels, kwargs)

    def loss_of(self, logits: Tensor, labels: Tensor, options: dict[str, Any]) -> Any:
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        return {"loss": loss / options.get("num_items_in_batch", 1), "logits": logits}


class Sub(LlamaForCausalLM):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


class Own(nn.Module):
    def forward(self, x: Tensor, num_items_in_batch: Any = None, **kwargs: Any) -> Tensor:
        return x.sum() / num_items_in_batch


def test_which_losses_depend_on_the_number_of_items() -> None:
    class SubBert(BertForSequenceClassification):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    config = llama().config
    for model in (llama(), Sub(config), Own(), Inner(config), Renamed(config), Hidden(config), Dictionary(config)):
        assert not ignores_num_items(model)
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    bart = BartForConditionalGeneration(
        BartConfig(d_model=8, **heads, encoder_layers=1, decoder_layers=1, vocab_size=40)
    )
    for model in (bert(), SubBert(bert().config), bart):
        assert ignores_num_items(model)


def encoder_decoders() -> list[PreTrainedModel]:
    """Of Transformers; each decoder is a small BERT."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    decoder = transformers.BertConfig(vocab_size=40, **sizes, is_decoder=True, add_cross_attention=True)
    speech = {"conv_dim": (16,), "conv_stride": (5,), "conv_kernel": (10,), "num_conv_pos_embeddings": 4}
    speech |= {"num_feat_extract_layers": 1, "num_conv_pos_embedding_groups": 2}
    encoders = {
        "EncoderDecoder": transformers.BertConfig(vocab_size=40, **sizes),
        "VisionEncoderDecoder": transformers.ViTConfig(image_size=16, patch_size=8, **sizes),
        "SpeechEncoderDecoder": transformers.Wav2Vec2Config(**sizes, **speech),
    }
    models = []
    for name, encoder in encoders.items():
        config = getattr(transformers, f"{name}Config").from_encoder_decoder_configs(encoder, decoder)
        config.decoder_start_token_id, config.pad_token_id = 1, 0
        models.append(getattr(transformers, f"{name}Model")(config))
    return models


@pytest.mark.filterwarnings("ignore:Version v4.12.0 introduces:FutureWarning")
def test_encoder_decoders_of_two_models_ignore_the_number_of_items() -> None:
    labels = torch.randint(4, 40, (2, 5), generator=torch.Generator().manual_seed(0))
    inputs = [{"input_ids": labels}, {"pixel_values": torch.ones(2, 3, 16, 16)}, {"input_values": torch.ones(2, 400)}]
    for model, own in zip(encoder_decoders(), inputs, strict=True):
        losses = [model.eval()(**own, labels=labels, num_items_in_batch=items).loss for items in (1, 1000)]
        assert losses[0] == losses[1] > 0
        assert ignores_num_items(model)


class ByItems(Trainer):
    """Computes its own loss, by the number of items that Trainer passes on."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        outputs = model(**inputs)
        loss = nn.functional.cross_entropy(outputs.logits, inputs["labels"], reduction="sum") / num_items_in_batch
        return (loss, outputs) if return_outputs else loss


class ByItemsLBE(LBETrainerMixin, ByItems):
    pass


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("case", ["own compute_loss", "label smoothing", "inner model", "renamed labels"])
def test_equals_trainer_bit_for_bit(make_trainer: Make, case: str, accumulation: int) -> None:
    causal = case in ("inner model", "renamed labels")
    rows = causal_rows(16) if causal else token_rows(16)
    settings: dict[str, Any] = {"label_smoothing_factor": 0.1} if case == "label smoothing" else {}
    results = []
    for cls in (ByItems, ByItemsLBE) if case == "own compute_loss" else (Trainer, LBETrainer):
        torch.manual_seed(0)
        make_model = {"inner model": Inner, "renamed labels": Renamed}.get(case, lambda config: bert())
        trainer = make_trainer(
            cls, make_model(llama().config), rows, lbe_beta=0.0, max_steps=5, remove_unused_columns=False,
            gradient_accumulation_steps=accumulation, **settings,
        )  # fmt: skip
        gradients = gradients_of_first_step(trainer)
        logged = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        results.append((gradients, trainer.model.state_dict(), logged))
    assert_same(results[0][0], results[1][0])
    assert_same(results[0][1], results[1][1])
    assert results[0][2] == results[1][2]


class Summed(BertForSequenceClassification):
    """Uses the number of items beside a call of super()."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        outputs = super().forward(*args, **kwargs)
        if kwargs.get("num_items_in_batch") is not None:
            loss = nn.functional.cross_entropy(outputs.logits, kwargs["labels"], reduction="sum")
            outputs.loss = loss / kwargs["num_items_in_batch"]
        return outputs


class Scaled(Trainer):
    """Takes the remedy that Transformers has."""

    loss_is_scaled_for_ga = False


class ScaledLBE(LBETrainerMixin, Scaled):
    pass


@pytest.mark.parametrize("case", ["super and number", "replaced forward", "loss_is_scaled_for_ga"])
def test_what_is_normalized_already_stays_as_it_is(make_trainer: Make, case: str) -> None:
    if case == "loss_is_scaled_for_ga" and not tiny.NORMALIZES:
        pytest.skip("this version of transformers does not know loss_is_scaled_for_ga")
    results = []
    for cls in (Scaled, ScaledLBE) if case == "loss_is_scaled_for_ga" else (Trainer, LBETrainer):
        torch.manual_seed(0)
        model = (BertForSequenceClassification if case == "loss_is_scaled_for_ga" else Summed)(bert().config)
        if case == "replaced forward":
            model = BertForSequenceClassification(bert().config)
            model.forward = types.MethodType(Summed.forward, Summed(bert().config))
        trainer = make_trainer(
            cls, model, token_rows(16), lbe_beta=0.0, max_steps=3, gradient_accumulation_steps=4,
            remove_unused_columns=False,
        )  # fmt: skip
        if case == "replaced forward":
            trainer.model_accepts_loss_kwargs = True
        trainer.train()
        results.append([line["loss"] for line in trainer.state.log_history if "loss" in line])
    assert results[0] == results[1]


def test_hidden_states_are_those_of_the_model_under_accumulation_too(make_trainer: Make) -> None:
    """The correction replaces `forward`, as a library would."""
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = BartConfig(d_model=8, **heads, encoder_layers=1, decoder_layers=1, vocab_size=40)
    for accumulation in (1, 2):
        trainer = make_trainer(
            LBETrainer, BartForCausalLM(config), causal_rows(8), gradient_accumulation_steps=accumulation
        )
        trainer.train()
        assert trainer.lbe_layer_names == ["hidden_states[0]", "hidden_states[1]"]


def test_loss_of_a_classifier_is_the_mean_over_the_accumulated_batch(make_trainer: Make) -> None:
    """As Trainer has it without accumulation, and does not have it with accumulation."""
    rows, losses = token_rows(16), {}
    for cls in (Trainer, LBETrainer):
        for size, accumulation in ((16, 1), (4, 4)):
            trainer = make_trainer(
                cls, bert(), rows, lbe_beta=0.0, max_steps=1, per_device_train_batch_size=size,
                gradient_accumulation_steps=accumulation,
            )  # fmt: skip
            trainer.train()
            losses[cls, accumulation] = trainer.state.log_history[0]["loss"]
    assert losses[LBETrainer, 1] == losses[Trainer, 1]
    assert losses[LBETrainer, 4] == pytest.approx(losses[LBETrainer, 1], rel=1e-4)
    assert losses[Trainer, 4] > 3 * losses[Trainer, 1]  # should this fail, the correction has nothing to do any more


# ---- The additive form ---------------------------------------------------------------------------------------------


def additive_gradient(model: Any, rows: list[dict[str, Tensor]], sizes: list[int], task: Tensor, beta: float) -> Any:
    """Gradients of `task` plus the mean of the penalties over micro-batches of these sizes, by the formula."""
    penalties, start = [], 0
    for size in sizes:
        part = tiny.batch(rows[start : start + size])
        states = model(**part, output_hidden_states=True).hidden_states
        entropies = [tiny.reference_entropy(state, part["attention_mask"]) for state in states]
        penalties.append(tiny.reference_penalty(entropies, torch.full((len(states),), 0.5), 0.2, beta))
        start += size
    model.zero_grad()
    (task + sum(penalties) / len(penalties)).backward()
    return tiny.gradients(model)


@pytest.mark.parametrize("case", ["classifier", "label smoothing", "language model", "compute_loss_func"])
def test_additive_penalty_is_the_mean_over_micro_batches(make_trainer: Make, case: str) -> None:
    if case in ("label smoothing", "language model") and not tiny.NORMALIZES:
        pytest.skip("Trainer of this version of transformers normalizes these losses in another way")
    rows = causal_rows(8) if case == "language model" else token_rows(8)
    settings: dict[str, Any] = {"label_smoothing_factor": 0.1} if case == "label smoothing" else {}
    extra: dict[str, Any] = {}
    if case == "compute_loss_func":
        extra["compute_loss_func"] = lambda outputs, labels, num_items_in_batch=None: (
            nn.functional.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch
        )

    def make_model() -> Any:
        return llama() if case == "language model" else bert()

    model, whole = make_model(), tiny.batch(rows)
    outputs = model(**whole)
    task = outputs.loss
    if case == "label smoothing":
        log_probabilities = nn.functional.log_softmax(outputs.logits, dim=-1)
        task = 0.9 * task - 0.1 * log_probabilities.mean()
    expected = additive_gradient(model, rows, [4, 4], task, beta=3.0)
    trainer = make_trainer(
        InOrder, make_model(), rows, extra, lbe_beta=3.0, lbe_form="additive", max_steps=1, max_grad_norm=0.0,
        gradient_accumulation_steps=2, **settings,
    )  # fmt: skip
    assert_same(gradients_of_first_step(trainer), expected, rtol=1e-4, atol=1e-6)
    line = trainer.state.log_history[0]
    assert line["task_loss"] == pytest.approx(task.item(), rel=1e-4)
    assert line["task_loss"] + line["lbe_loss"] == pytest.approx(line["loss"], rel=1e-4)
