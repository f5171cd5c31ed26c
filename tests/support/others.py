"""Trainers of other libraries as their users make them, on tiny models and generated text; their losses by hand."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiny
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import LlamaForSequenceClassification, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from lbe_hf import (
    LBEArguments,
    LBESeq2SeqTrainer,
    LBESeq2SeqTrainingArguments,
    LBETrainer,
    LBETrainerMixin,
    LBETrainingArguments,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz"
Pass = tuple[tuple[Tensor, ...], Tensor]
"""Hidden states of a forward pass, and the mask of its real tokens."""


@dataclass
class SFTArguments(LBEArguments, SFTConfig): ...


@dataclass
class DPOArguments(LBEArguments, DPOConfig): ...


@dataclass
class RewardArguments(LBEArguments, RewardConfig): ...


@dataclass
class SentenceArguments(LBEArguments, SentenceTransformerTrainingArguments): ...


@dataclass
class CrossEncoderArguments(LBEArguments, CrossEncoderTrainingArguments): ...


class LBESFTTrainer(LBETrainerMixin, SFTTrainer): ...


class LBEDPOTrainer(LBETrainerMixin, DPOTrainer): ...


class LBERewardTrainer(LBETrainerMixin, RewardTrainer): ...


class LBESentenceTrainer(LBETrainerMixin, SentenceTransformerTrainer): ...


class LBECrossEncoderTrainer(LBETrainerMixin, CrossEncoderTrainer): ...


@dataclass
class Case:
    """A trainer with the penalty, and the same without.

    `make(folder)` gives the arguments of both but for `args`; `by_hand(trainer, inputs)` the task loss of a
    micro-batch and its forward passes.
    """

    regularized: type[LBETrainerMixin]
    arguments: type[Any]
    make: Callable[[Path], dict[str, Any]]
    by_hand: Callable[[Any, dict[str, Any]], tuple[Tensor, list[Pass]]]

    def trainer(self, folder: Path, regularized: bool = True, **arguments: Any) -> Any:
        cls: Any = self.regularized if regularized else self.regularized.__mro__[2]
        arguments = {"max_grad_norm": 0.0, "bf16": False, **arguments}
        args = tiny.arguments(self.arguments, output_dir=str(folder / "run"), **arguments)
        return cls(args=args, **self.make(folder))


def tokenizer() -> PreTrainedTokenizerFast:
    words = {word: index for index, word in enumerate(["[PAD]", "[EOS]", "[UNK]", *LETTERS])}
    letters = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    letters.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "[PAD]", "eos_token": "[EOS]", "unk_token": "[UNK]"}
    return PreTrainedTokenizerFast(tokenizer_object=letters, **special)


def texts(seed: int, count: int = 24) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(LETTERS, k=draw.randint(3, 9))) for _ in range(count)]


def numbers(count: int = 24) -> list[float]:
    draw = random.Random(0)
    return [draw.random() for _ in range(count)]


def log_probabilities(model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Pass]:
    """Log-probability of each next token `(B, T - 1)`, by the forward of the class and not by that of TRL."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    outputs = type(model).forward(model, input_ids=ids, attention_mask=mask, output_hidden_states=True)
    logits = nn.functional.log_softmax(outputs.logits[:, :-1], dim=-1)
    return logits.gather(-1, ids[:, 1:, None]).squeeze(-1), (outputs.hidden_states, mask)


# ---- Transformers ---------------------------------------------------------------------------------------------------


def classification(folder: Path) -> dict[str, Any]:
    return {"model": tiny.bert(dropout=True), "train_dataset": tiny.token_rows(24)}


def classification_by_hand(trainer: Any, inputs: dict[str, Any]) -> tuple[Tensor, list[Pass]]:
    outputs = trainer.model(**inputs, output_hidden_states=True)
    loss = nn.functional.cross_entropy(outputs.logits, inputs["labels"])
    return loss, [(outputs.hidden_states, inputs["attention_mask"])]


