import re
from statistics import mean
from typing import Any

import pytest

from glue_runs.tasks.glue import TASKS
from glue_runs.tasks.grammar import generate

GENERATED = [task.name for task in TASKS.values() if task.generated]


def texts(rows: list[dict[str, Any]]) -> list[str]:
    return [" ".join(str(value) for name, value in row.items() if name.startswith("sentence")) for row in rows]


@pytest.mark.parametrize("task", GENERATED)
def test_rows_are_those_of_the_seed_balanced_and_new_in_the_test_set(task: str) -> None:
    train, test = generate(task, 300, seed=0), generate(task, 150, seed=1)
    assert train == generate(task, 300, seed=0)
    assert (sum(row["label"] for row in train), sum(row["label"] for row in test)) == (150, 75)
    assert len({*texts(train), *texts(test)}) == 450
    assert {*TASKS[task].text_columns, "label", "idx"} == set(train[0])


@pytest.mark.parametrize("task", GENERATED)
def test_length_does_not_give_the_label_away(task: str) -> None:
    rows = generate(task, 600, seed=0)
    lengths = [
        [len(text.split()) for row, text in zip(rows, texts(rows), strict=True) if row["label"] == label]
        for label in (0, 1)
    ]
    assert abs(mean(lengths[0]) - mean(lengths[1])) < 0.5


def test_entailed_sentences_tell_what_was_done() -> None:
    not_done = re.compile(r"failed|forgot|refused|hoped|was about|was asked|lacked|had the wish")
    for row in generate("demo_rte", 200, seed=0):
        thing = row["sentence1"].rstrip(".").split()[-1]
        follows = not not_done.search(row["sentence1"]) and thing in row["sentence2"]
        assert follows == (row["label"] == 0)


def test_paraphrases_name_the_same_people_and_thing() -> None:
    for row in generate("demo_mrpc", 200, seed=0):
        names = [set(re.findall(r"\b[A-Z][a-z]+\b", row[f"sentence{number}"])) - {"The"} for number in (1, 2)]
        things = [set(re.findall(r"(\w+) (\w+)(?= went| from| on| by|\.)", row[f"sentence{n}"])[0]) for n in (1, 2)]
        if row["label"] == 1:
            assert names[0] == names[1]
            assert row["sentence1"] != row["sentence2"]
        elif names[0] == names[1] and things[0] == things[1]:
            assert _giver(row["sentence1"]) != _giver(row["sentence2"])


def _giver(sentence: str) -> str:
    """Who gives, by where the name stands in each way to tell it."""
    found = re.search(r"(?:from|by) (\w+)|^(\w+) (?:gave|passed)", sentence)
    assert found is not None
    return found[1] or found[2]


def test_grammatical_sentences_agree() -> None:
    base = "(buy|clean|find|paint|repair|sell)"
    ing = "(buying|cleaning|finding|painting|repairing|selling)"
    past = "(bought|cleaned|found|painted|repaired|sold)"
    right = re.compile(
        rf"((He|She) (does not {base}|is {ing}|has {past})|(We|They) (do not {base}|are {ing}|have {past}))"
        r" the (red|blue|green|black|white|yellow) \w+ for (him|her|us|them)\."
    )
    for row in generate("demo_cola", 2000, seed=0):
        assert (right.fullmatch(row["sentence"]) is not None) == (row["label"] == 1), row["sentence"]
