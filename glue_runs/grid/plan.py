"""What a grid is told, and which runs that makes."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from ..errors import InputError
from ..finetune.arguments import EXCLUDED_FROM_RUN_ID, changed_settings, given_settings
from ..finetune.parser import Parser
from ..finetune.precision import PRECISIONS, choose_precision
from ..finetune.record import COMPARE_BY, HYPERPARAMETERS
from ..tasks.glue import TASKS, get_task

ACTIVATIONS = {
    "hidden_states": None,
    "feed_forward": r".*\.layer\.\d+\.output\.dense|.*\.pooler",
}
"""Names for what the penalty is laid on: the hidden states; or, as in the authors' code, the output of each
`BertOutput.dense` and the pooled output. Anything else is taken for an `lbe_target_modules` of its own."""

PROTOCOLS = {
    "default": [],
    "authors": [
        *("--pad_to_max_length", "true", "--lbe_ignore_padding", "false"),
        *("--train_sampling_strategy", "random", "--precision", "fp32"),
        *("--dataloader_drop_last", "true", "--validation_rounding", "down"),
    ],
}
"""Arguments of a run that a protocol fixes; `authors` also splits the examples by the run's seed."""

DEMO = [
    *("--tasks", "demo_rte", "demo_mrpc", "demo_cola", "--models", "minilm", "--output_dir", "runs/demo"),
    *("--learning_rates", "5e-5", "1e-4", "2e-4", "--seeds", "41", "42", "--activations", "feed_forward"),
    *("--lbe_alphas", "0.5", "--lbe_betas", "0.05"),
    *("--num_train_epochs", "2", "--per_device_train_batch_size", "16", "--save_strategy", "no"),
]
"""Arguments that `--demo` stands for; others may be added, or given anew."""

_SET_BY_THE_GRID = {
    "task_name": "is swept by the grid: use --tasks",
    "model_name_or_path": "is swept by the grid: use --models",
    "learning_rate": "is swept by the grid: use --learning_rates",
    "seed": "is swept by the grid: use --seeds",
    "lbe_alpha": "is swept by the grid: use --lbe_alphas",
    "lbe_beta": "is swept by the grid: use --lbe_betas",
    "lbe_target_modules": "is swept by the grid: use --activations",
    "hub_model_id": "differs from task to task: use --hub_model_id_prefix",
    "bf16": "is a precision: use --precision bf16",
    "fp16": "is a precision: use --precision fp16",
    "resume_from_checkpoint": "is not needed: each run resumes from its own last checkpoint",
}
"""Arguments of `finetune` that cannot be fixed for all runs, and why."""


