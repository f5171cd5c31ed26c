"""Which beta rescues a deep transformer and does no harm on healthy fine-tuning: PROTOCOL.md, 5.

    python results/default_beta/study.py --dry_run     # how many runs there are, and how many are missing
    python results/default_beta/study.py               # as many at once as there are cores, one thread each

Needs the extras `examples` and `demo`, and the official files of CoLA and MRPC in the folder GLUE_DATA_DIR. All raw
results are in `runs.csv`, one row per run.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import pandas as pd

from glue_runs.finetune import arguments
from glue_runs.finetune import run as finetune
from glue_runs.tasks.glue import get_task

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import runner  # noqa: E402
import training  # noqa: E402
from training import deep_bert  # noqa: E402

RUNS = HERE / "runs.csv"
BETAS = (0.05, 0.5, 2.0)
RESCUING = 2.0
"""The only one of them with which at least 12 of 15 runs of the deep transformer train."""

ALPHA = 0.5


@dataclass(frozen=True)
class Run:
    """Settings of a run: "rescue" trains 48 layers from scratch at 1e-3, "cola" and "mrpc" fine-tune MiniLM."""

    task: str
    seed: int
    beta: float

    @property
    def name(self) -> str:
        return f"{self.task}-beta{self.beta:g}-seed{self.seed}"


def plan(done: pd.DataFrame) -> Iterator[Run]:
    """All runs. Only a beta that rescues the deep transformer can be chosen, so that only that one is fine-tuned with.

    The runs of the deep transformer at beta 2 are those of the judgement of LBE in `results/tuned_rivals`.
    """
    yield from (Run("rescue", seed, beta) for seed, beta in product(range(100, 115), BETAS) if beta != RESCUING)
    yield from (
        Run(task, seed, beta) for seed, task, beta in product(range(41, 49), ("cola", "mrpc"), (0.0, RESCUING))
    )


def execute(run: Run) -> pd.DataFrame:
    """Train, and return one row: `score` is the accuracy over the last 100 steps, or the main metric of the task."""
    score = rescued(run) if run.task == "rescue" else fine_tuned(run)
    return pd.DataFrame([{**asdict(run), "score": round(score, 5)}])


def rescued(run: Run) -> float:
    args = training.arguments(seed=run.seed, lbe_alpha=ALPHA, lbe_beta=run.beta)
    with redirect_stdout(None):
        trainer = deep_bert.train(args, training.sentences(args), deep_bert.network(args))
    return float(training.by_step(trainer)["accuracy"].tail(5).mean())


def fine_tuned(run: Run) -> float:
    """Fine-tune MiniLM on 80% of the training set for 5 epochs; the official validation set is the test set."""
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(None):
        settings = {
            "task_name": run.task,
            "model_name_or_path": "minilm",
            "data_dir": os.environ["GLUE_DATA_DIR"],
            "learning_rate": 5e-5,
            "lbe_alpha": ALPHA,
            "lbe_beta": run.beta,
            "seed": run.seed,
            "precision": "bf16",
            "use_cpu": "true",
            "disable_tqdm": "true",
            "save_strategy": "no",
            "output_dir": f"{folder}/run",
        }
        parsed = arguments.parse([word for name, value in settings.items() for word in (f"--{name}", str(value))])
        trainer, splits = finetune.prepare(*parsed)
        task = get_task(run.task)
        return float(finetune.run(trainer, splits, task)["metrics"]["test"][task.main_metric])


if __name__ == "__main__":
    if "GLUE_DATA_DIR" not in os.environ and "--dry_run" not in sys.argv:
        sys.exit("error: set GLUE_DATA_DIR to the folder with the official files: GLUE_DATA_DIR/CoLA/train.tsv etc.")
    runner.main(__doc__, plan, execute, RUNS)
