"""Which checkpoints a run may be resumed from."""

from pathlib import Path

import pytest
from transformers import TrainerState

from glue_runs.finetune.checkpoints import checkpoints, is_complete, last_checkpoint

FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "lbe_targets.safetensors")


def make(folder: Path) -> Path:
    folder.mkdir()
    for name in FILES:
        (folder / name).touch()
    TrainerState(global_step=int(folder.name.split("-")[1])).save_to_json(str(folder / "trainer_state.json"))
    return folder


def test_newest_is_that_of_the_last_step(tmp_path: Path) -> None:
    made = [make(tmp_path / f"checkpoint-{step}") for step in (8, 16, 120)]
    for other in ("checkpoint-old", "_checkpoint-300", "logs"):
        (tmp_path / other).mkdir()
    (tmp_path / "checkpoint-200").touch()
    (tmp_path / "checkpoint-400").symlink_to(made[0])
    assert checkpoints(tmp_path) == made[::-1]
    assert last_checkpoint(tmp_path, 0.0) == str(made[2])
    (made[2] / "optimizer.pt").unlink()
    assert last_checkpoint(tmp_path, 0.0) == str(made[1])
    assert last_checkpoint(tmp_path / "checkpoint-old", 0.0) is None


@pytest.mark.parametrize("name", [*FILES, "trainer_state.json"])
def test_a_missing_file(tmp_path: Path, name: str) -> None:
    checkpoint = make(tmp_path / "checkpoint-4")
    assert is_complete(checkpoint, 0.05)
    (checkpoint / name).unlink()
    assert not is_complete(checkpoint, 0.05)
    assert is_complete(checkpoint, 0.0) is (name == "lbe_targets.safetensors")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"no_such_field": 1}', "\x00\x01", '{"global_step": 3}'])
def test_a_damaged_state(tmp_path: Path, content: str) -> None:
    checkpoint = make(tmp_path / "checkpoint-4")
    (checkpoint / "trainer_state.json").write_text(content)
    assert not is_complete(checkpoint, 0.0)


def test_sharded_models_and_those_of_deepspeed(tmp_path: Path) -> None:
    sharded = make(tmp_path / "checkpoint-4")
    (sharded / "model.safetensors").rename(sharded / "model-00001-of-00001.safetensors")
    (sharded / "rng_state.pth").rename(sharded / "rng_state_0.pth")
    assert is_complete(sharded, 0.0)
    deepspeed = make(tmp_path / "checkpoint-8")
    for name in ("optimizer.pt", "scheduler.pt"):
        (deepspeed / name).unlink()
    (deepspeed / "global_step8").mkdir()
    assert is_complete(deepspeed, 0.0)
