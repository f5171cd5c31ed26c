"""What the example shows, at a size of seconds: 30 layers of 64."""

from pathlib import Path

from programs import example

SMALL = "--depth 30 --width 64 --num_train_epochs 30 --learning_rate 2e-3 --use_cpu".split()


def test_only_with_the_penalty_it_leaves_chance(tmp_path: Path) -> None:
    results = example("deep_mlp").main([*SMALL, "--seeds", "0", "1", "2", "--output_dir", str(tmp_path)])
    accuracy = {trainer: rows["accuracy"] for trainer, rows in results.groupby("trainer")}
    assert accuracy["Trainer"].between(0.05, 0.15).all()
    assert (accuracy["LBETrainer"] > 0.3).all()
    assert len(results) == 6
    assert {path.name for path in tmp_path.glob("*.png")} == {"accuracy.png", "entropy.png"}


def test_he_initialization_needs_no_penalty(tmp_path: Path) -> None:
    arguments = "--depth 30 --width 64 --num_train_epochs 5 --use_cpu --init he".split()
    results = example("deep_mlp").main([*arguments, "--output_dir", str(tmp_path)])
    assert results["init"].tolist() == ["he", "he"]
    assert results.set_index("trainer")["accuracy"]["Trainer"] > 0.3