@dataclass
class GridArguments:
    """The swept values, and how the grid goes about them. Every other argument of `finetune` is fixed for all runs."""

    output_dir: str = field(default="runs/grid", metadata={"help": "Folder of the grid; the same one resumes it."})
    tasks: list[str] = field(
        default_factory=lambda: ["rte", "mrpc", "cola"], metadata={"help": f"Any of {', '.join(TASKS)}."}
    )
    models: list[str] = field(
        default_factory=lambda: ["google-bert/bert-base-uncased"],
        metadata={"help": "Names on the Hub or local paths; 'minilm' is the encoder of the [demo] extra."},
    )
    learning_rates: list[float] = field(
        default_factory=lambda: [1e-5, 3e-5, 5e-5], metadata={"help": "Peak learning rates."}
    )
    seeds: list[int] = field(
        default_factory=lambda: [41, 42, 43, 44, 45], metadata={"help": "Of the head, the batches and dropout."}
    )
    lbe_alphas: list[float] = field(default_factory=lambda: [0.2, 0.3, 0.5, 0.8], metadata={"help": "In nats."})
    lbe_betas: list[float] = field(
        default_factory=lambda: [0.005, 0.01, 0.05],
        metadata={"help": "The baseline, beta 0, always runs, once for each task, model, learning rate and seed."},
    )
    activations: list[str] | None = field(
        default=None,
        metadata={
            "help": "What is regularized: hidden_states (default), feed_forward (default of the authors' protocol), "
            "or regular expressions of module names."
        },
    )
    protocol: str = field(
        default="default",
        metadata={
            "help": "authors: as their code does. Examples padded to 128 tokens and padding counted, feed-forward "
            "activations, random batches, fp32; examples split by the run's seed, int(0.2 n) of them for validation; "
            "the last incomplete batch dropped in training and in evaluation. What still differs: their targets are "
            "inside the norm that gradients are clipped by. Single arguments override it.",
            "choices": list(PROTOCOLS),
        },
    )
    precision: str | None = field(
        default=None, metadata={"help": f"One of {', '.join(PRECISIONS)}; default: auto.", "choices": PRECISIONS}
    )
    keep_models: str = field(
        default="best",
        metadata={
            "help": "Which models of finished runs to keep; best: one for each task, model and method.",
            "choices": ["none", "best", "all"],
        },
    )
    push_to_hub: bool = field(
        default=False,
        metadata={
            "help": "Push the chosen run of each task when all of its runs are done: of the methods with LBE the "
            "setting with the best mean validation score, and of its seeds the best. Its model is kept, too."
        },
    )
    hub_model_id_prefix: str | None = field(
        default=None, metadata={"help": "Repositories are named me/prefix-task, for example me/bert-base-lbe-rte."}
    )
    hub_token: str | None = field(
        default=None, metadata={"help": "Token to push with. Default: HF_TOKEN, or that of `hf auth login`."}
    )
    engine: str = field(
        default="local",
        metadata={
            "help": "local: on this machine, several runs at once on a CPU; ray: also on several machines.",
            "choices": ["local", "ray"],
        },
    )
    workers: str = field(
        default="auto",
        metadata={
            "help": "Local: how many runs at once; 1: in this process. auto: on a CPU as many as it has cores, or "
            "--cpus_per_run of them, and memory for; on a GPU 1."
        },
    )
    cpus_per_run: int | None = field(
        default=None,
        metadata={"help": "CPUs of a run, and its threads. Default: its share of them; with ray 1."},
    )
    gpus_per_run: float | None = field(
        default=None,
        metadata={"help": "Ray: GPUs of a run; 0.25 packs four of them on one. Default: 1 if there is one."},
    )
    ray_address: str | None = field(
        default=None,
        metadata={"help": "Ray: cluster to join, as head:6379 or auto. Default: Ray is started on this machine."},
    )
    max_retries: int = field(default=3, metadata={"help": "How often a run whose worker died resumes in another one."})
    demo: bool = field(
        default=False,
        metadata={
            "help": "Three small tasks of generated sentences and the encoder 'minilm': needs no data and no Hub."
        },
    )
    dry_run: bool = field(default=False, metadata={"help": "List the runs and how far they are, and stop."})

    def repository(self, task: str) -> str:
        """Where on the Hub the chosen run of a task goes."""
        return f"{self.hub_model_id_prefix}-{task}"

    @property
    def measured(self) -> str:
        """The activations whose entropy the baseline logs: the first ones that are regularized."""
        return self.activations[0] if self.activations else "hidden_states"


