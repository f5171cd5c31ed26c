from glue_runs.grammar import _PEOPLE, generate_entailment


def test_same_seed_same_rows() -> None:
    assert generate_entailment(50, seed=3) == generate_entailment(50, seed=3)
    assert generate_entailment(50, seed=3) != generate_entailment(50, seed=4)


def test_balanced_and_distinct_between_splits() -> None:
    train, validation = generate_entailment(800, seed=0), generate_entailment(200, seed=1)
    assert sum(int(row["label"]) for row in train) == 400
    seen = {(row["sentence1"], row["sentence2"]) for row in train}
    assert len(seen) > 780
    assert sum((row["sentence1"], row["sentence2"]) in seen for row in validation) < 5


def test_words_alone_do_not_give_the_label_away() -> None:
    """Every entailed hypothesis names the people of its premise; so does a third and more of the others."""
    shares = []
    for label in (0, 1):
        rows = [row for row in generate_entailment(800, seed=0) if row["label"] == label]
        same = [_people(str(row["sentence1"])) == _people(str(row["sentence2"])) for row in rows]
        shares.append(sum(same) / len(rows))
    assert shares[0] == 1
    assert 0.55 < shares[1] < 0.8


def _people(sentence: str) -> set[str]:
    return {person for person in _PEOPLE if person in sentence}
