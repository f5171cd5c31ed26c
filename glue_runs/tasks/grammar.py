"""Three small tasks in the form of RTE, MRPC and CoLA, generated from a grammar, for use without GLUE data."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

Item = TypeVar("Item")

_PEOPLE = ("Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Iris", "Jack", "Karen", "Leo")
_COLOURS = ("red", "blue", "green", "black", "white", "yellow")
_THINGS = ("bicycle", "book", "camera", "guitar", "jacket", "lamp", "letter", "umbrella")
_VERBS = (  # infinitive, present participle, past (and past participle)
    ("buy", "buying", "bought"),
    ("clean", "cleaning", "cleaned"),
    ("find", "finding", "found"),
    ("paint", "painting", "painted"),
    ("repair", "repairing", "repaired"),
    ("sell", "selling", "sold"),
)
_AUXILIARIES = (("do not", "does not"), ("are", "is"), ("have", "has"))  # in the order of the forms of a verb
_PRONOUNS = (("he", "him", 1), ("she", "her", 1), ("we", "us", 0), ("they", "them", 0))  # singular: 1

_DONE = ("managed", "remembered", "happened", "dared", "was able", "was forced", "took the time", "had the luck")
_NOT_DONE = ("failed", "forgot", "refused", "hoped", "was about", "was asked", "lacked the time", "had the wish")
_TELLINGS = (
    "{giver} gave {receiver} the {colour} {thing}.",
    "{giver} passed the {colour} {thing} on to {receiver}.",
    "{receiver} got the {colour} {thing} from {giver}.",
    "{receiver} was given the {colour} {thing} by {giver}.",
    "The {colour} {thing} went from {giver} to {receiver}.",
)


def generate(task: str, count: int, seed: int) -> list[dict[str, Any]]:
    """`count` examples of a generated task, half of them with each label; the same seed gives the same examples.

    Examples are unique, and no example comes from both an even and an odd seed: test examples are unseen.
    """
    make, columns = _GENERATORS[task]
    rng = random.Random(seed)
    labels: dict[tuple[str, ...], int] = {}
    while len(labels) < count:
        label = len(labels) % 2
        texts = make(label, rng)
        if zlib.crc32(" ".join(texts).encode()) % 2 == seed % 2:
            labels.setdefault(texts, label)
    examples = list(labels.items())
    rng.shuffle(examples)
    return [
        {**dict(zip(columns, texts, strict=True)), "label": label, "idx": index}
        for index, (texts, label) in enumerate(examples)
    ]


def _entailment(label: int, rng: random.Random) -> tuple[str, ...]:
    """Whether the hypothesis follows (label 0): it depends on a verb ("managed to", "failed to") or on one word."""
    who, colour, thing = rng.choice(_PEOPLE), rng.choice(_COLOURS), rng.choice(_THINGS)
    infinitive, _, past = rng.choice(_VERBS)
    verb, named = rng.choice(_DONE), thing
    if label == 1 and rng.random() < 2 / 3:
        verb = rng.choice(_NOT_DONE)
    elif label == 1:
        named = _other(_THINGS, thing, rng)
    hypothesis = rng.choice((f"{who} {past} the {named}.", f"The {named} was {past} by {who}."))
    return f"{who} {verb} to {infinitive} the {colour} {thing}.", hypothesis


def _paraphrase(label: int, rng: random.Random) -> tuple[str, ...]:
    """Whether two sentences have the same meaning (label 1): others differ in the event, in a word or in the roles."""
    giver, receiver, *others = rng.sample(_PEOPLE, 4)
    event = {"giver": giver, "receiver": receiver, "colour": rng.choice(_COLOURS), "thing": rng.choice(_THINGS)}
    colour, thing = _other(_COLOURS, event["colour"], rng), _other(_THINGS, event["thing"], rng)
    another_event = {"giver": others[0], "receiver": others[1], "colour": colour, "thing": thing}
    another_word = rng.choice(({"colour": colour}, {"thing": thing}))
    swapped = {"giver": receiver, "receiver": giver}
    change = {} if label == 1 else rng.choice((another_event, another_event, another_word, swapped))
    first, second = rng.sample(_TELLINGS, 2)
    return first.format(**event), second.format(**{**event, **change})


def _acceptability(label: int, rng: random.Random) -> tuple[str, ...]:
    """Whether a sentence is grammatical (label 1): others have an error in case, agreement, verb form or order."""
    (subject, _, singular), (_, receiver, _) = pronouns = rng.sample(_PRONOUNS, 2)
    verb, form = rng.choice(_VERBS), rng.randrange(3)
    auxiliary = _AUXILIARIES[form][singular]
    error = "" if label == 1 else rng.choice(("case", "case", "case", "agreement", "form", "order"))
    if error == "case":
        subject, receiver = pronouns[0][1], pronouns[1][0]
    elif error == "agreement":
        auxiliary = _AUXILIARIES[form][1 - singular]
    elif error == "form":
        form = _other(range(3), form, rng)
    words = [
        subject.capitalize(),
        auxiliary,
        verb[form],
        "the",
        rng.choice(_COLOURS),
        rng.choice(_THINGS),
        "for",
        receiver,
    ]
    if error == "order":
        at = rng.randrange(1, len(words) - 1)
        words[at : at + 2] = words[at + 1], words[at]
    return (" ".join(words) + ".",)


def _other(values: Sequence[Item], value: Item, rng: random.Random) -> Item:
    return rng.choice([other for other in values if other != value])


_GENERATORS: dict[str, tuple[Callable[[int, random.Random], tuple[str, ...]], tuple[str, ...]]] = {
    "demo_rte": (_entailment, ("sentence1", "sentence2")),
    "demo_mrpc": (_paraphrase, ("sentence1", "sentence2")),
    "demo_cola": (_acceptability, ("sentence",)),
}
