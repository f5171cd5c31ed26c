"""Pushes as a user makes them, to a server on 127.0.0.1 that speaks the Hub's API, and what comes back from it."""

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from grids import made_up
from hub_client import pull, run_mains, token_leaks
from hub_server import TOKEN, Hub, card_errors, serve
from huggingface_hub import HfApi
from safetensors.torch import load
from transformers import AutoModelForSequenceClassification

from glue_runs.errors import InputError
from glue_runs.finetune.push import PushArguments, PushError, push
from glue_runs.finetune.push import main as push_main

STOCK_FILES = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


@pytest.fixture(scope="module")
def finetune(tiny_encoder: str) -> str:
    return (
        f"glue_runs.finetune.command --model_name_or_path {tiny_encoder} --max_steps 4 --use_cpu --precision fp32 "
        "--logging_steps 2 --save_strategy steps --save_steps 2 --disable_tqdm true"
    )


@dataclass
class Pushed:
    hub: Hub
    folder: Path
    texts: list[str]


@pytest.fixture(scope="module")
def pushed(finetune: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pushed]:
    """Two runs that were pushed and one that was not, through Git LFS."""
    folder = tmp_path_factory.mktemp("pushed")
    rows = "\n".join(f"{index % 2}\t0\t0\t{'a' * (1 + index % 5)}\tb" for index in range(20))
    (folder / "MRPC").mkdir()
    for name in ("train", "dev"):
        (folder / "MRPC" / f"{name}.tsv").write_text(f"Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n{rows}\n")
    by_argument = f"--push_to_hub --hub_model_id me/lbe --hub_token {TOKEN}"
    settings = "--lbe_beta 0.05 --lbe_alpha 0.3 --lbe_log_entropy"
    with serve() as hub:
        ended = run_mains(
            hub,
            folder,
            f"{finetune} --task_name demo_rte --output_dir out {by_argument}",
            f"{finetune} --task_name mrpc --data_dir {folder} {settings} --output_dir bert-mrpc --push_to_hub",
            f"{finetune} --task_name demo_rte --output_dir quiet",
            token=TOKEN,
        )
        assert [run.code for run in ended] == [0, 0, 0], ended[0].stderr
        assert f"pushed to {hub.url}/me/lbe" in ended[0].stdout
        yield Pushed(hub, folder, [text for run in ended for text in (run.stdout, run.stderr)])


def test_what_is_pushed_comes_back_bit_for_bit(pushed: Pushed, tmp_path: Path) -> None:
    assert set(pushed.hub.repos) == {"me/lbe", "me/bert-mrpc"}  # and not the one that nobody asked to push
    repo = pushed.hub.repos["me/lbe"]
    assert repo.commits[1].startswith("Training in progress, step ")
    assert repo.commits[-1] == "End of training"
    beside = {"README.md", "lbe_entropy.png", "result.json", "run.json", "trainer_state.json", "training_args.bin"}
    assert set(repo.files) == STOCK_FILES | beside
    assert_comes_back(pushed.hub, tmp_path, "me/lbe", pushed.folder / "out")
    assert "lbe" not in repo.files["config.json"].decode()


def assert_comes_back(hub: Hub, tmp_path: Path, repo: str, trained: Path, **environment: Any) -> None:
    pulled = pull(hub, tmp_path / "cache", repo, **environment)
    assert (pulled["problems"], pulled["class"]) == ([], "BertForSequenceClassification")
    local = AutoModelForSequenceClassification.from_pretrained(trained).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        assert torch.equal(pulled["logits"], local(input_ids=torch.randint(5, 30, (4, 8))).logits)
    assert set(load(hub.repos[repo].files["model.safetensors"])) == set(local.state_dict())


def test_the_token_is_nowhere(pushed: Pushed) -> None:
    assert token_leaks(pushed.hub, pushed.folder, *pushed.texts) == []


def test_card(pushed: Pushed) -> None:
    files = pushed.hub.repos["me/bert-mrpc"].files
    card = files["README.md"].decode()
    assert card_errors(card) == []
    assert any(sent.startswith(b"POST /api/validate-yaml") for sent in pushed.hub.received)
    data = yaml.safe_load(card.split("---\n")[1])
    assert {"lbe_hf", "layerwise-batch-entropy", "glue", "mrpc", "text-classification"} <= set(data["tags"])
    assert (data["language"], data["datasets"], data["metrics"]) == (["en"], ["nyu-mll/glue"], ["accuracy", "f1"])
    assert data["pipeline_tag"] == "text-classification"
    (model,) = data["model-index"]
    (result,) = model["results"]
    assert model["name"] == "bert-mrpc"
    assert result["task"]["type"] == "text-classification"
    official = {"name": "GLUE MRPC", "type": "nyu-mll/glue", "config": "mrpc", "split": "validation"}
    assert result["dataset"] == official
    test = json.loads(files["result.json"])["metrics"]["test"]
    assert {m["type"]: m["value"] for m in result["metrics"]} == {name: test[name] for name in ("accuracy", "f1")}
    assert 'AutoModelForSequenceClassification.from_pretrained("me/bert-mrpc")' in card
    assert "--task_name mrpc" in card
    assert "--lbe_beta 0.05 --lbe_alpha 0.3" in card
    assert str(pushed.folder) not in card
    assert "![Batch entropy and target of each layer](lbe_entropy.png)" in card
    assert files["lbe_entropy.png"].startswith(b"\x89PNG")