def translation(folder: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    config = T5Config(
        d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=40, decoder_start_token_id=0,
        dropout_rate=0.0,
    )  # fmt: skip
    return {"model": T5ForConditionalGeneration(config), "train_dataset": tiny.causal_rows(24)}


def translation_by_hand(trainer: Any, inputs: dict[str, Any]) -> tuple[Tensor, list[Pass]]:
    outputs = trainer.model(**inputs, output_hidden_states=True)
    loss = nn.functional.cross_entropy(outputs.logits.flatten(0, 1), inputs["labels"].flatten())
    encoder, decoder = outputs.encoder_hidden_states, outputs.decoder_hidden_states
    return loss, [(encoder, inputs["attention_mask"]), (decoder, inputs["labels"] != -100)]


# ---- TRL ------------------------------------------------------------------------------------------------------------


def sft(folder: Path) -> dict[str, Any]:
    rows = Dataset.from_dict({"text": texts(0)})
    return {"model": tiny.llama(), "train_dataset": rows, "processing_class": tokenizer()}


def sft_by_hand(trainer: Any, inputs: dict[str, Any]) -> tuple[Tensor, list[Pass]]:
    logged, one = log_probabilities(trainer.model, inputs)
    return -logged[inputs["labels"][:, 1:] != -100].mean(), [one]


def preferences(folder: Path) -> dict[str, Any]:
    texts_of = {"prompt": texts(0), "chosen": texts(1), "rejected": texts(2)}
    rows = Dataset.from_dict({**texts_of, "chosen": [f" {text}" for text in texts(1)]})
    return {"train_dataset": rows, "processing_class": tokenizer()}


def dpo(folder: Path) -> dict[str, Any]:
    reference = tiny.llama()
    with torch.no_grad():
        reference.lm_head.weight.mul_(1.5)
    return {"model": tiny.llama(), "ref_model": reference, **preferences(folder)}


def dpo_by_hand(trainer: Any, inputs: dict[str, Any]) -> tuple[Tensor, list[Pass]]:
    completed = inputs["completion_mask"][:, 1:]
    logged, one = log_probabilities(trainer.model, inputs)
    with torch.no_grad():
        reference, _ = log_probabilities(trainer.ref_model, inputs)
    chosen, rejected = ((logged - reference) * completed).sum(1).chunk(2)
    return -nn.functional.logsigmoid(0.1 * (chosen - rejected)).mean(), [one]


def reward(folder: Path) -> dict[str, Any]:
    config = tiny.llama().config
    config.num_labels, config.pad_token_id = 1, 0
    torch.manual_seed(0)
    return {"model": LlamaForSequenceClassification(config), **preferences(folder)}


def reward_by_hand(trainer: Any, inputs: dict[str, Any]) -> tuple[Tensor, list[Pass]]:
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    outputs = trainer.model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    chosen, rejected = outputs.logits.squeeze(-1).chunk(2)
    return -nn.functional.logsigmoid(chosen - rejected).mean(), [(outputs.hidden_states, mask)]


# ---- sentence-transformers ------------------------------------------------------------------------------------------


def encoder(folder: Path) -> SentenceTransformer:
    tiny.save_encoder(folder / "encoder")
    transformer = Transformer(str(folder / "encoder"))
    return SentenceTransformer(modules=[transformer, Pooling(16)], device="cpu")


def similarity(folder: Path) -> dict[str, Any]:
    model = encoder(folder)
    rows = Dataset.from_dict({"first": texts(0), "second": texts(1), "score": numbers()})
    return {"model": model, "train_dataset": rows, "loss": CosineSimilarityLoss(model)}


def similarity_by_hand(trainer: Any, inputs: dict[str, Any]) -> tuple[Tensor, list[Pass]]:
    passes, embeddings = [], []
    for column in ("first", "second"):
        ids, mask = inputs[f"{column}_input_ids"], inputs[f"{column}_attention_mask"]
        outputs = trainer.model[0].model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        weight = mask.unsqueeze(-1)
        embeddings.append((outputs.last_hidden_state * weight).sum(1) / weight.sum(1))
        passes.append((outputs.hidden_states, mask))
    difference = nn.functional.cosine_similarity(*embeddings) - inputs["label"]
    return difference.square().mean(), passes


def ranking(folder: Path) -> dict[str, Any]:
    tiny.save_encoder(folder / "encoder", num_labels=1)
    torch.manual_seed(0)
    model = CrossEncoder(str(folder / "encoder"), num_labels=1, device="cpu")
    rows = Dataset.from_dict({"query": texts(0), "passage": texts(1), "label": numbers()})
    return {"model": model, "train_dataset": rows}


def ranking_by_hand(trainer: Any, inputs: dict[str, Any]) -> tuple[Tensor, list[Pass]]:
    given = trainer.model.tokenizer(inputs["query"], inputs["passage"], padding=True, return_tensors="pt")
    outputs = trainer.model[0].model(**given, output_hidden_states=True)
    loss = nn.functional.binary_cross_entropy_with_logits(outputs.logits.squeeze(-1), inputs["label"].float())
    return loss, [(outputs.hidden_states, given["attention_mask"])]


CASES = {
    "Trainer": Case(LBETrainer, LBETrainingArguments, classification, classification_by_hand),
    "Seq2SeqTrainer": Case(LBESeq2SeqTrainer, LBESeq2SeqTrainingArguments, translation, translation_by_hand),
    "SFTTrainer": Case(LBESFTTrainer, SFTArguments, sft, sft_by_hand),
    "DPOTrainer": Case(LBEDPOTrainer, DPOArguments, dpo, dpo_by_hand),
    "RewardTrainer": Case(LBERewardTrainer, RewardArguments, reward, reward_by_hand),
    "SentenceTransformerTrainer": Case(LBESentenceTrainer, SentenceArguments, similarity, similarity_by_hand),
    "CrossEncoderTrainer": Case(LBECrossEncoderTrainer, CrossEncoderArguments, ranking, ranking_by_hand),
}
