"""Speed of training on GLUE, as in the authors' script and as in the grid.

    python benchmarks/grid_speed.py --data_dir path/to/glue
    python benchmarks/grid_speed.py --data_dir path/to/glue --tasks rte --steps 10

The authors: random batches in float32, every example padded to 128 tokens, and entropies computed with `torch.std`.
The grid: batches grouped by length, padded to their longest example, in the precision that suits the device, with
`LBETrainer`. Both regularize the outputs of the feed-forward layers and the pooled output. They alternate, one step
each, in one process, over all full batches of an epoch. With `--steps`, they use that many batches, spread evenly from
the shortest to the longest, because lengths differ too much for a few random ones. Examples per second are computed
over all steps.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import Trainer
from transformers.utils import logging

from glue_runs.finetune.arguments import parse
from glue_runs.finetune.run import prepare
from glue_runs.grid.arguments import ACTIVATIONS, PROTOCOLS
from glue_runs.grid.progress import quiet_libraries
from lbe_hf.target_modules import TargetModules


class AuthorsTrainer(Trainer):
    """Captures the activations with hooks, and computes the entropy from `torch.std`, as the definition says."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], **kwargs: Any) -> Tensor:
        source = TargetModules(model, str(self.args.lbe_target_modules))
        with source.listen() as recording:
            loss = super().compute_loss(model, inputs, **kwargs)
        activations = recording.take(None)
        penalty = torch.zeros((), device=loss.device)
        for activation in activations:
            std = torch.std(activation.value.flatten(1), dim=0)
            entropy = torch.mean(0.5 * torch.log(math.pi * math.e * std**2 + 1))
            penalty = penalty + self.args.lbe_beta * (entropy - self.args.lbe_alpha) ** 2 / len(activations)
        return loss * (1 + penalty)


def build(task: str, arguments: argparse.Namespace, protocol: str, folder: str) -> Trainer:
    argv = ["--task_name", task, "--model_name_or_path", arguments.model, "--data_dir", arguments.data_dir]
    argv += ["--lbe_target_modules", str(ACTIVATIONS["feed_forward"]), "--lbe_beta", "0.05", "--output_dir", folder]
    trainer, _ = prepare(*parse([*argv, *PROTOCOLS[protocol], "--disable_tqdm", "true"]))
    if protocol == "authors":
        trainer = AuthorsTrainer(
            model=trainer.model,
            args=trainer.args,
            data_collator=trainer.data_collator,
            train_dataset=trainer.train_dataset,
            processing_class=trainer.processing_class,
        )
    trainer.create_optimizer_and_scheduler(num_training_steps=1000)
    trainer.model, trainer.optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def step(trainer: Trainer, batch: dict[str, Tensor]) -> float:
    """Duration of one training step in seconds, including clipping and the optimizer."""
    started = time.perf_counter()
    trainer.training_step(trainer.model, batch)
    trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), trainer.args.max_grad_norm)
    trainer.optimizer.step()
    trainer.model.zero_grad()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def spread(trainer: Trainer, count: int | None) -> list[dict[str, Tensor]]:
    """`count` full batches of an epoch, evenly spread over their lengths; None: all of them."""
    full = [b for b in trainer.get_train_dataloader() if len(b["labels"]) == trainer.args.per_device_train_batch_size]
    full.sort(key=lambda batch: batch["input_ids"].shape[1])
    count = len(full) if count is None else count
    return [full[round((index + 0.5) * len(full) / count - 0.5)] for index in range(count)]


def measure(task: str, arguments: argparse.Namespace, folder: str) -> str:
    trainers = {protocol: build(task, arguments, protocol, folder) for protocol in ("authors", "default")}
    batches = {protocol: spread(trainer, arguments.steps) for protocol, trainer in trainers.items()}
    seconds = dict.fromkeys(trainers, 0.0)
    for protocol, trainer in trainers.items():
        step(trainer, batches[protocol][0])  # the first step includes set-up
    for turn in tqdm(zip(*batches.values(), strict=True), total=len(batches["default"]), desc=task):
        for (protocol, trainer), batch in zip(trainers.items(), turn, strict=True):
            seconds[protocol] += step(trainer, batch)
    examples = len(batches["default"]) * trainers["default"].args.per_device_train_batch_size
    authors, ours = (examples / seconds[protocol] for protocol in ("authors", "default"))
    precision = trainers["default"].args.precision
    return f"| {task} | {precision} | {authors:.1f} | {ours:.1f} | {ours / authors:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, help="folder of the official TSV files")
    parser.add_argument("--tasks", nargs="+", default=["rte", "mrpc", "cola"])
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--steps", type=int, help="default: a whole epoch, some 20 minutes on 2 cores")
    arguments = parser.parse_args()
    quiet_libraries()
    logging.set_verbosity_error()
    rows = ["| task | precision | authors' way, examples/s | the grid, examples/s | ratio |", "|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        rows += [measure(task, arguments, folder) for task in arguments.tasks]
    print("\n".join(rows))


if __name__ == "__main__":
    main()
