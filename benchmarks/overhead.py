"""The cost of a training step with `LBETrainer`, `Trainer`, and a straightforward implementation of the paper.

    python benchmarks/overhead.py                          # both models in float32 and bfloat16
    python benchmarks/overhead.py --models minilm --precisions fp32 --trainers Trainer LBETrainer

Times are measured in one process in which the trainers alternate, step by step, on the same batch; a ratio is the
median of the ratios of single steps. Memory is the peak of a separate process for each trainer, minus what it held
before the model was built; on a GPU it is the peak that PyTorch allocated.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import psutil
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel, Trainer
from transformers.utils import logging

from glue_runs.finetune.encoder import load_model
from glue_runs.finetune.record import peak_memory_mib
from glue_runs.tasks.glue import TASKS
from lbe_hf import LBETrainer, LBETrainingArguments

ROWS, LENGTH = 32, 128


class PlainTrainer(Trainer):
    """The definition, written directly: `torch.std` of each layer's flattened hidden states."""

    alpha = 0.5

    def compute_loss(self, model: Any, inputs: dict[str, Any], **kwargs: Any) -> Tensor:
        loss, outputs = super().compute_loss(
            model, {**inputs, "output_hidden_states": True}, return_outputs=True, **kwargs
        )
        penalty = torch.zeros((), device=loss.device)
        for state in outputs.hidden_states:
            std = torch.std(state.flatten(1), dim=0)
            entropy = torch.mean(0.5 * torch.log(math.pi * math.e * std**2 + 1))
            penalty = penalty + self.args.lbe_beta * (entropy - self.alpha) ** 2 / len(outputs.hidden_states)
        return loss * (1 + penalty)


TRAINERS: dict[str, type[Trainer]] = {"Trainer": Trainer, "LBETrainer": LBETrainer, "torch.std": PlainTrainer}


def build(model: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return load_model("minilm", TASKS["rte"]) if model == "minilm" else BertForSequenceClassification(BertConfig())


def stepper(kind: str, model: str, precision: str) -> Callable[[], None]:
    """A function that makes one training step as `Trainer.train` does, always on the same batch."""
    arguments = LBETrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=ROWS,
        bf16=precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
    )
    trainer = TRAINERS[kind](build(model), args=arguments)
    trainer.create_optimizer_and_scheduler(num_training_steps=1000)
    wrapped, optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
    trainer.current_gradient_accumulation_steps = 1
    generator = torch.Generator().manual_seed(0)
    batch = {
        "input_ids": torch.randint(1000, 30000, (ROWS, LENGTH), generator=generator),
        "attention_mask": torch.ones(ROWS, LENGTH, dtype=torch.long),
        "labels": torch.randint(0, 2, (ROWS,), generator=generator),
    }

    def step() -> None:
        trainer.training_step(wrapped, dict(batch))
        trainer.accelerator.clip_grad_norm_(wrapped.parameters(), 1.0)
        optimizer.step()
        wrapped.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return step


def seconds(kinds: list[str], model: str, precision: str, steps: int) -> dict[str, list[float]]:
    steppers = {kind: stepper(kind, model, precision) for kind in kinds}
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for index in tqdm(range(-2, steps), desc=f"{model} {precision}"):
        first = index % len(kinds)
        for kind in kinds[first:] + kinds[:first]:
            start = time.perf_counter()
            steppers[kind]()
            if index >= 0:  # two warm-up steps
                times[kind].append(time.perf_counter() - start)
    return times


def peak_mebibytes(kind: str, model: str, precision: str) -> float:
    """Peak memory of two steps, the second with optimizer state; call it in a separate process."""
    before = psutil.Process().memory_info().rss / 2**20
    step = stepper(kind, model, precision)
    for _ in range(2):
        step()
    peak = peak_memory_mib(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if peak is None:
        raise SystemExit("error: this system does not report the peak memory")
    return peak if torch.cuda.is_available() else peak - before


def measure_peak(kind: str, model: str, precision: str) -> float:
    # With a fixed threshold, the allocator returns freed tensors, so that the peak is that of memory in use.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, __file__, "--peak", kind, "--models", model, "--precisions", precision]
    return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=["minilm", "bert-base"], default=["minilm", "bert-base"])
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--trainers", nargs="+", choices=list(TRAINERS), default=list(TRAINERS))
    parser.add_argument("--steps", type=int, default=30, help="timed steps of each trainer")
    parser.add_argument("--peak", choices=list(TRAINERS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if options.peak:
        print(peak_mebibytes(options.peak, options.models[0], options.precisions[0]))
        return
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    print(f"{ROWS} x {LENGTH} tokens, {device}, torch {torch.__version__}, {options.steps} steps each")
    print("| model | precision | trainer | s/step | time ratio (quartiles) | peak MiB | memory ratio |")
    print("|---|---|---|---|---|---|---|")
    for model in options.models:
        for precision in options.precisions:
            times = seconds(options.trainers, model, precision, options.steps)
            peaks = {kind: measure_peak(kind, model, precision) for kind in options.trainers}
            for kind in options.trainers:
                base = times[options.trainers[0]]
                low, ratio, high = statistics.quantiles([a / b for a, b in zip(times[kind], base, strict=True)], n=4)
                print(
                    f"| {model} | {precision} | {kind} | {statistics.median(times[kind]):.3f} "
                    f"| {ratio:.3f} ({low:.2f} to {high:.2f}) "
                    f"| {peaks[kind]:.0f} | {peaks[kind] / peaks[options.trainers[0]]:.3f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