def test_a_run_is_not_lost_to_the_hub(hub: Hub, finetune: str, tmp_path: Path) -> None:
    hub.fail_with = {r"me/half\.git/info/lfs/verify": 507, "me/late/commit/": 500}
    wrong = "hf_" + "WrongWrongWrong" * 2
    failing = {
        "unknown": (f"me/unknown --hub_token {wrong}", "the token is missing or not accepted (401)"),
        "forbidden": ("you/forbidden", "the token may not write there (403)"),
        "half": ("me/half", "507 Insufficient Storage"),
        "late": ("me/late", "500 Internal Server Error"),
        "offline": ("me/offline", "Connection refused"),
    }
    run = f"{finetune} --task_name demo_rte --push_to_hub"
    commands = [f"{run} --output_dir {folder} --hub_model_id {repo}" for folder, (repo, _) in failing.items()]
    ended = run_mains(hub, tmp_path, *commands[:-1], token=TOKEN)
    with serve() as gone:
        pass
    ended += run_mains(gone, tmp_path, commands[-1], token=TOKEN)
    for (folder, (repo, message)), process in zip(failing.items(), ended, strict=True):
        assert process.code == 1
        last = process.stderr.strip().splitlines()[-1]
        assert message in last
        later = f"python -m glue_runs.push {folder} --hub_model_id {repo.split()[0]}"
        assert f"The result is safe in {folder}; push it later with `{later}`." in last
        assert STOCK_FILES | {"README.md", "result.json"} <= {path.name for path in (tmp_path / folder).iterdir()}
        assert AutoModelForSequenceClassification.from_pretrained(tmp_path / folder)
        in_background = "A push to the Hub failed in the background; training continues: "
        expected = in_background if folder in ("half", "late") else "Nothing is pushed during training: "
        assert expected in process.stderr
    assert not any("model.safetensors" in repo.files for repo in hub.repos.values())

    hub.fail_with = {}
    (tmp_path / "home" / "token").write_text(TOKEN)  # as `hf auth login` leaves it
    (tmp_path / "late" / "checkpoint-9").mkdir(exist_ok=True)
    (tmp_path / "late" / "checkpoint-9" / "optimizer.pt").touch()
    push = "glue_runs.push forbidden --hub_model_id forbidden --hub_private_repo true"
    pushes = [*(f"glue_runs.push {folder}" for folder in failing if folder != "forbidden"), push, push]
    mistakes = {"nothing": "nothing holds no model", f"late --hub_tokn {TOKEN}": "--hub_tokn <HUB_TOKEN>"}
    later = run_mains(hub, tmp_path, *pushes, *(f"glue_runs.push {mistake}" for mistake in mistakes))
    assert [process.code for process in later] == [0] * len(pushes) + [2] * len(mistakes), later[0].stderr
    for process, message in zip(later[-len(mistakes) :], mistakes.values(), strict=True):
        (last,) = process.stderr.strip().splitlines()
        assert last.startswith("error: ")
        assert message in last
    assert set(hub.repos) == {f"me/{name}" for name in failing}
    assert [name for name, repo in hub.repos.items() if repo.private] == ["me/forbidden"]
    for name, repo in hub.repos.items():
        assert repo.commits == ["initial commit", "End of training"]
        assert f'from_pretrained("{name}")' in repo.files["README.md"].decode()
        assert not [path for path in repo.files if "checkpoint" in path or "optimizer" in path]
    texts = [text for process in (*ended, *later) for text in (process.stdout, process.stderr)]
    assert token_leaks(hub, tmp_path, *texts) == []
    assert wrong not in "".join(texts)


