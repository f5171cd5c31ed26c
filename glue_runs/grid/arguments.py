"""The arguments of a grid."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from ..errors import InputError
from ..finetune.arguments import given_settings
from ..finetune.checks import is_number
from ..finetune.parser import Parser
from ..finetune.precision import PRECISIONS, choose_precision
from ..tasks.glue import TASKS, get_task

ACTIVATIONS = {
    "hidden_states": None,
    "feed_forward": r".*\.layer\.\d+\.output\.dense|.*\.pooler",
}
"""Names of what the penalty is applied to: the hidden states; or, as in the authors' code, the output of each
`BertOutput.dense` and the pooled output. Anything else is used as `lbe_target_modules`."""

PROTOCOLS = {
    "default": [],
    "authors": [
        *("--pad_to_max_length", "true", "--lbe_ignore_padding", "false"),
        *("--train_sampling_strategy", "random", "--precision", "fp32"),
        *("--dataloader_drop_last", "true", "--per_device_eval_batch_size", "32"),
        *("--validation_rounding", "down"),
    ],
}
"""Arguments of a run that a protocol fixes; `authors` also splits the examples by the seed of the run."""

DEMO = [
    *("--tasks", "demo_rte", "demo_mrpc", "demo_cola", "--models", "minilm", "--output_dir", "runs/demo"),
    *("--learning_rates", "5e-5", "1e-4", "2e-4", "--seeds", "41", "42", "--activations", "feed_forward"),
    *("--lbe_alphas", "0.5", "--lbe_betas", "0.05"),
    *("--num_train_epochs", "2", "--per_device_train_batch_size", "16", "--save_strategy", "no"),
]
"""Arguments that `--demo` stands for; others may be added, and override them."""

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
    "load_best_model_at_end": "makes a run depend on when it saves, which is not part of its identity: leave it out",
    "auto_find_batch_size": "makes a run depend on the free memory: use --per_device_train_batch_size",
    "resume_from_checkpoint": "is not needed: each run resumes from its own last checkpoint",
}
"""Arguments of `finetune` that cannot be fixed for all runs, with the reason and the remedy."""


@dataclass
class GridArguments:
    """The swept values, and how the grid is run. Every other argument of `finetune` is fixed for all runs."""

    output_dir: str = field(
        default="runs/grid", metadata={"help": "Folder of the grid; giving the same folder again resumes it."}
    )
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
        default_factory=lambda: [41, 42, 43, 44, 45], metadata={"help": "Seeds of the head, the batches and dropout."}
    )
    lbe_alphas: list[float] = field(
        default_factory=lambda: [0.2, 0.3, 0.5, 0.8], metadata={"help": "Initial targets, in nats."}
    )
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
            "help": "authors: as in their code. Examples are padded to 128 tokens and padding counts; feed-forward "
            "activations, random batches, fp32; examples are split by the seed of the run, int(0.2 n) of them for "
            "validation; incomplete last batches of 32 are dropped in training and evaluation. Two differences "
            "remain: in their code, the norm for gradient clipping includes the targets, and a seed gives other "
            "random numbers. Other arguments override the protocol.",
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
            "help": "Push the chosen run of each task when all of its runs are done: the best seed of the LBE setting "
            "with the best mean validation score. Its model is also kept."
        },
    )
    hub_model_id_prefix: str | None = field(
        default=None, metadata={"help": "Repositories are named me/prefix-task, for example me/bert-base-lbe-rte."}
    )
    hub_token: str | None = field(
        default=None, metadata={"help": "Token to push with. Default: HF_TOKEN, or the one of `hf auth login`."}
    )
    engine: str = field(
        default="local",
        metadata={
            "help": "local: on this machine, several runs at once; ray: also on several machines.",
            "choices": ["local", "ray"],
        },
    )
    workers: str = field(
        default="auto",
        metadata={
            "help": "Local: how many runs at once. auto: one on each GPU; on a CPU as many as its cores (divided by "
            "--cpus_per_run), its memory and the number of remaining runs allow."
        },
    )
    cpus_per_run: int | None = field(
        default=None,
        metadata={"help": "CPUs per run, and its number of threads. Default: an equal share; with ray 1."},
    )
    gpus_per_run: float | None = field(
        default=None,
        metadata={"help": "Ray: GPUs per run; 0.25 puts four runs on one. Default: 1 if there is one."},
    )
    ray_address: str | None = field(
        default=None,
        metadata={"help": "Ray: cluster to join, as head:6379 or auto. Default: start Ray on this machine."},
    )
    max_retries: int = field(
        default=3, metadata={"help": "How often a run is resumed in another worker after its worker died."}
    )
    demo: bool = field(
        default=False,
        metadata={
            "help": "Three small tasks of generated sentences with the encoder 'minilm': needs no data and no Hub."
        },
    )
    dry_run: bool = field(default=False, metadata={"help": "List the runs and their states, and stop."})

    def repository(self, task: str) -> str:
        """Repository on the Hub of the chosen run of a task."""
        return f"{self.hub_model_id_prefix}-{task}"

    @property
    def measured(self) -> str:
        """The activations whose entropy the baseline logs: the first of the regularized ones."""
        return self.activations[0] if self.activations else "hidden_states"


_EXAMPLES = """Fine-tunes an encoder over a grid of learning rates, seeds and LBE settings, and reports on it.