@dataclass(frozen=True)
class Run:
    """One run, which is its settings: `name` is readable, and unique to what it computes."""

    task: str
    model: str
    learning_rate: float
    seed: int
    activations: str | None  # None: the baseline
    alpha: float | None
    beta: float
    protocol: str
    fixed: tuple[str, ...] = ()
    measured: str = "hidden_states"
    """Activations whose entropy the baseline logs, which changes nothing of what it computes."""

    @property
    def method(self) -> str:
        """What the runs are compared by: the activations, and what is fixed of LBE."""
        activations = "baseline" if self.activations is None else f"LBE on {self.activations}"
        return ", ".join([activations, *self._what_is_fixed(of_lbe=True)])

    @property
    def fixed_settings(self) -> str:
        """What else is fixed, as in `max_length=64, precision=bf16`: only runs that share it can be compared."""
        return ", ".join(self._what_is_fixed(of_lbe=False))

    def _what_is_fixed(self, of_lbe: bool) -> list[str]:
        settings, without_fixed = self.settings, replace(self, fixed=()).settings
        names = sorted(settings.keys() | without_fixed.keys())
        changed = [name for name in names if settings.get(name) != without_fixed.get(name)]
        return [f"{name}={settings.get(name, 'default')}" for name in changed if name.startswith("lbe_") == of_lbe]

    @property
    def description(self) -> dict[str, Any]:
        """What is known of the run before it is done."""
        return {name: getattr(self, name) for name in (*COMPARE_BY, "method", *HYPERPARAMETERS, "seed", "settings")}

    def argv(self) -> list[str]:
        """Arguments for `finetune`."""
        activations = self.activations or self.measured
        modules = ACTIVATIONS.get(activations, activations)
        split = ["--split_seed", str(self.seed)] if self.protocol == "authors" else []
        return [
            *("--task_name", self.task, "--model_name_or_path", self.model),
            *("--learning_rate", repr(self.learning_rate), "--seed", str(self.seed), "--lbe_beta", repr(self.beta)),
            *([] if self.alpha is None else ["--lbe_alpha", repr(self.alpha)]),
            *([] if modules is None else ["--lbe_target_modules", modules]),
            *("--lbe_log_entropy", "true", "--logging_steps", "0.05"),
            *PROTOCOLS[self.protocol],
            *split,
            *self.fixed,
        ]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What defines the run: the settings that differ from their defaults and change what is computed."""
        changed = changed_settings(self.argv())
        baseline = self.activations is None
        defining = {
            name: value
            for name, value in changed.items()
            if not EXCLUDED_FROM_RUN_ID.fullmatch(name) and not (baseline and name.startswith("lbe_"))
        }
        swept = {"task_name": self.task, "model_name_or_path": self.model, "seed": self.seed}
        return {**defining, **swept, "learning_rate": self.learning_rate, "lbe_beta": self.beta}

    @cached_property
    def name(self) -> str:
        """Folder name: what is swept in words, and a hash over all that defines the run."""
        digest = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:8]
        method = "baseline"
        if self.activations is not None:
            kind = self.activations if self.activations in ACTIVATIONS else "modules"
            method = f"{kind}-a{self.alpha:g}-b{self.beta:g}"
        model = re.sub(r"[^\w.-]+", "_", self.model.rstrip("/").split("/")[-1])
        return f"{self.task}-{model}-lr{self.learning_rate:g}-seed{self.seed}-{method}-{digest}"


_EXAMPLES = """Fine-tunes an encoder over a grid of learning rates, seeds and LBE settings, and reports on it.

examples:
  python -m glue_runs.grid --demo
  python -m glue_runs.grid --tasks rte --data_dir path/to/glue --learning_rates 3e-5 --seeds 1 2 3 --lbe_betas 0.01
  python -m glue_runs.grid --tasks cola --models minilm --max_length 64 --output_dir runs/minilm --dry_run

