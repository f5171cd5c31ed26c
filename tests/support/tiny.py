"""Tiny random models, rows for them, and the formulas of the paper written out a second time, in float64."""

import dataclasses
import math
import re
import string
from pathlib import Path
from typing import Any

import torch
import transformers
from packaging.version import Version
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from glue_runs.tasks.grammar import generate
from lbe_hf import LBETrainer, LBETrainingArguments

SHAPE = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
VOCABULARY = 40

NORMALIZES = Version(transformers.__version__) >= Version("5.19")
"""Whether `Trainer` itself normalizes label smoothing and language models by the items of the accumulated batch."""


def arguments(cls: type[TrainingArguments] = LBETrainingArguments, **changes: Any) -> Any:
    defaults = {
        "per_device_train_batch_size": 4,
        "max_steps": 3,
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return cls(**{**defaults, **changes})


def checkpointing(use_reentrant: bool) -> dict[str, Any]:
    """Arguments that turn on activation checkpointing, under the name that this version of transformers has for it."""
    names = {field.name for field in dataclasses.fields(TrainingArguments)}
    name = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    return {name: True, f"{name}_kwargs": {"use_reentrant": use_reentrant}}


def bert(dropout: bool = False, **config: Any) -> BertForSequenceClassification:
    torch.manual_seed(0)
    still = {} if dropout else STILL
    return BertForSequenceClassification(BertConfig(vocab_size=VOCABULARY, **{**SHAPE, **still, **config}))


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **SHAPE))


def token_rows(count: int, length: int = 8, seed: int = 0, regression: bool = False) -> list[dict[str, Tensor]]:
    """Rows of `length` tokens of which the last ones are padding in most rows."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(count):
        real = int(torch.randint(2, length + 1, (1,), generator=generator))
        mask = (torch.arange(length) < real).long()
        ids = torch.randint(4, VOCABULARY, (length,), generator=generator) * mask
        label = torch.rand((), generator=generator) if regression else torch.randint(0, 2, (), generator=generator)
        rows.append({"input_ids": ids, "attention_mask": mask, "labels": label})
    return rows


def causal_rows(count: int, length: int = 8, seed: int = 0) -> list[dict[str, Tensor]]:
    rows = token_rows(count, length, seed)
    return [{**row, "labels": row["input_ids"].masked_fill(row["attention_mask"] == 0, -100)} for row in rows]


def batch(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def trimmed(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """A batch that ends with the last token of its longest row."""
    tensors = batch(rows)
    longest = int(tensors["attention_mask"].sum(1).max())
    return {key: value[:, :longest] if value.dim() > 1 else value for key, value in tensors.items()}


def reference_entropy(x: Tensor, mask: Tensor | None = None, samples: str = "sequence") -> Tensor:
    """Batch entropy by a loop over units in float64; differentiable."""
    x = x.double()
    rows, features = x.shape[0], math.prod(x.shape[2:])
    if mask is None:
        mask = torch.ones(x.shape[:2])
    x = x.reshape(rows, x.shape[1], features)
    if samples == "token":
        units, weights = [x[mask.bool()]], [1.0]
    else:
        units = [x[mask[:, position].bool(), position] for position in range(x.shape[1])]
        units = [unit for unit in units if len(unit) >= 2]
        weights = [float(len(unit)) for unit in units]
    total = torch.zeros((), dtype=torch.float64)
    for unit, weight in zip(units, weights, strict=True):
        mean = unit.sum(0) / len(unit)
        variance = ((unit - mean) ** 2).sum(0) / (len(unit) - 1)
        total = total + weight * (torch.log(1 + math.pi * math.e * variance) / 2).mean()
    return total / sum(weights)


def reference_penalty(entropies: list[Tensor], alpha: Tensor, alpha_min: float, beta: float) -> Tensor:
    """Penalty by a loop over layers in float64; differentiable in the entropies and in alpha."""
    terms = []
    for entropy, value in zip(entropies, alpha, strict=True):
        target = value.abs() if value.abs() >= alpha_min else torch.tensor(alpha_min, dtype=value.dtype)
        terms.append(beta * (entropy - target) ** 2)
    return sum(terms) / len(terms)


def reference_loss(model: nn.Module, inputs: dict[str, Tensor], alpha: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Regularized loss and task loss of a model that returns hidden states, padding left out."""
    outputs = model(**inputs, output_hidden_states=True)
    entropies = [reference_entropy(state, inputs["attention_mask"]) for state in outputs.hidden_states]
    penalty = reference_penalty(entropies, alpha, alpha_min=0.2, beta=beta)
    return outputs.loss * (1 + penalty), outputs.loss


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


class InOrder(LBETrainer):
    """Takes the rows in the order they have, so that a test knows what is in each micro-batch."""

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]


class KeepGradients(TrainerCallback):
    """Gradients as the optimizer gets them, one dictionary a step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.steps.append(gradients(model))


def step(trainer: LBETrainer, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Loss and gradients of a training step on this batch, without a training loop, and the gradient of alpha."""
    seen: list[Tensor] = []
    hook = trainer._lbe_targets.optimizer.register_step_pre_hook(
        lambda *_: seen.append(trainer.lbe.alpha.grad.clone())
    )
    trainer.model.zero_grad()
    loss = trainer.training_step(trainer.model, dict(inputs))
    hook.remove()
    return loss, gradients(trainer.model), seen[0]


def gradients_of_first_step(trainer: Trainer) -> dict[str, Tensor]:
    keeper = KeepGradients()
    trainer.add_callback(keeper)
    trainer.train()
    return keeper.steps[0]


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor], **tolerance: float) -> None:
    """Equal bit for bit, or within the tolerance given."""
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], **(tolerance or {"rtol": 0, "atol": 0}), msg=name)


def save_encoder(folder: Path, **config: Any) -> None:
    """A BERT of two layers, as files, with a tokenizer that knows the words of the demonstration and letters."""
    generated = [example for task in ("demo_rte", "demo_mrpc", "demo_cola") for example in generate(task, 200, seed=0)]
    texts = [text for example in generated for text in example.values() if isinstance(text, str)]
    words = sorted({word for text in texts for word in re.findall(r"[a-z]{2,}", text.lower())})
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_lowercase, *".,?!'", *words]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    BertTokenizerFast(vocab=vocabulary, model_max_length=128).save_pretrained(folder)
    torch.manual_seed(0)
    shape = {**SHAPE, "num_hidden_layers": 2, "initializer_range": 0.3, **config}
    BertForSequenceClassification(BertConfig(vocab_size=len(tokens), **shape)).save_pretrained(folder)
