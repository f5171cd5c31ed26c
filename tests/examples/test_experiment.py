"""The command line of the examples: what is given wins over defaults that depend on it."""

from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from programs import example


@dataclass
class Settings:
    size: int = field(default=1, metadata={"help": "A number."})
    large: bool = field(default=False, metadata={"help": "A switch."})
    rates: list[float] = field(default_factory=lambda: [0.5], metadata={"help": "Some numbers."})


def defaults(given: Namespace) -> dict[str, Any]:
    return {"size": 100, "rates": [0.1, 0.2]} if given.large else {}


@pytest.fixture(scope="module")
def experiment() -> ModuleType:
    return example("experiment")


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], Settings()),
        (["--large"], Settings(100, True, [0.1, 0.2])),
        (["--size", "1", "--large"], Settings(1, True, [0.1, 0.2])),  # also where it is what the class has
        (["--large", "--rates", "0.7"], Settings(100, True, [0.7])),
    ],
)
def test_what_is_given_wins(experiment: ModuleType, argv: list[str], expected: Settings) -> None:
    assert experiment.parse(Settings, defaults, argv) == expected


def test_help_has_the_defaults_that_hold(experiment: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        experiment.parse(Settings, defaults, ["--large", "--help"])
    assert caught.value.code == 0
    assert "(default: 100)" in capsys.readouterr().out


def test_unknown_arguments_are_refused(experiment: ModuleType) -> None:
    with pytest.raises(ValueError, match="--sise"):
        experiment.parse(Settings, defaults, ["--sise", "3"])


@pytest.mark.parametrize("name", ["plain_networks", "resnet", "autoencoder"])
def test_a_seed_that_would_be_ignored_is_refused(name: str) -> None:
    with pytest.raises(SystemExit, match="give --seeds instead of --seed"):
        example(name).main(["--seed", "1"])


@pytest.mark.parametrize("name", ["plain_networks", "resnet"])
@pytest.mark.parametrize("argv", ["--eval_strategy steps", "--logging_strategy no", "--lbe_log_entropy false"])
def test_a_log_that_the_figures_could_not_show_is_refused(name: str, argv: str) -> None:
    with pytest.raises(SystemExit, match="leave out --logging_strategy, --eval_strategy and --lbe_log_entropy"):
        example(name).main(argv.split())


@pytest.mark.parametrize("options", [[], ["--disable_tqdm", "true"]])
def test_no_line_for_each_epoch(
    experiment: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    networks = example("plain_networks")
    arguments = "--depth 2 --width 8 --num_train_epochs 3 --lbe_beta 0 --use_cpu".split()
    networks.main([*arguments, *options, "--output_dir", str(tmp_path)])
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 3  # the table
    assert ("accuracy=" in printed.err) == (not options)
