"""Keeps Hub tokens out of the files that are pushed to the Hub."""

from __future__ import annotations

import copyreg
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_TOKENS = {"hub_token", "push_to_hub_token"}


@contextmanager
def tokens_left_out(args: Any) -> Iterator[None]:
    """Context in which arguments of this class are pickled without Hub tokens.

    `Trainer` writes its arguments to `training_args.bin` beside the weights, and pushes both.
    """
    kind = type(args)
    before = copyreg.dispatch_table.get(kind)
    copyreg.pickle(kind, _without_tokens)
    try:
        yield
    finally:
        if before is None:
            del copyreg.dispatch_table[kind]
        else:
            copyreg.pickle(kind, before)


def _without_tokens(args: Any) -> tuple[Any, ...]:
    constructor, arguments, state, *_ = args.__reduce_ex__(2)
    return constructor, arguments, {**state, **dict.fromkeys(_TOKENS & state.keys())}
