"""What the example shows, at a size of seconds: with the penalty no layer collapses."""

from pathlib import Path

import pytest
from programs import example


def test_only_without_the_penalty_upper_layers_collapse(tmp_path: Path) -> None:
    arguments = "--depth 24 --learning_rate 2e-3 --lr_scheduler_type constant --max_steps 60 --seeds 1 --use_cpu"
    results = example("deep_bert").main([*arguments.split(), "--output_dir", str(tmp_path)])
    lowest = results.groupby("trainer")["lowest_entropy"].min()
    assert lowest["Trainer"] < 0.01
    assert lowest["LBETrainer"] > 0.4
    assert {path.name for path in tmp_path.glob("*.png")} == {"accuracy.png", "entropy.png"}


def test_fewer_steps_than_between_two_log_lines_and_label_smoothing(tmp_path: Path) -> None:
    arguments = "--depth 1 --max_steps 3 --label_smoothing_factor 0.1 --seeds 0 --use_cpu".split()
    results = example("deep_bert").main([*arguments, "--output_dir", str(tmp_path)])
    assert results["accuracy"].between(0, 1).all()


def test_the_accuracy_is_that_of_the_batches(tmp_path: Path) -> None:
    """A shallow network learns the task in a hundred steps, whatever the trainer."""
    arguments = "--depth 1 --max_steps 120 --seeds 3 --use_cpu".split()
    results = example("deep_bert").main([*arguments, "--output_dir", str(tmp_path)])
    assert results["seed"].tolist() == [3, 3]
    assert (results["accuracy"] > 0.9).all()


@pytest.mark.parametrize("argv", ["--seed 7", "--logging_strategy no"])
def test_what_would_be_ignored_is_refused(argv: str) -> None:
    with pytest.raises(SystemExit, match="give --seeds instead of --seed, and leave out --logging_strategy"):
        example("deep_bert").main(argv.split())
