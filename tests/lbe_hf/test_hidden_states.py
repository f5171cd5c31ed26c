"""Models whose hidden states cannot be used."""

from collections.abc import Callable
from typing import Any

import pytest
from tiny import bert, causal_rows, token_rows
from transformers import (
    BartConfig,
    BartForCausalLM,
    BartForConditionalGeneration,
)

from lbe_hf import LBETrainer

Make = Callable[..., Any]


def test_layers_that_are_dropped_at_random_are_refused(make_trainer: Make) -> None:
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = BartConfig(d_model=8, **heads, encoder_layers=1, decoder_layers=1, vocab_size=40, encoder_layerdrop=0.1)
    with pytest.raises(ValueError, match=r"set config.encoder_layerdrop to 0"):
        make_trainer(LBETrainer, BartForConditionalGeneration(config), token_rows(8))


def test_the_decoder_of_a_deeper_model_by_itself(make_trainer: Make) -> None:
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = BartConfig(d_model=8, **heads, encoder_layers=1, decoder_layers=4, vocab_size=40)
    trainer = make_trainer(LBETrainer, BartForCausalLM(config), causal_rows(8), lbe_layers=[3], max_steps=1)
    trainer.train()
    assert trainer.lbe_layer_names == ["hidden_states[3]"]


def test_model_without_hidden_states(make_trainer: Make) -> None:
    class Silent(type(bert())):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **{**kwargs, "output_hidden_states": False})

    trainer = make_trainer(LBETrainer, Silent(bert().config), token_rows(8), remove_unused_columns=False)
    with pytest.raises(ValueError, match=r"returned no hidden states.*lbe_target_modules"):
        trainer.train()
