from pathlib import Path

import pytest

from glue_runs.errors import InputError
from glue_runs.finetune.arguments import changed_settings, given_settings, parse


def test_file_and_command_line_give_the_same(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("task_name: rte\nlearning_rate: 5.0e-5\nlbe_beta: 0.3\n")
    _, data, args = parse([str(file)])
    _, same_data, same = parse(["--task_name", "rte", "--learning_rate", "5e-5", "--lbe_beta", "0.3"])
    assert (data, args.learning_rate, args.lbe_beta) == (same_data, same.learning_rate, same.lbe_beta)
    assert (data.task_name, args.learning_rate, args.lbe_beta) == ("rte", 5e-5, 0.3)


def test_an_error_in_a_file_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("task_name: rte\nlbe_betta: 0.3\n")
    with pytest.raises(InputError, match=f"The arguments in {file} cannot be used: .*lbe_betta"):
        parse([str(file)])


def test_settings_that_equal_their_default_are_given_but_not_changed() -> None:
    argv = ["--task_name", "rte", "--lbe_alpha", "0.5", "--seed", "7"]
    assert given_settings(argv) == {"task_name": "rte", "lbe_alpha": 0.5, "seed": 7}
    assert changed_settings(argv) == {"task_name": "rte", "seed": 7}
