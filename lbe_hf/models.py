"""Finds the Transformers models inside a module, and tells whether `Trainer` copies one."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel, TrainingArguments


def transformers_models(model: nn.Module, name: str = "") -> dict[str, PreTrainedModel]:
    """The outermost Transformers models in a module, by name."""
    if isinstance(model, PreTrainedModel):
        return {name: model}
    found: dict[str, PreTrainedModel] = {}
    for child_name, child in model.named_children():
        for inner_name, inner in transformers_models(child, f"{name}.{child_name}" if name else child_name).items():
            if not any(inner is other for other in found.values()):
                found[inner_name] = inner
    return found


def base_model(model: nn.Module) -> nn.Module:
    """The Transformers model inside a PEFT model; any other model unchanged."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


def in_data_parallel(args: TrainingArguments, model: nn.Module | None) -> bool:
    """Whether `Trainer` trains copies of the model on several GPUs in one process; it never copies quantized ones."""
    is_quantized = getattr(model, "is_loaded_in_8bit", False) or getattr(model, "is_loaded_in_4bit", False)
    return isinstance(model, nn.DataParallel) or (args.n_gpu > 1 and not is_quantized)
