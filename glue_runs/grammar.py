"""A small entailment task in the shape of RTE, generated from a grammar, for where there are no GLUE data.

A premise tells who gave what to whom, and the hypothesis retells it. Half of the hypotheses follow; the others tell of
another event (easy to see), change a detail (which needs one word) or swap giver and receiver (which needs syntax).
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

_PEOPLE = ("Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Iris", "Jack", "Karen", "Leo")
_COLOURS = ("red", "blue", "green", "black", "white", "yellow")
_THINGS = ("bicycle", "book", "camera", "guitar", "jacket", "lamp", "letter", "umbrella")
_PLACES = ("in the garden", "at the station", "after lunch", "before the meeting", "on Monday", "at school")

_PREMISES = (
    "{giver} gave {receiver} the {colour} {thing} {place}.",
    "{giver} handed the {colour} {thing} to {receiver} {place}.",
    "{receiver} got the {colour} {thing} from {giver} {place}.",
    "The {colour} {thing} was given to {receiver} by {giver} {place}.",
    "{receiver}, who had asked {giver} for it, was given the {colour} {thing} {place}.",
)
_HYPOTHESES = (
    "{receiver} received the {colour} {thing} from {giver}.",
    "{giver} passed the {colour} {thing} on to {receiver}.",
    "The {thing} that {giver} gave away is {colour}, and {receiver} has it now.",
    "{giver} no longer has the {colour} {thing}, but {receiver} does.",
)


@dataclass(frozen=True)
class _Event:
    giver: str
    receiver: str
    colour: str
    thing: str
    place: str

    def told_as(self, template: str) -> str:
        return template.format(**vars(self))


def generate_entailment(rows: int, seed: int) -> list[dict[str, str | int]]:
    """`rows` examples, half of them entailed (label 0), the same ones for the same seed."""
    rng = random.Random(seed)
    labels = [index % 2 for index in range(rows)]
    rng.shuffle(labels)
    examples: list[dict[str, str | int]] = []
    for index, label in enumerate(labels):
        giver, receiver = rng.sample(_PEOPLE, 2)
        event = _Event(giver, receiver, rng.choice(_COLOURS), rng.choice(_THINGS), rng.choice(_PLACES))
        told = event if label == 0 else _changed(event, rng)
        examples.append(
            {
                "sentence1": event.told_as(rng.choice(_PREMISES)),
                "sentence2": told.told_as(rng.choice(_HYPOTHESES)),
                "label": label,
                "idx": index,
            }
        )
    return examples


def _changed(event: _Event, rng: random.Random) -> _Event:
    kind = rng.choice(("another event", "another detail", "swapped roles"))
    if kind == "swapped roles":
        return replace(event, giver=event.receiver, receiver=event.giver)
    others = [person for person in _PEOPLE if person not in (event.giver, event.receiver)]
    colour = rng.choice([colour for colour in _COLOURS if colour != event.colour])
    thing = rng.choice([thing for thing in _THINGS if thing != event.thing])
    if kind == "another event":
        giver, receiver = rng.sample(others, 2)
        return replace(event, giver=giver, receiver=receiver, colour=colour, thing=thing)
    return rng.choice([replace(event, colour=colour), replace(event, thing=thing)])


def generate(task: str, rows: int, seed: int) -> list[dict[str, str | int]]:
    return {"demo_rte": generate_entailment}[task](rows, seed)
