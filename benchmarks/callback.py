"""What a measurement of `InformationFlowCallback` costs, in training steps of MiniLM (32 x 128 tokens).

    python benchmarks/callback.py               # 40 steps, of which every second is measured

Steps with and without a measurement alternate in one training run. Each ratio compares a measured step with the step
before it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from typing import Any

import torch
from torch.utils.data import StackDataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from glue_runs.finetune.encoder import load_model
from glue_runs.tasks.glue import TASKS
from lbe_hf import InformationFlowCallback

ROWS, LENGTH = 32, 128


class Clock(TrainerCallback):
    """Times each step. It must be the last callback, so that it includes the work of the others."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self.start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    steps = parser.parse_args().steps
    words = torch.randint(1000, 30000, (ROWS * steps, LENGTH), generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 2, (len(words),), generator=torch.Generator().manual_seed(0))
    dataset = StackDataset(input_ids=words, attention_mask=torch.ones_like(words), labels=labels)
    arguments = TrainingArguments(
        tempfile.mkdtemp(), per_device_train_batch_size=ROWS, max_steps=steps, save_strategy="no", report_to="none"
    )
    clock = Clock()
    callbacks = [InformationFlowCallback(every_steps=2), clock]
    Trainer(load_model("minilm", TASKS["rte"]), arguments, train_dataset=dataset, callbacks=callbacks).train()
    plain, measured = clock.seconds[2::2], clock.seconds[3::2]
    ratios = [with_it / without - 1 for without, with_it in zip(plain, measured, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"a step: {statistics.median(plain):.3f} s, a measured one: {statistics.median(measured):.3f} s")
    print(f"a measurement costs {middle:.2f} steps (quartiles {low:.2f} to {high:.2f})")
    print(f"with one measurement in 500 steps, the default of logging_steps: {middle / 500:.2%} of a run's time")


if __name__ == "__main__":
    main()