examples:
  python -m glue_runs.grid --demo
  python -m glue_runs.grid --tasks rte --data_dir path/to/glue --learning_rates 3e-5 --seeds 1 2 3 --lbe_betas 0.01
  python -m glue_runs.grid --tasks cola --models minilm --max_length 64 --output_dir runs/minilm --dry_run

Every other argument of `python -m glue_runs.finetune`, as --data_dir and --max_length above, applies to all runs.
`python -m glue_runs.finetune --help_training` lists them.
"""

_SWEPT_VALUES = ["tasks", "models", "learning_rates", "seeds", "lbe_alphas", "lbe_betas", "activations"]
_FOR_ALL_RUNS = ["protocol", "precision"]
_PUSHED = ["push_to_hub", "hub_model_id_prefix", "hub_token"]
_OTHERS = {each.name for each in fields(GridArguments)} - {*_SWEPT_VALUES, *_FOR_ALL_RUNS, *_PUSHED}

_ARGUMENT_GROUPS = {
    "swept values": _SWEPT_VALUES,
    "for all runs": _FOR_ALL_RUNS,
    "how the grid is run": _OTHERS,
    "push to the Hub": _PUSHED,
}


_MOST_CPUS = 1024


def parse_grid(argv: list[str]) -> tuple[GridArguments, list[str]]:
    """The arguments of the grid, checked, and those that are fixed for all runs; prints the precision it chooses.

    Raises:
        InputError: a value cannot be used, or an argument that the grid sweeps is fixed.
    """
    grid, fixed = _read_arguments(argv)
    _check_arguments(grid, fixed)
    _fill_in_defaults(grid, fixed)
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
                "--push_to_hub pushes one model per task: give --hub_model_id_prefix me/name, and one of --models."
            )
        for task in tasks:
            validate_repo_id(grid.repository(task))
    for name, values in (("lbe_alphas", grid.lbe_alphas), ("lbe_betas", grid.lbe_betas), ("seeds", grid.seeds)):
        for value in values:
            if not (is_number(value) and value >= 0):
                raise InputError(f"--{name} must be zero or positive, not {value}.")
    for rate in grid.learning_rates:
        if not (is_number(rate) and rate > 0):
            raise InputError(f"--learning_rates must be positive, not {rate}.")
    if grid.workers != "auto" and not (grid.workers.isdecimal() and int(grid.workers) >= 1):
        raise InputError(f"--workers must be auto or at least 1, not {grid.workers}.")
    if grid.cpus_per_run is not None and not 1 <= grid.cpus_per_run <= _MOST_CPUS:
        raise InputError(f"--cpus_per_run must be at least 1 and at most {_MOST_CPUS}, not {grid.cpus_per_run}.")
    if grid.gpus_per_run is not None and not 0 <= grid.gpus_per_run <= 1:
        raise InputError(f"--gpus_per_run must lie between 0 and 1, not {grid.gpus_per_run}: a run has one device.")
    if grid.engine != "ray" and (grid.ray_address is not None or grid.gpus_per_run is not None):
        raise InputError("--ray_address and --gpus_per_run are for Ray: add --engine ray, or leave them out.")
    if grid.max_retries < 0:
        raise InputError(f"--max_retries must be zero or positive, not {grid.max_retries}.")


def _fill_in_defaults(grid: GridArguments, fixed: list[str]) -> None:
    """Set the official names of the tasks, and the activations and the precision that follow from the protocol."""
    grid.tasks = [get_task(name).name for name in grid.tasks]
    if grid.activations is None:
        grid.activations = ["feed_forward" if grid.protocol == "authors" else "hidden_states"]
    if grid.precision is None and grid.protocol != "authors":
        grid.precision = "auto"
    if grid.precision == "auto":
        grid.precision, reason = choose_precision(use_cpu=given_settings(fixed).get("use_cpu", False))
        print(f"Precision: {grid.precision}, because {reason}.")
