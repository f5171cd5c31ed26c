"""What the example shows, at a size of seconds, and what `--paper` sets."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from programs import example
from torch import nn

SMALL = "--depth 30 --width 64 --num_train_epochs 30 --learning_rate 2e-3 --validation_fraction 0.1 --use_cpu".split()


@pytest.fixture(scope="module")
def networks() -> ModuleType:
    return example("plain_networks")


def test_only_with_the_penalty_it_leaves_chance(networks: ModuleType, tmp_path: Path) -> None:
    results = networks.main([*SMALL, "--output_dir", str(tmp_path)])
    for column in ("validation", "test"):
        accuracy = {trainer: rows[column] for trainer, rows in results.groupby("trainer")}
        assert accuracy["Trainer"].between(0.05, 0.15).all()
        assert (accuracy["LBETrainer"] > 0.3).all()
    assert {path.name for path in tmp_path.glob("*.png")} == {"accuracy.png", "entropy.png"}


def test_only_with_the_penalty_convolutions_leave_chance(networks: ModuleType, tmp_path: Path) -> None:
    arguments = "--network cnn --depth 12 --num_train_epochs 12 --learning_rate 4e-3 --use_cpu".split()
    arguments += ["--validation_fraction", "0"]
    accuracy = networks.main([*arguments, "--output_dir", str(tmp_path)]).set_index("trainer")["test"]
    assert 0.05 < accuracy["Trainer"] < 0.15
    assert accuracy["LBETrainer"] > 0.3


def test_an_initialization_of_convolutions_is_refused_for_dense_layers(networks: ModuleType) -> None:
    with pytest.raises(SystemExit, match="add --network cnn"):
        networks.main(["--init", "default", "delta_orthogonal"])


def test_he_initialization_needs_no_penalty(networks: ModuleType, tmp_path: Path) -> None:
    arguments = "--depth 20 --width 64 --num_train_epochs 5 --use_cpu --init he --lbe_beta 0".split()
    results = networks.main([*arguments, "--output_dir", str(tmp_path)])
    assert results["trainer"].tolist() == ["Trainer"]
    assert (results["test"] > 0.3).all()


def test_rivals_are_trained_without_the_penalty(networks: ModuleType) -> None:
    arguments = "--normalizations none batch selu --init default he delta_orthogonal".split()
    methods = list(networks.methods(networks.parse(networks.Arguments, networks.defaults, arguments)))
    assert methods.count(("default", "none", 0.5)) == methods.count(("he", "none", 0.5)) == 1
    assert sum(method.beta > 0 for method in methods) == 2
    assert len(set(methods)) == len(methods) == 3 * 3 + 2


@pytest.mark.parametrize("network", ["mlp", "cnn"])
@pytest.mark.parametrize("init", ["default", "he"])
def test_normalizations(networks: ModuleType, network: str, init: str) -> None:
    """Those that normalize activations hold them at a deviation of one, before the activation function."""
    torch.manual_seed(0)
    images = 3 * torch.randn(64, 2, 8, 8) + 1
    kinds = {"batch": (nn.BatchNorm1d, nn.BatchNorm2d), "layer": (nn.LayerNorm, nn.GroupNorm)}
    for normalization in networks.NORMALIZATIONS:
        model = networks.PlainNetwork((2, 8, 8), 10, network, 4, 24, init, normalization)
        found = [module for module in model.modules() if isinstance(module, kinds.get(normalization, ()))]
        assert len(found) == (4 if normalization in kinds else 0)
        for module in found:
            module.register_forward_hook(
                lambda module, args, output: torch.testing.assert_close(
                    output.std(), torch.tensor(1.0), rtol=0.02, atol=0
                )
            )
        weights = [name for name, _ in model.named_parameters() if name.endswith("weight.original0")]
        assert len(weights) == (4 if normalization == "weight" else 0)
        assert isinstance(model.hidden[0][-1], nn.SELU if normalization == "selu" else nn.ReLU)
        assert model(images, torch.zeros(64, dtype=torch.long))["logits"].shape == (64, 10)


def test_initializations(networks: ModuleType) -> None:
    """Variances of weights: 1/3 of the fan-in's inverse by default, 2 by He, 1 by LeCun for SELU."""
    for init, normalization, gain in (("default", "none", 1 / 3), ("he", "none", 2), ("he", "selu", 1)):
        torch.manual_seed(0)
        weight = networks.PlainNetwork((1, 8, 8), 10, "mlp", 3, 256, init, normalization).hidden[1][0].weight
        assert 256 * weight.var().item() == pytest.approx(gain, rel=0.02)


