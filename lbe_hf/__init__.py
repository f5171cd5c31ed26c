"""Layerwise batch-entropy regularization (Peer et al., TMLR 2022, arXiv 2208.01134) for Hugging Face Transformers."""

from .diagnosis import InformationFlow, information_flow
from .entropy import batch_entropies, batch_entropy
from .regularizer import LBERegularizer
from .trainer import LBESeq2SeqTrainer, LBETrainer, LBETrainerMixin
from .training_args import LBEArguments, LBESeq2SeqTrainingArguments, LBETrainingArguments

__all__ = [
    "InformationFlow",
    "LBEArguments",
    "LBERegularizer",
    "LBESeq2SeqTrainer",
    "LBESeq2SeqTrainingArguments",
    "LBETrainer",
    "LBETrainerMixin",
    "LBETrainingArguments",
    "batch_entropies",
    "batch_entropy",
    "information_flow",
]