Every other argument of `python -m glue_runs.finetune`, as --data_dir and --max_length above, holds for all runs: its
--help and --help_training list them.
"""

_SWEPT_VALUES = ["tasks", "models", "learning_rates", "seeds", "lbe_alphas", "lbe_betas", "activations"]
_FOR_ALL_RUNS = ["protocol", "precision"]
_PUSHED = ["push_to_hub", "hub_model_id_prefix", "hub_token"]
_OTHERS = {each.name for each in fields(GridArguments)} - {*_SWEPT_VALUES, *_FOR_ALL_RUNS, *_PUSHED}

_ARGUMENT_GROUPS = {
    "swept values": _SWEPT_VALUES,
    "for all runs": _FOR_ALL_RUNS,
    "how the grid is worked on": _OTHERS,
    "push to the Hub": _PUSHED,
}


def parse_grid(argv: list[str]) -> tuple[GridArguments, list[str]]:
    """The grid's own arguments, checked, and those that are fixed for all runs; prints the precision it chose.

    Raises:
        InputError: the grid is empty or a swept value is none.
    """
    grid, fixed = _read_arguments(argv)
    _check_arguments(grid, fixed)
    _choose_what_was_left_open(grid, fixed)
    precision = [] if grid.precision is None else ["--precision", grid.precision]
    return grid, [*precision, *fixed]


def _read_arguments(argv: list[str]) -> tuple[GridArguments, list[str]]:
    program = "python -m glue_runs.grid"
    parser = Parser(
        GridArguments, groups=_ARGUMENT_GROUPS, prog=program, usage=f"{program} ARGUMENTS", description=_EXAMPLES
    )
    values, fixed = parser.parse_known_args(argv)
    if values.demo:
        values, fixed = parser.parse_known_args([*DEMO, *argv])
    return parser.construct(GridArguments, vars(values)), fixed


def _check_arguments(grid: GridArguments, fixed: list[str]) -> None:
    for name in given_settings(fixed):
        if name in _SET_BY_THE_GRID:
            raise InputError(f"--{name} {_SET_BY_THE_GRID[name]}.")
    tasks = [get_task(name).name for name in grid.tasks]
    if grid.push_to_hub:
        if grid.hub_model_id_prefix is None or len(grid.models) > 1:
            raise InputError(
                "--push_to_hub pushes one model a task: give --hub_model_id_prefix me/name, and one of --models."
            )
        for task in tasks:
            validate_repo_id(grid.repository(task))
    for name, values in (("lbe_alphas", grid.lbe_alphas), ("lbe_betas", grid.lbe_betas), ("seeds", grid.seeds)):
        for value in values:
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"--{name} must be zero or positive, not {value:g}.")
    for rate in grid.learning_rates:
        if not (math.isfinite(rate) and rate > 0):
            raise InputError(f"--learning_rates must be positive, not {rate:g}.")
    if grid.workers != "auto" and not (grid.workers.isdecimal() and int(grid.workers) >= 1):
        raise InputError(f"--workers must be auto or at least 1, not {grid.workers}.")
    if grid.cpus_per_run is not None and grid.cpus_per_run < 1:
        raise InputError(f"--cpus_per_run must be at least 1, not {grid.cpus_per_run}.")
    if grid.gpus_per_run is not None and not 0 <= grid.gpus_per_run <= 1:
        raise InputError(f"--gpus_per_run must lie between 0 and 1, not {grid.gpus_per_run:g}: a run has one device.")
    if grid.max_retries < 0:
        raise InputError(f"--max_retries must be zero or positive, not {grid.max_retries}.")


def _choose_what_was_left_open(grid: GridArguments, fixed: list[str]) -> None:
    """Official names of the tasks, and the activations and the precision that follow from the protocol."""
    grid.tasks = [get_task(name).name for name in grid.tasks]
    if grid.activations is None:
        grid.activations = ["feed_forward" if grid.protocol == "authors" else "hidden_states"]
    if grid.precision is None and grid.protocol != "authors":
        grid.precision = "auto"
    if grid.precision == "auto":
        grid.precision, reason = choose_precision(use_cpu=given_settings(fixed).get("use_cpu", False))
        print(f"Precision: {grid.precision}, because {reason}.")


def plan_runs(grid: GridArguments, fixed: list[str]) -> list[Run]:
    """The runs of a grid, each once, in an order in which what is done first can be compared: task, model, seed."""
    runs: dict[str, Run] = {}
    for task, model, seed, rate in itertools.product(grid.tasks, grid.models, grid.seeds, grid.learning_rates):
        common: dict[str, Any] = {"task": task, "model": model, "learning_rate": rate, "seed": seed}
        common |= {"protocol": grid.protocol, "fixed": tuple(fixed), "measured": grid.measured}
        methods: list[tuple[str | None, float | None, float]] = [(None, None, 0.0)]  # the baseline
        methods += itertools.product(grid.activations or [], grid.lbe_alphas, [b for b in grid.lbe_betas if b > 0])
        for activations, alpha, beta in methods:
            run = Run(activations=activations, alpha=alpha, beta=beta, **common)
            runs.setdefault(run.name, run)
    return list(runs.values())
