"""The surface goes through the losses of the trained network, along directions as long as its weights."""

from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import torch
from programs import example
from tiny import reference_entropy
from torch import nn

ARGUMENTS = "--depths 4 --width 16 --max_steps 30 --resolution 3 --surface_images 200 --learning_rate 3e-3 --use_cpu"


@pytest.fixture(scope="module")
def loss_surface() -> ModuleType:
    return example("loss_surface")


def test_main_draws_and_stores_all_points(loss_surface: ModuleType, tmp_path: Path) -> None:
    table = loss_surface.main([*ARGUMENTS.split(), "--output_dir", str(tmp_path)])
    assert table.groupby("network").size().to_dict() == {"Trainer, 4 layers": 9, "LBETrainer, 4 layers": 9}
    assert sorted(table["x"].unique()) == [-1, 0, 1]
    without, with_penalty = (table[table["network"].str.startswith(name)] for name in ("Trainer", "LBETrainer"))
    assert (without["loss"] == without["task_loss"]).all()
    assert (with_penalty["loss"] > with_penalty["task_loss"]).all()
    center = without[(without["x"] == 0) & (without["y"] == 0)]["task_loss"].item()
    assert center < without["task_loss"].median()  # it was trained
    assert (tmp_path / "loss_surface.png").is_file()
    stored = pd.read_csv(tmp_path / "loss_surface.csv")
    pd.testing.assert_frame_equal(stored, table, check_exact=False)


def test_the_loss_is_the_one_that_is_trained_on(loss_surface: ModuleType, tmp_path: Path) -> None:
    """Also in the additive form, and where the last batch is of one image, which has no entropy."""
    arguments = [*ARGUMENTS.split(), "--output_dir", str(tmp_path), "--lbe_form", "additive", "--lbe_beta", "0.5"]
    args = loss_surface.parse(loss_surface.Arguments, loss_surface.defaults, arguments)
    images = loss_surface.standardize(loss_surface.load_images(args)).train
    trainer = loss_surface.train(args, 4, 0.5, images)
    size = args.train_batch_size
    whole, one_more = (loss_surface.Split(images.images[:count], images.labels[:count]) for count in (size, size + 1))
    task_loss, loss = loss_surface.losses(trainer, whole)
    assert loss_surface.losses(trainer, one_more) == (task_loss, loss)
    with torch.no_grad():
        hidden, entropies = whole.images.flatten(1), []
        for layer in trainer.model.hidden:
            hidden = layer(hidden)
            entropies.append(reference_entropy(hidden[:, None]))
    squares = [(h - t) ** 2 for h, t in zip(entropies[1:-1], trainer.lbe.target.tolist(), strict=True)]
    assert loss - task_loss == pytest.approx(float(0.5 * sum(squares) / 2), rel=1e-3)


def test_losses_at_and_around_the_weights(loss_surface: ModuleType, tmp_path: Path) -> None:
    """Against the formula in float64, on images that are one batch; the weights are put back."""
    arguments = [*ARGUMENTS.split(), "--output_dir", str(tmp_path)]
    args = loss_surface.parse(loss_surface.Arguments, loss_surface.defaults, arguments)
    images = loss_surface.standardize(loss_surface.load_images(args)).train
    trainer = loss_surface.train(args, 4, 0.5, images)
    shown = loss_surface.Split(images.images[:200], images.labels[:200])
    before = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    points = loss_surface.surface(trainer, shown, 3).set_index(["x", "y"])
    assert all(torch.equal(weight, before[name]) for name, weight in trainer.model.state_dict().items())
    moves = [loss_surface.direction(trainer.model, seed) for seed in (1, 2)]
    for x, y in ((0, 0), (1, -1)):
        hidden, entropies = shown.images.double().flatten(1), []
        for layer in range(4):
            name = f"hidden.{layer}.0"
            weight = before[f"{name}.weight"] + x * moves[0][f"{name}.weight"] + y * moves[1][f"{name}.weight"]
            hidden = (hidden @ weight.double().T + before[f"{name}.bias"]).relu()
            entropies.append(reference_entropy(hidden[:, None]))
        weight = before["classifier.weight"] + x * moves[0]["classifier.weight"] + y * moves[1]["classifier.weight"]
        task_loss = nn.functional.cross_entropy(hidden @ weight.double().T + before["classifier.bias"], shown.labels)
        squares = [(h - t) ** 2 for h, t in zip(entropies[1:-1], trainer.lbe.target.tolist(), strict=True)]
        penalty = 0.5 * sum(squares) / 2
        assert points.loc[(x, y), "task_loss"] == pytest.approx(task_loss.item(), rel=1e-4)
        assert points.loc[(x, y), "loss"] == pytest.approx((task_loss * (1 + penalty)).item(), rel=1e-4)


def test_directions_are_as_long_as_the_weights(loss_surface: ModuleType) -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
    first, again, second = (loss_surface.direction(model, seed) for seed in (1, 1, 2))
    assert set(first) == {"0.weight", "1.weight"}
    torch.testing.assert_close(first["0.weight"].norm(dim=1), model[0].weight.detach().norm(dim=1))
    assert torch.equal(first["1.weight"], again["1.weight"])
    assert not torch.allclose(first["1.weight"], second["1.weight"])


def test_paper(loss_surface: ModuleType) -> None:
    """DESIGN.md has the table of what the authors' script sets."""
    args = loss_surface.parse(loss_surface.Arguments, loss_surface.defaults, ["--paper"])
    assert (args.data, args.depths, args.max_steps, args.resolution) == ("mnist", [15, 30], 2000, 50)
    assert (args.lbe_alpha, args.lbe_beta) == (0.5, 0.5)
