"""What `GlueTrainer` reports of pushes that fail, and keeps out of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_client import run_script, token_leaks
from hub_server import TOKEN, Hub
from tiny import bert, token_rows
from transformers import Trainer

from glue_runs.finetune.trainer import GlueTrainer

SCRIPT = """
import sys
sys.path[:0] = [sys.argv[1]]
import tiny
from transformers import TrainerCallback
from glue_runs.finetune.trainer import GlueTrainer

class Wait(TrainerCallback):
    # With steps as short as these the next save would write over the files that are being uploaded.
    def on_save(self, args, state, control, **kwargs):
        trainer._finish_current_push()

args = tiny.arguments(
    output_dir="full", push_to_hub=True, hub_model_id="me/full", hub_token=sys.argv[2], hub_always_push=True,
    save_strategy="steps", save_steps=2, max_steps=4,
)
trainer = GlueTrainer(tiny.bert(), args=args, train_dataset=tiny.token_rows(16), callbacks=[Wait()])
trainer.train()
print("trained:", trainer.state.global_step)
try:
    trainer.push_to_hub()
except Exception as error:
    print(f"full: {type(error).__name__}: {' '.join(str(error).split())}")
"""


def test_failures(hub: Hub, tmp_path: Path) -> None:
    hub.fail_with = {"me/full/commit/": 500}
    ended = run_script(hub, tmp_path, SCRIPT, str(Path(__file__).parents[2] / "support"), TOKEN)
    assert ended.code == 0, ended.stderr
    assert "trained: 4" in ended.stdout
    assert ended.stderr.count("A push to the Hub failed in the background; training continues: Server error '500") == 2
    assert "full: HfHubHTTPError: Server error '500" in ended.stdout
    remedy = "push it later with trainer.push_to_hub() or `hf upload me/full full . --exclude 'checkpoint-*'`."
    assert f"The model is saved in full: {remedy}" in ended.stderr
    assert (tmp_path / "full" / "model.safetensors").is_file()
    assert token_leaks(hub, tmp_path, ended.stdout, ended.stderr) == []


def test_checkpoints_of_other_runs_are_not_pushed(
    make_trainer: Callable[..., Trainer], tmp_path: Path, warnings_of: Any
) -> None:
    (tmp_path / "run" / "trial" / "run-0" / "checkpoint-5").mkdir(parents=True)
    trainer = make_trainer(GlueTrainer, bert(), token_rows(8))
    with pytest.raises(ValueError, match=r"run-0/checkpoint-5 would be pushed .* an output_dir of its own"):
        trainer.push_to_hub()
    for _ in range(2):
        trainer._push_from_checkpoint(str(tmp_path / "run" / "checkpoint-5"))
    (warning,) = [text for text in warnings_of() if "Nothing is pushed" in text]
    assert "run-0/checkpoint-5 would be pushed, too" in warning
