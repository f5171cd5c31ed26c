"""The arguments of a grid."""

import pytest

from glue_runs.errors import InputError
from glue_runs.grid.arguments import parse_grid

SMALL = "--tasks rte --seeds 1 --learning_rates 3e-5 --lbe_alphas 0.5 --lbe_betas 0.01".split()


def test_the_cpu_is_used_in_every_spelling(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(
        "glue_runs.grid.arguments.choose_precision", lambda use_cpu: asked.append(use_cpu) or ("fp32", "")
    )
    for argument in ("--use_cpu", "--use-cpu=true", "--use_cpu false"):
        parse_grid([*SMALL, *argument.split()])
    assert asked == [True, True, False]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--learning_rates -0.1", "--learning_rates must be positive, not -0.1"),
        ("--learning_rates 0", "--learning_rates must be positive, not 0"),
        ("--learning_rates nan", "--learning_rates must be positive, not nan"),
        ("--lbe_betas -1", "--lbe_betas must be zero or positive, not -1"),
        ("--seeds -1", "--seeds must be zero or positive, not -1"),
        (f"--seeds -1{400 * '0'}", "--seeds must be zero or positive, not -1000"),
        (f"--cpus_per_run 1{400 * '0'}", "--cpus_per_run must be at least 1 and at most 1024, not 1000"),
        ("--load_best_model_at_end true --eval_strategy epoch", "--load_best_model_at_end makes a run depend on when"),
        ("--tasks rte sst", "There is no task 'sst'"),
        ("--learning_rate 1e-5", "--learning_rate is swept by the grid: use --learning_rates"),
        ("--workers 0", "--workers must be auto or at least 1, not 0"),
        ("--gpus_per_run 0.5", "are for Ray: add --engine ray, or leave them out"),
        ("--ray_address auto", "are for Ray: add --engine ray, or leave them out"),
        ("--workers all", "--workers must be auto or at least 1, not all"),
        ("--seed=3", "--seed is swept by the grid: use --seeds"),
        ("--learning-rate 1e-5", "--learning_rate is swept by the grid: use --learning_rates"),
        ("--max_length 64 --lbe-beta=5", "--lbe_beta is swept by the grid: use --lbe_betas"),
        ("--task-name rte", "--task_name is swept by the grid: use --tasks"),
        ("--hub-model-id me/model", "--hub_model_id differs from task to task: use --hub_model_id_prefix"),
        ("--resume-from-checkpoint last", "--resume_from_checkpoint is not needed"),
        ("--auto_find_batch_size true", "--auto_find_batch_size makes a run depend on the free memory"),
        ("--bf16", "--bf16 is a precision: use --precision bf16"),
    ],
)
def test_bad_values(arguments: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_grid(arguments.split())
