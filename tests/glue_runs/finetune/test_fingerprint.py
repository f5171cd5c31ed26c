import hashlib
import json
import shutil
from functools import partial
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict
from huggingface_hub import try_to_load_from_cache

from glue_runs.finetune import fingerprint as module
from glue_runs.finetune.fingerprint import changed_parts, fingerprint


def examples(last_token: int = 3, label: int = 1) -> DatasetDict:
    rows = {"input_ids": [[1, 2], [last_token]], "label": [0, label]}
    return DatasetDict(train=Dataset.from_dict(rows), validation=Dataset.from_dict(rows))


def test_each_part_stands_for_what_it_names(tiny_encoder: str, tmp_path: Path) -> None:
    shutil.copytree(tiny_encoder, tmp_path / "copy")
    copy = str(tmp_path / "copy")
    before = fingerprint(tiny_encoder, examples())
    assert before == fingerprint(copy, examples())
    assert before["examples"] != fingerprint(copy, examples(last_token=4))["examples"]
    assert before["examples"] != fingerprint(copy, examples(label=0))["examples"]
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    (tmp_path / "copy" / "config.json").write_text(json.dumps({**config, "hidden_dropout_prob": 0.3}))
    after = fingerprint(copy, examples())
    assert (after["weights"] == before["weights"], after["tokenizer"] == before["tokenizer"]) == (False, True)
    (tmp_path / "copy" / "tokenizer.json").write_text("{}")
    assert fingerprint(copy, examples())["tokenizer"] != before["tokenizer"]


def test_where_a_list_ends_counts() -> None:
    one, other = ({"input_ids": ids} for ids in ([[1, 2], [3]], [[1], [2, 3]]))
    digests = [module._digest_of_examples(DatasetDict(train=Dataset.from_dict(rows))) for rows in (one, other)]
    assert digests[0] != digests[1]


def test_weights_are_the_sha256_of_their_files(tmp_path: Path) -> None:
    for name, content in (("config.json", b"{}"), ("model.safetensors", b"w"), ("README.md", b"of no account")):
        (tmp_path / name).write_bytes(content)
    expected = hashlib.sha256(b"config.json{}model.safetensorsw").hexdigest()
    assert fingerprint(str(tmp_path), examples())["weights"] == expected


def test_of_a_model_on_the_hub_the_files_count_and_not_the_commit(
    tiny_encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "try_to_load_from_cache", partial(try_to_load_from_cache, cache_dir=tmp_path))
    assert set(fingerprint("me/model", examples())) == {"examples"}
    repository = tmp_path / "models--me--model"
    (repository / "refs").mkdir(parents=True)
    for commit in ("a" * 40, "b" * 40):  # as an upload of a new README leaves it
        shutil.copytree(tiny_encoder, repository / "snapshots" / commit)
        (repository / "refs" / "main").write_text(commit)
        assert fingerprint("me/model", examples()) == fingerprint(tiny_encoder, examples())
    weights = repository / "snapshots" / commit / "model.safetensors"
    weights.write_bytes(b"other weights")
    assert changed_parts(fingerprint(tiny_encoder, examples()), fingerprint("me/model", examples())) == ["weights"]
    weights.unlink()  # as before they are downloaded
    assert set(fingerprint("me/model", examples())) == {"examples"}
