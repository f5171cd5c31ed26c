"""The operators that `LBETrainer` adds to a training step; on a GPU, each computing operator is a kernel launch.

    python benchmarks/operators.py

Counts the operators that `torch.profiler` records in one step of bert-base (random weights, 13 hidden states, 4 x 16
tokens, no dropout) with `LBETrainer`, minus those with `Trainer`. The counts do not depend on the machine, nor on the
batch size as long as the activations of a layer fit into one block (`lbe_hf.moments`).
"""

from __future__ import annotations

import tempfile
from collections import Counter

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import BertConfig, BertForSequenceClassification, Trainer
from transformers.utils import logging

from lbe_hf import LBETrainer, LBETrainingArguments

VIEWS = {
    "aten::" + name
    for name in (
        "_unsafe_view alias as_strided detach empty empty_like empty_strided expand flatten item permute "
        "promote_types resolve_conj resolve_neg result_type select slice t to transpose unbind unsqueeze view"
    ).split()
}
"""Operators that compute nothing: they make views, allocate memory, or query types."""


def operators(trainer_class: type[Trainer]) -> Counter[str]:
    """Counts of the operators of the second training step that call no other operator."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
    args = LBETrainingArguments(output_dir=tempfile.mkdtemp(), use_cpu=True, report_to="none")
    trainer = trainer_class(model, args=args)
    trainer.create_optimizer_and_scheduler(num_training_steps=10)
    wrapped, trainer.optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
    trainer.current_gradient_accumulation_steps = 1
    batch = {
        "input_ids": torch.randint(1000, 30000, (4, 16)),
        "attention_mask": torch.ones(4, 16, dtype=torch.long),
        "labels": torch.randint(0, 2, (4,)),
    }
    trainer.training_step(wrapped, dict(batch))
    wrapped.zero_grad()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        trainer.training_step(wrapped, dict(batch))
    return Counter(
        event.name
        for event in profiler.events()
        if event.name.startswith("aten::") and not any(child.name.startswith("aten::") for child in event.cpu_children)
    )


def main() -> None:
    logging.set_verbosity_error()
    added = operators(LBETrainer)
    added.subtract(operators(Trainer))
    computing = {name: count for name, count in added.items() if name not in VIEWS and count > 0}
    print(
        f"operators that call no other: {sum(added.values())} more a step, of which {sum(computing.values())} compute"
    )
    for name, count in sorted(computing.items(), key=lambda item: -item[1]):
        print(f"  {name.removeprefix('aten::')}: {count}")


if __name__ == "__main__":
    main()
