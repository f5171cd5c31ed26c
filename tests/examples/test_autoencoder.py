"""What the example shows, at a size of seconds, and what `--paper` sets."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from programs import example


@pytest.fixture(scope="module")
def autoencoder() -> ModuleType:
    return example("autoencoder")


def test_a_deep_one_gives_back_more_than_the_mean_image(autoencoder: ModuleType, tmp_path: Path) -> None:
    arguments = "--depths 12 --width 64 --num_train_epochs 30 --learning_rate 2e-3 --use_cpu".split()
    results = autoencoder.main([*arguments, "--output_dir", str(tmp_path)]).set_index("trainer")
    for split in ("validation", "test"):
        assert results[f"{split}_mse"]["Trainer"] > 0.072  # about that of the mean training image
        assert results[f"{split}_mse"]["LBETrainer"] < 0.071
        assert results[f"{split}_ssim"]["LBETrainer"] > results[f"{split}_ssim"]["Trainer"]
    assert (tmp_path / "reconstructions.png").is_file()


@pytest.mark.parametrize("paper", [[], ["--paper", "--data", "digits"]])
def test_the_rate_is_halved_where_the_validation_loss_stops_to_fall(
    autoencoder: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paper: list[str]
) -> None:
    """At a depth of 12 nothing is learned beyond the mean image, so that the loss soon stops to fall."""
    trainers: list[Any] = []

    class Kept(autoencoder.LBETrainer):  # type: ignore[misc, name-defined]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            trainers.append(self)

    monkeypatch.setattr(autoencoder, "LBETrainer", Kept)
    arguments = [*paper, *"--num_train_epochs 25 --width 16 --lbe_beta 0 --learning_rate 0.01 --use_cpu".split()]
    arguments += ["--depths", "12", "--logging_strategy", "epoch", "--output_dir", str(tmp_path)]
    autoencoder.main(arguments)
    (trainer,) = trainers
    losses = [line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line]
    rates = [line["learning_rate"] for line in trainer.state.log_history if "learning_rate" in line]
    assert len(losses) == 25
    assert rates[0] == 0.01
    assert set(rates) <= {0.01 / 2**halvings for halvings in range(5)}
    assert rates[-1] < 0.01
    assert (type(trainer.optimizer.optimizer) is torch.optim.Adam) == bool(paper)


def test_paper(autoencoder: ModuleType) -> None:
    """DESIGN.md has the table of what the paper and the authors' scripts set."""
    args = autoencoder.parse(autoencoder.Arguments, autoencoder.defaults, ["--paper"])
    assert (args.data, args.depths, args.width, args.latent) == ("mnist", [1, 5, 10, 25, 50], 256, 10)
    assert (args.learning_rate, args.weight_decay, args.max_grad_norm) == (1e-3, 1e-4, 0)
    assert (args.num_train_epochs, args.per_device_train_batch_size) == (50, 128)
    assert (args.lr_scheduler_type, args.lr_scheduler_kwargs["factor"]) == ("reduce_lr_on_plateau", 0.5)
    assert (args.lbe_alpha, args.lbe_alpha_min, args.lbe_beta) == (2.0, 0.5, 0.5)
    other = autoencoder.parse(autoencoder.Arguments, autoencoder.defaults, ["--paper", "--data", "fashion_mnist"])
    assert other.data == "fashion_mnist"
