"""Models whose hidden states are unusual, or cannot be used."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from tiny import batch, bert, causal_rows, reference_entropy, token_rows
from transformers import (
    BartConfig,
    BartForCausalLM,
    BartForConditionalGeneration,
    BartForSequenceClassification,
    CanineConfig,
    CanineForSequenceClassification,
)

from lbe_hf import LBETrainer, information_flow

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


def test_the_decoder_of_a_classifier_reads_the_input_shifted_by_one() -> None:
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = BartConfig(d_model=8, **heads, encoder_layers=1, decoder_layers=2, vocab_size=40, pad_token_id=0)
    torch.manual_seed(0)
    model = BartForSequenceClassification(config).eval()
    rows = token_rows(6)
    for row in rows:  # the last token of a sequence, which the classifier looks up
        row["input_ids"][row["attention_mask"].sum() - 1] = config.eos_token_id
    inputs = batch(rows)
    seen = torch.cat([torch.ones(6, 1), inputs["attention_mask"][:, :-1]], 1)
    states = model(**inputs, output_hidden_states=True).decoder_hidden_states
    expected = [reference_entropy(state, seen).item() for state in states]
    assert information_flow(model, [inputs]).entropies[2:] == pytest.approx(expected, rel=1e-5)
    modules = information_flow(model, [inputs], target_modules=["decoder.layers.0", "decoder.layers.1"])
    assert modules.entropies == pytest.approx(expected[1:], rel=1e-5)
    inputs["labels"] = torch.ones(6, config.num_labels)  # of multi-label classification, no tokens
    model.config.problem_type = "multi_label_classification"
    assert information_flow(model, [inputs]).entropies[2:] == pytest.approx(expected, rel=1e-5)


def test_hidden_states_that_are_no_tensors(make_trainer: Make) -> None:
    """PegasusX returns pairs of local and global states."""
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "d_model": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = transformers.PegasusXConfig(vocab_size=40, **sizes, **heads, num_global_tokens=2, block_size=4)
    model, rows = transformers.PegasusXForConditionalGeneration(config), causal_rows(6)
    trainer = make_trainer(LBETrainer, model, rows, max_steps=1)
    with pytest.raises(ValueError, match=r"PegasusX\w+ are no tensors: name the modules .* with lbe_target_modules"):
        trainer.train()
    assert "model.encoder.layers.0.fc1" in information_flow(model, [batch(rows)]).names


@pytest.mark.skipif(not hasattr(transformers, "Gemma3nForCausalLM"), reason="this version has no Gemma 3n")
def test_the_streams_of_gemma_3n_are_not_examples() -> None:
    torch.manual_seed(0)
    config = transformers.Gemma3nTextConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        head_dim=8, vocab_size=40, vocab_size_per_layer_input=40, hidden_size_per_layer_input=8, laurel_rank=4,
        num_kv_shared_layers=0, layer_types=["full_attention"] * 2, activation_sparsity_pattern=[0.0] * 2,
        pad_token_id=0,
    )  # fmt: skip
    model, inputs = transformers.Gemma3nForCausalLM(config).eval(), batch(causal_rows(6))
    flow = information_flow(model, [inputs])
    states = model(**inputs, output_hidden_states=True).hidden_states
    assert states[0].shape == (4, 6, 8, 16)
    expected = [
        reference_entropy(state.permute(1, 2, 0, 3) if state.dim() == 4 else state, inputs["attention_mask"]).item()
        for state in states
    ]
    assert flow.entropies == pytest.approx(expected, rel=1e-5)


def test_layers_of_canine_are_named_after_its_first_pass(make_trainer: Make) -> None:
    """It has the states of its shallow transformers, too, which its configuration does not count."""
    torch.manual_seed(0)
    config = CanineConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_hash_buckets=64,
        local_transformer_stride=8, downsampling_rate=2, max_position_embeddings=64,
    )  # fmt: skip
    model, rows = CanineForSequenceClassification(config), token_rows(8, length=16)
    states = model(**batch(rows), output_hidden_states=True).hidden_states
    last = len(states) - 1
    trainer = make_trainer(LBETrainer, model, rows, lbe_layers=[last], max_steps=1)
    trainer.train()
    assert last > config.num_hidden_layers
    assert trainer.lbe_layer_names == [f"hidden_states[{last}]"]
