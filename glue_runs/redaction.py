"""Tokens of the Hub are kept out of everything that is printed or written."""

from __future__ import annotations

import re
from collections.abc import Sequence

from huggingface_hub import get_token

_LOOKS_LIKE_A_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")
_TOKEN_ARGUMENT = re.compile(r"--hub[_-]token(=.*)?", re.DOTALL)


def redact(text: str, *tokens: str | None) -> str:
    """`text` with `<HUB_TOKEN>` for the token that is logged in, for `tokens`, and for what looks like one."""
    for token in (get_token(), *tokens):
        text = text.replace(token, "<HUB_TOKEN>") if token else text
    return _LOOKS_LIKE_A_TOKEN.sub("<HUB_TOKEN>", text)


def without_token(argv: Sequence[str]) -> list[str]:
    """A command line without its `--hub_token`; what else looks like a token in it is redacted."""
    kept, skip = [], False
    for argument in argv:
        named = _TOKEN_ARGUMENT.fullmatch(argument)
        if not named and not skip:
            kept.append(redact(argument))
        skip = named is not None and named[1] is None
    return kept
