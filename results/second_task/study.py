"""Digits read as sequences, and a language model of characters, with and without LBE: PROTOCOL.md, 4.

    python results/second_task/study.py --dry_run     # how many runs there are, and how many are missing
    python results/second_task/study.py               # as many at once as there are cores, one thread each

Needs the extra `examples`. All raw results are in `runs.csv`: of digits the accuracy on the test images, of the
language model the perplexity per character on held-out text.
"""

import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pandas as pd
import torch
from torch.utils.data import StackDataset
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, set_seed

from lbe_hf import LBETrainer

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import runner  # noqa: E402
from training import arguments, deep_bert, train_on_digits  # noqa: E402

RUNS = HERE / "runs.csv"
SEEDS = {"digits": range(100, 115), "characters": range(100, 105)}
CONTEXT, LAYERS = 64, 24


@dataclass(frozen=True)
class Run:
    """Settings of a run: learning rate 1e-3, alpha 0.5; without the penalty `beta` is 0."""

    task: str
    seed: int
    beta: float

    @property
    def name(self) -> str:
        return f"{self.task}-beta{self.beta:g}-seed{self.seed}"


def plan(done: pd.DataFrame) -> Iterator[Run]:
    """All runs; those to be compared are adjacent."""
    for task, seeds in SEEDS.items():
        yield from (Run(task, seed, beta) for seed in seeds for beta in (0.0, 2.0))


def execute(run: Run) -> pd.DataFrame:
    """Train, and return one row."""
    args = arguments(seed=run.seed, max_steps=2000, lbe_alpha=0.5, lbe_beta=run.beta)
    with redirect_stdout(None):
        score, trainer = train_on_digits(args) if run.task == "digits" else characters(args)
    last = [line for line in trainer.state.log_history if "task_loss" in line][-1]
    end = {name: round(last[name], 4) for name in ("task_loss", "entropy_min", "entropy_last")}
    return pd.DataFrame([{**asdict(run), "score": round(score, 5), **end}])


def characters(args: deep_bert.Arguments) -> tuple[float, LBETrainer]:
    """Perplexity by character on the held-out text."""
    args.per_device_train_batch_size = 16
    training, held_out, vocabulary = text()
    trainer = LBETrainer(decoder(args.seed, vocabulary), args, train_dataset=training)
    trainer.train()
    return float(np.exp(trainer.evaluate(held_out)["eval_loss"])), trainer


def text() -> tuple[StackDataset, StackDataset, int]:
    """Python's own documentation, as `help` prints it, in sequences of 64 characters.

    Without the topic on all compound statements, since `with` and `while`, which repeat parts of it, are held out.

    Returns:
        The sequences to train on, those of the last tenth of the text, and the number of different characters.
    """
    words = np.array(list("\n".join(text for name, text in topics.items() if name != "compound")))
    vocabulary, indices = np.unique(words, return_inverse=True)
    sequences = torch.tensor(indices[: len(words) // CONTEXT * CONTEXT]).reshape(-1, CONTEXT)
    training, held_out = sequences.split([len(sequences) - len(sequences) // 10, len(sequences) // 10])
    return _as_dataset(training), _as_dataset(held_out), len(vocabulary)


def _as_dataset(sequences: torch.Tensor) -> StackDataset:
    return StackDataset(input_ids=sequences, labels=sequences)


def decoder(seed: int, vocabulary: int) -> PreTrainedModel:
    """GPT-1, which normalizes after each sublayer, with 24 layers of 64 features and random weights."""
    set_seed(seed)
    sizes = {"n_embd": 64, "n_layer": LAYERS, "n_head": 4, "n_positions": CONTEXT, "vocab_size": vocabulary}
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("openai-gpt", **sizes, **no_dropout))


if __name__ == "__main__":
    runner.main(__doc__, plan, execute, RUNS)
