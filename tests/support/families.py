"""Tiny random models of many families, from configurations, with examples for them."""

from typing import Any

import torch
import transformers
from tiny import SHAPE, VOCABULARY, causal_rows, token_rows
from torch import Tensor

TEXT = {**SHAPE, "vocab_size": VOCABULARY}
NAMED = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
ENCODER_DECODER = {
    "d_model": 16, "encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "vocab_size": VOCABULARY,
    "max_position_embeddings": 32, "decoder_start_token_id": 2, "forced_eos_token_id": 2, **NAMED,
}  # fmt: skip
T5 = {
    "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 2,
    "vocab_size": VOCABULARY, "decoder_start_token_id": 0,
}  # fmt: skip

# Model class, configuration, number of activations.
FAMILIES: dict[str, tuple[str, dict[str, Any], int]] = {
    "Bert": ("BertForSequenceClassification", TEXT, 4),
    "Roberta": ("RobertaForSequenceClassification", TEXT, 4),
    "DistilBert": (
        "DistilBertForSequenceClassification",
        {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 32, "vocab_size": VOCABULARY},
        4,
    ),
    "Albert": ("AlbertForSequenceClassification", {**TEXT, "embedding_size": 8}, 4),
    "Electra": ("ElectraForSequenceClassification", {**TEXT, "embedding_size": 8}, 4),
    "DebertaV2": (
        "DebertaV2ForSequenceClassification",
        {**TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
        4,
    ),
    "MPNet": ("MPNetForSequenceClassification", TEXT, 4),
    "ModernBert": ("ModernBertForSequenceClassification", {**TEXT, **NAMED, "cls_token_id": 1, "sep_token_id": 2}, 4),
    "GPT2": (
        "GPT2ForSequenceClassification",
        {"n_embd": 16, "n_layer": 3, "n_head": 2, "vocab_size": VOCABULARY, **NAMED},
        4,
    ),
    "Llama": ("LlamaForCausalLM", {**TEXT, **NAMED}, 4),
    "T5": ("T5ForConditionalGeneration", T5, 4 + 3),
    "Bart": ("BartForConditionalGeneration", ENCODER_DECODER, 4 + 3),
    "ViT": ("ViTForImageClassification", {**SHAPE, "image_size": 16, "patch_size": 8}, 4),
}


def rows_for(family: str, count: int = 8, seed: int = 0) -> list[dict[str, Tensor]]:
    if family == "ViT":
        generator = torch.Generator().manual_seed(seed)
        return [
            {"pixel_values": torch.randn(3, 16, 16, generator=generator), "labels": torch.tensor(index % 2)}
            for index in range(count)
        ]
    return (causal_rows if family in ("Llama", "T5", "Bart") else token_rows)(count, seed=seed)


def model_for(family: str, seed: int = 0) -> Any:
    class_name, config, _ = FAMILIES[family]
    torch.manual_seed(seed)
    return getattr(transformers, class_name)(getattr(transformers, f"{family}Config")(**config))
