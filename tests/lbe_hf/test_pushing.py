"""What Trainer's own ways of pushing send to the Hub."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_client import Ended, run_script, token_leaks
from hub_server import TOKEN, Hub, serve
from safetensors.torch import load
from tiny import bert

from lbe_hf.targets import TARGETS_NAME

STRATEGIES = ("end", "every_save", "checkpoint", "all_checkpoints")

SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[1]]
token = sys.argv[2]
import tiny
from transformers import Trainer, TrainerCallback
from lbe_hf import LBETrainer

class Wait(TrainerCallback):
    # With steps as short as these the next save would write over the files that are being uploaded.
    def on_save(self, args, state, control, **kwargs):
        if args.push_to_hub:
            self.trainer._finish_current_push()

def trainer(name, kind=LBETrainer, **arguments):
    arguments = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "hub_always_push": True, **arguments}
    hub = {"push_to_hub": True, "hub_model_id": name, "hub_token": token}
    args = tiny.arguments(output_dir=name.split("/")[1], lbe_beta=0.5, **{**hub, **arguments})
    wait = Wait()
    wait.trainer = kind(tiny.bert(), args=args, train_dataset=tiny.token_rows(16), callbacks=[wait])
    return wait.trainer

def fail(expected, action, *arguments, **named):
    try:
        action(*arguments, **named)
    except Exception as error:
        print(f"{expected}: {type(error).__name__}: {' '.join(str(error).split())}")
    else:
        print(f"{expected}: nothing failed")

for strategy in ("end", "every_save", "checkpoint", "all_checkpoints"):
    trained = trainer(f"me/{strategy}", hub_strategy=strategy)
    trained.train()
    trained.push_to_hub()
saved = trainer("me/saved", hub_strategy="end")
saved.train()
saved.save_model()
later = trainer("me/later", push_to_hub=False, hub_token=None)
later.train()
later.push_to_hub(token=token, tags=["mine"], blocking=False).result()
for kind in (LBETrainer, Trainer):
    name = "me/nested-" + kind.__name__
    nested = trainer(name, kind, push_to_hub=False, hub_token=None)
    nested.train()
    other = Path(name.split("/")[1], "trial", "checkpoint-5")
    other.mkdir(parents=True)
    (other / "optimizer.pt").write_text("of another run")
    nested.push_to_hub(token=token)
fail("unknown", trainer, "me/unknown", hub_token="hf_" + "Wrong" * 6)
fail("forbidden", trainer, "you/forbidden")
"""


@pytest.fixture(scope="module")
def pushed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, Path, Ended]]:
    folder = tmp_path_factory.mktemp("pushed")
    with serve() as hub:
        ended = run_script(hub, folder, SCRIPT, str(Path(__file__).parents[1] / "support"), TOKEN)
        assert ended.code == 0, ended.stderr
        yield hub, folder, ended


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_strategies(pushed: tuple[Hub, Path, Ended], strategy: str) -> None:
    repo = pushed[0].repos[f"me/{strategy}"]
    plain = {"README.md", "config.json", "lbe_entropy.png", "model.safetensors", "training_args.bin"}
    checkpoints = {"checkpoint": ["last-checkpoint"], "all_checkpoints": ["checkpoint-2", "checkpoint-4"]}
    folders = {path.split("/")[0] for path in repo.files if "/" in path}
    assert {path for path in repo.files if "/" not in path} == plain
    assert folders == set(checkpoints.get(strategy, []))
    for folder in folders:  # what is asked for is complete: a run goes on from it
        assert {f"{folder}/{name}" for name in ("optimizer.pt", "trainer_state.json", TARGETS_NAME)} <= set(repo.files)
    in_training = [commit for commit in repo.commits if commit.startswith("Training in progress, step ")]
    assert len(in_training) == {"end": 0, "every_save": 2}.get(strategy, 4)
    assert repo.commits[-1] == "End of training"


def test_nothing_of_lbe_in_weights_and_configuration(pushed: tuple[Hub, Path, Ended]) -> None:
    for repo in pushed[0].repos.values():
        if "model.safetensors" in repo.files:
            assert set(load(repo.files["model.safetensors"])) == set(bert().state_dict())
            assert "lbe" not in repo.files["config.json"].decode()


def test_save_model_and_push_to_hub_push(pushed: tuple[Hub, Path, Ended]) -> None:
    hub, _, _ = pushed
    assert hub.repos["me/saved"].commits == ["initial commit", "Model save"]
    assert hub.repos["me/later"].commits == ["initial commit", "End of training"]
    card = hub.repos["me/later"].files["README.md"].decode()
    assert "\n- mine\n- generated_from_trainer\n- lbe_hf\n- layerwise-batch-entropy\n" in card
    assert 'from_pretrained("me/later")' in card


def test_what_trainer_pushes_is_pushed(pushed: tuple[Hub, Path, Ended]) -> None:
    """A folder of another run inside the output folder, too."""
    ours, theirs = (set(pushed[0].repos[f"me/nested-{kind}"].files) for kind in ("LBETrainer", "Trainer"))
    assert "trial/checkpoint-5/optimizer.pt" in theirs
    assert ours - theirs == {"lbe_entropy.png"}
    assert theirs <= ours


def test_failures_are_trainers(pushed: tuple[Hub, Path, Ended]) -> None:
    hub, folder, ended = pushed
    assert "unknown: HfHubHTTPError: Client error '401 Unauthorized'" in ended.stdout
    assert "forbidden: HfHubHTTPError: 403 Forbidden" in ended.stdout
    assert token_leaks(hub, folder, ended.stdout, ended.stderr) == []


def test_the_trap_for_the_token_works(hub: Hub, tmp_path: Path) -> None:
    sending = f"import huggingface_hub as h; h.HfApi().create_repo('me/{TOKEN}')"
    (tmp_path / "note").write_text(TOKEN)
    assert run_script(hub, tmp_path, sending, token=TOKEN).code == 0
    assert token_leaks(hub, tmp_path, TOKEN) == ["request 0", "text 0", f"file {tmp_path / 'note'}"]
