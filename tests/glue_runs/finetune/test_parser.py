import os
from pathlib import Path

import pytest

from glue_runs.errors import InputError
from glue_runs.finetune.arguments import changed_settings, given_settings, parse
from glue_runs.finetune.command import main
from glue_runs.grid.command import main as grid_main


def read(folder: Path, text: str) -> tuple[object, object, object]:
    path = folder / "run.yaml"
    path.write_text(text)
    return parse([str(path)])


def test_a_file_is_read_as_a_command_line_is(tmp_path: Path) -> None:
    text = (
        "task-name: rte\nlearning_rate: 5e-5\npad_to_max_length: 'false'\nsave_strategy: no\nlbe_layers: [1, -1]\n"
        "lbe_target_modules: [output.dense, pooler]\nlr_scheduler_kwargs: {power: 2e-1}\nreport_to: [none]\n"
    )
    _, data_args, args = read(tmp_path, text)
    assert (data_args.task_name, data_args.pad_to_max_length) == ("rte", False)
    assert (args.learning_rate, args.save_strategy) == (5e-5, "no")
    assert (args.lbe_layers, args.lbe_target_modules) == ([1, -1], ["output.dense", "pooler"])
    assert (args.lr_scheduler_kwargs, args.report_to) == ({"power": 0.2}, [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task_name: rte\nseed: 1\nseed: 2\n", "seed is given more than once"),
        ('{"task_name": "rte", "lbe_beta": 1, "lbe-beta": 2}', "lbe_beta is given more than once"),
        ("task_name: rte\nlr_scheduler_kwargs: {a: 1, a: 2}\n", "a is given more than once"),
        ("task_name: rte\nuse_cpu: perhaps\n", "argument --use_cpu"),
        ("task_name: rte\nlearning_rate: fast\n", "invalid float value: 'fast'"),
        ("task_name: rte\nseed: null\n", "seed is null: leave it out"),
        ("task_name: rte\nseed: [1, 2]\n", "seed takes one value, not a list"),
        ("task_name: rte\nlbe_layers: [--seed=4]\n", "lbe_layers must be a list of plain values"),
        ("- rte\n", "the file must map names to values"),
        ("", "the file must map names to values"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        read(tmp_path, text)
    assert str(error.value).startswith(f"The arguments in {tmp_path / 'run.yaml'} cannot be used: ")


@pytest.mark.parametrize("text", ['{\n\t"task_name": "rte",\n\t"seed": 3\n}', '{"task_name": "rte", "seed": 3,}'])
def test_json_as_programs_and_people_write_it(tmp_path: Path, text: str) -> None:
    _, data_args, args = read(tmp_path, text)
    assert (data_args.task_name, args.seed) == ("rte", 3)


def test_json_escapes_of_one_character(tmp_path: Path) -> None:
    model_args, _, _ = read(tmp_path, '{"task_name": "rte", "model_name_or_path": "my\\ud83d\\ude00"}')
    assert model_args.model_name_or_path == "my\U0001f600"


def test_a_named_pipe_is_no_file_of_arguments(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "run.yaml")
    with pytest.raises(InputError, match="is a named pipe or a device, not a file"):
        parse([str(tmp_path / "run.yaml")])


def test_every_spelling_is_the_same_setting() -> None:
    plain = ["--task_name", "rte", "--lbe_beta", "0.5", "--lbe_ignore_padding", "false"]
    dashes = ["--task-name=rte", "--lbe-beta=5e-1", "--no-lbe-ignore-padding"]
    assert changed_settings(plain) == changed_settings(dashes)
    assert given_settings(dashes[1:]) == {"lbe_beta": 0.5, "lbe_ignore_padding": False}


def test_what_is_not_utf_8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for main_of in (main, grid_main):
        with pytest.raises(SystemExit) as stop:
            main_of(["--output_dir", "out\udcff"])
        assert stop.value.code == 2
        assert capsys.readouterr().err == r"error: 'out\\udcff' is not UTF-8 text: rename it. (see --help)" + "\n"
    with pytest.raises(InputError, match="is not UTF-8 text"):
        read(tmp_path, 'task_name: rte\noutput_dir: "out\\udcff"\n')


def test_a_file_beside_the_program_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "program.args").write_text("--seed 5")
    monkeypatch.setattr("sys.argv", [str(tmp_path / "program.py")])
    assert parse(["--task_name", "rte"])[2].seed == 42


def help_of(argument: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main([argument])
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_help_lists_own_arguments_and_the_others_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    short, whole = help_of("--help", capsys), help_of("--help_training", capsys)
    assert len(short.splitlines()) < 120
    assert short.index("encoder and examples:") < short.index("regularization:") < short.index("training:")
    assert "python -m glue_runs.finetune --task_name rte" in short
    assert "--learning_rate FLOAT" in short
    assert "--adam_beta1" not in short
    assert "--adam_beta1 FLOAT" in whole
    assert "==SUPPRESS==" not in whole
