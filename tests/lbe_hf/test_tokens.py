"""Hub tokens in the arguments that a trainer saves."""

import copy
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import TOKEN
from tiny import bert, token_rows
from transformers import TrainingArguments
from trl import SFTConfig

from lbe_hf import LBETrainer, LBETrainingArguments


def test_saved_arguments_carry_no_token_and_copies_keep_all(make_trainer: Callable[..., Any]) -> None:
    trainer = make_trainer(LBETrainer, bert(), token_rows(8), hub_token=TOKEN, lbe_beta=0.3)
    trainer.save_model()
    saved = Path(trainer.args.output_dir, "training_args.bin").read_bytes()
    assert TOKEN.encode() not in saved
    loaded = torch.load(io.BytesIO(saved), weights_only=False)
    assert (loaded.lbe_beta, loaded.hub_token) == (0.3, None)
    for kept in (trainer.args, copy.copy(trainer.args), copy.deepcopy(trainer.args)):
        assert kept.hub_token == TOKEN
    assert pickle.loads(pickle.dumps(trainer.args)).hub_token == TOKEN


@dataclass
class WithTokens(LBETrainingArguments):
    eos_token: str = "<eos>"


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # TRL's
@pytest.mark.parametrize("kind", [TrainingArguments, SFTConfig])
def test_arguments_of_other_libraries_carry_no_token_either(make_trainer: Callable[..., Any], kind: type) -> None:
    trainer = make_trainer(LBETrainer, bert(), token_rows(8), cls=kind, hub_token=TOKEN, bf16=False)
    trainer.save_model()
    saved = Path(trainer.args.output_dir, "training_args.bin").read_bytes()
    assert TOKEN.encode() not in saved
    assert torch.load(io.BytesIO(saved), weights_only=False).hub_token is None
    assert pickle.loads(pickle.dumps(trainer.args)).hub_token == TOKEN


def test_only_tokens_of_the_hub_are_left_out(make_trainer: Callable[..., Any]) -> None:
    """TRL's configurations have an eos_token and a pad_token."""
    trainer = make_trainer(LBETrainer, bert(), token_rows(8), cls=WithTokens, hub_token=TOKEN)
    trainer.save_model()
    loaded = torch.load(Path(trainer.args.output_dir, "training_args.bin"), weights_only=False)
    assert (loaded.eos_token, loaded.hub_token) == ("<eos>", None)
