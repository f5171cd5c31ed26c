"""What the example shows, at a size of seconds, and what `--paper` sets."""

from pathlib import Path
from types import ModuleType

import pytest
import torch
from programs import example


@pytest.fixture(scope="module")
def resnet() -> ModuleType:
    return example("resnet")


def test_it_trains_either_way_and_its_blocks_move_to_the_target(resnet: ModuleType, tmp_path: Path) -> None:
    arguments = "--blocks 1 --num_train_epochs 4 --lbe_beta 5 --use_cpu".split()
    results = resnet.main([*arguments, "--output_dir", str(tmp_path)]).set_index("trainer")
    assert (results[["validation", "test"]] > 0.5).all(axis=None)
    farthest = (results[["lowest", "highest"]] - 1).abs().max(axis=1)
    assert farthest["LBETrainer"] < farthest["Trainer"]
    hidden_states = resnet.main(
        [*arguments[:3], "1", "--use_cpu", "--activations", "hidden_states", "--output_dir", str(tmp_path)]
    )
    assert (hidden_states["highest"] > hidden_states["lowest"]).all()


def test_paper(resnet: ModuleType) -> None:
    """DESIGN.md has the table of what the paper and the authors' scripts set."""
    args = resnet.parse(resnet.Arguments, resnet.defaults, ["--paper"])
    assert (args.data, args.optim, args.optim_args) == ("cifar10", "sgd", "momentum=0.9,nesterov=true")
    assert (args.learning_rate, args.weight_decay, args.max_grad_norm) == (0.1, 1e-4, 0)
    assert (args.per_device_train_batch_size, args.num_train_epochs) == (256, 100)
    assert (args.lr_scheduler_type, args.lr_scheduler_kwargs["factor"]) == ("reduce_lr_on_plateau", 0.1)
    assert (args.lbe_alpha, args.lbe_alpha_min, args.lbe_beta) == (1.2, 1.0, 0.005)
    model = resnet.network(args, channels=3, classes=10)
    convolutions = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    shortcuts = sum(module.kernel_size == (1, 1) for module in convolutions)
    assert len(convolutions) - shortcuts + 1 == 74  # with the classifier
    assert convolutions[0].out_channels == 16
    states = model(torch.zeros(2, 3, 32, 32), output_hidden_states=True).hidden_states
    assert states[0].shape == (2, 16, 32, 32)


def test_other_optimizers_take_nothing_of_sgd(resnet: ModuleType) -> None:
    arguments = ["--optim", "adamw_torch", "--lr_scheduler_type", "linear", "--learning_rate", "1e-3"]
    args = resnet.parse(resnet.Arguments, resnet.defaults, arguments)
    assert (args.optim_args, args.lr_scheduler_kwargs, args.lbe_alpha_learning_rate) == (None, None, None)


def test_small_images_are_enlarged(resnet: ModuleType) -> None:
    assert resnet.at_least_32(torch.zeros(2, 1, 8, 8)).shape == (2, 1, 32, 32)
    assert resnet.at_least_32(torch.zeros(2, 3, 64, 64)).shape == (2, 3, 64, 64)