def test_delta_orthogonal_convolutions_keep_the_norm_of_every_pixel(networks: ModuleType) -> None:
    model = networks.PlainNetwork((8, 6, 6), 10, "cnn", 3, 8, "delta_orthogonal")
    assert isinstance(model.hidden[0][-1], nn.Tanh)
    pixels = torch.randn(2, 8, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(model.hidden[0][0](pixels).norm(dim=1), pixels.norm(dim=1))


def test_the_last_hidden_layer_of_a_cnn_may_be_dense(networks: ModuleType) -> None:
    hidden = networks.PlainNetwork((1, 8, 8), 10, "cnn", 5, 8, dense=True).hidden
    assert len(hidden) == 5
    assert hidden(torch.randn(3, 1, 8, 8)).shape == (3, 2 * 8 * 8)


COMMON = {"data": "mnist", "lr_scheduler_type": "constant", "max_grad_norm": 0, "lbe_alpha_min": 0.2, "width": 1000}


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], {**COMMON, "depth": 50, "num_train_epochs": 100, "per_device_train_batch_size": 512,
              "learning_rate": 5e-5, "lbe_alpha": 0.3, "lbe_beta": 5e-4, "lbe_layers": list(range(1, 49))}),
        (["--depth", "500"],
         {**COMMON, "depth": 500, "num_train_epochs": 1000, "per_device_train_batch_size": 128, "learning_rate": 1e-6,
          "lbe_alpha": 2, "lbe_beta": 0.1, "lbe_layers": list(range(1, 499))}),
        (["--network", "cnn"],
         {**COMMON, "depth": 500, "width": 8, "num_train_epochs": 1000, "per_device_train_batch_size": 256,
          "learning_rate": 1e-4, "lbe_alpha": 2, "lbe_alpha_min": 2, "lbe_beta": 0.1, "lbe_layers": None}),
        (["--normalizations", "batch", "selu", "--depth", "100"],
         {**COMMON, "depth": 100, "num_train_epochs": 500, "learning_rate": 1e-5, "lbe_beta": 0}),
    ],
    ids=["mlp", "mlp-500", "cnn-500", "normalizations"],
)  # fmt: skip
def test_paper(networks: ModuleType, argv: list[str], expected: dict[str, Any]) -> None:
    """DESIGN.md has the table of what the paper and the authors' scripts set."""
    args = networks.parse(networks.Arguments, networks.defaults, ["--paper", *argv])
    assert {name: getattr(args, name) for name in expected} == expected


def test_the_papers_convolutions_train_and_the_first_is_left_out(networks: ModuleType, tmp_path: Path) -> None:
    arguments = "--paper --network cnn --data digits --depth 5 --max_steps 2 --use_cpu --init default delta_orthogonal"
    args = networks.parse(networks.Arguments, networks.defaults, [*arguments.split(), "--output_dir", str(tmp_path)])
    splits = networks.standardize(networks.load_images(args))
    assert [method.beta for method in networks.methods(args)] == [0, 0.1, 0]
    _, history = networks.train(args, list(networks.methods(args))[1], splits)
    entropies = [name for name in history[0] if name.startswith("entropy/")]
    assert len(entropies) == 4
