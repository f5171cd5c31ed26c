"""Layerwise batch-entropy regularization (Peer et al., TMLR 2022, arXiv 2208.01134) for Hugging Face Transformers."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .callback import InformationFlowCallback
    from .diagnosis import InformationFlow, information_flow
    from .entropy import batch_entropies, batch_entropy
    from .regularizer import LBERegularizer
    from .trainer import LBESeq2SeqTrainer, LBETrainer, LBETrainerMixin
    from .training_args import LBEArguments, LBESeq2SeqTrainingArguments, LBETrainingArguments

__version__ = "0.1.0"

__all__ = [
    "InformationFlow",
    "InformationFlowCallback",
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

_MODULES = {
    "callback": ("InformationFlowCallback",),
    "diagnosis": ("InformationFlow", "information_flow"),
    "entropy": ("batch_entropies", "batch_entropy"),
    "regularizer": ("LBERegularizer",),
    "trainer": ("LBESeq2SeqTrainer", "LBETrainer", "LBETrainerMixin"),
    "training_args": ("LBEArguments", "LBESeq2SeqTrainingArguments", "LBETrainingArguments"),
}


def __getattr__(name: str) -> Any:
    """Import a name on first access: importing Trainer also imports datasets, pandas and scikit-learn."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