def test_the_command_to_push_later_repeats_what_was_chosen(tiny_encoder: str, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_encoder, tmp_path / "out")  # pushed offline
    with pytest.raises(PushError) as error:
        push(folder, PushArguments("me/secret", TOKEN, hub_private_repo=True, hub_revision="dev"))
    later = re.search(r"push it later with `python -m glue_runs.push (.*)`", str(error.value))
    assert later is not None
    words = shlex.split(later[1])
    assert words[0] == str(folder)
    options = {"hub_model_id": "me/secret", "hub_private_repo": "True", "hub_revision": "dev"}
    assert words[1:] == [word for name, value in options.items() for word in (f"--{name}", value)]
    (folder / "second" / "checkpoint-5").mkdir(parents=True)
    with pytest.raises(InputError, match="second/checkpoint-5 would be pushed with the model"):
        push(folder, PushArguments("me/secret", TOKEN))


def test_a_grid_pushes_the_chosen_run_of_each_task(hub: Hub, tiny_encoder: str, tmp_path: Path) -> None:
    grid = (
        f"glue_runs.grid.command --tasks demo_rte demo_cola --models {tiny_encoder} --seeds 1 2 --learning_rates 1e-2 "
        "--lbe_alphas 0.5 --lbe_betas 0.05 --max_steps 3 --precision fp32 --workers 1 --output_dir grid "
        f"--push_to_hub --hub_model_id_prefix me/tiny --hub_token {TOKEN}"
    )
    hub.fail_with = {"/api/repos/create": 403}
    (denied,) = run_mains(hub, tmp_path, grid)
    assert denied.code == 1
    assert denied.stderr.count("the token may not write there (403)") == 2
    assert "push it later with `python -m glue_runs.push grid/runs/demo_rte-" in denied.stderr
    hub.fail_with = {}
    ended, unchanged = run_mains(hub, tmp_path, grid, grid, xet=True)
    assert (ended.code, unchanged.code) == (0, 0), ended.stderr
    assert set(hub.repos) == {"me/tiny-demo_rte", "me/tiny-demo_cola"}
    assert all(repo.commits == ["initial commit", "End of training"] for repo in hub.repos.values())
    named = dict(re.findall(r"(\w+): pushed (\S+) to", ended.stdout))
    for task, name in named.items():
        pushed = json.loads(hub.repos[f"me/tiny-{task}"].files["result.json"])
        assert pushed == json.loads((tmp_path / "grid" / "runs" / name / "result.json").read_text())
        assert pushed["beta"] > 0
        assert (tmp_path / "grid" / "runs" / name / "model.safetensors").is_file()
    kept = list(tmp_path.glob("grid/runs/*/model.safetensors"))
    assert len(kept) == 4  # of each task the best of both methods, one of which is the chosen one
    assert "hub_token" not in (tmp_path / "grid" / "grid.json").read_text()
    assert token_leaks(hub, tmp_path, denied.stderr, ended.stdout, ended.stderr) == []
    name = named["demo_rte"]
    assert_comes_back(hub, tmp_path, "me/tiny-demo_rte", tmp_path / "grid" / "runs" / name, xet=True)
    for request in ("POST /xet/v1/xorbs/", "GET /xet/xorbs/"):
        assert any(sent.startswith(request.encode()) for sent in hub.received)


@pytest.mark.parametrize("link", ["model.safetensors", "README.md", "config.json", "more/notes.txt", "more", ""])
def test_nothing_behind_a_link_is_pushed(link: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(HfApi, "create_repo", lambda *arguments, **more: asked.append(arguments))
    run, private = tmp_path / "run", tmp_path / "private"
    for folder in (run, private):
        (folder / "more").mkdir(parents=True)
        for name in ("config.json", "model.safetensors", "README.md", "more/notes.txt"):
            (folder / name).touch()
    (run / link).rename(tmp_path / "away")
    (run / link).symlink_to(private / link)
    with pytest.raises(InputError, match=f"{run / link} is a link, and links are not pushed: replace it by a copy"):
        push(run, PushArguments())
    assert not asked


def test_what_diverged_is_not_pushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(HfApi, "create_repo", lambda *arguments, **more: asked.append(arguments))
    (tmp_path / "config.json").touch()
    (tmp_path / "result.json").write_text(json.dumps(made_up(0.5, 0.5, 1, diverged=True)))
    with pytest.raises(PushError, match="was not pushed: its run diverged"):
        push(tmp_path, PushArguments())
    assert not asked


def test_a_path_that_is_too_long(capsys: pytest.CaptureFixture[str]) -> None:
    assert push_main(["a" * 5000]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: [Errno 36] File name too long")
    assert error.count("\n") == 1


def test_links_in_what_is_left_out_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*arguments: Any, **more: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(HfApi, "create_repo", ask)
    (tmp_path / "config.json").touch()
    (tmp_path / "checkpoint-3").symlink_to(tmp_path.parent)
    with pytest.raises(PushError, match="no network"):
        push(tmp_path, PushArguments())
