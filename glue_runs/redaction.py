"""Keeps tokens of the Hub out of everything that is printed or written."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from huggingface_hub import get_token

_LOOKS_LIKE_A_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")
_TOKEN_ARGUMENT = re.compile(r"--hub[_-]token(=.*)?", re.DOTALL)


def redact(text: str, *tokens: str | None) -> str:
    """`text` with `<HUB_TOKEN>` for the token of the login, for `tokens`, and for anything that looks like one."""
    for token in (get_token(), *tokens):
        text = text.replace(token, "<HUB_TOKEN>") if token else text
    return _LOOKS_LIKE_A_TOKEN.sub("<HUB_TOKEN>", text)


def report_error(error: object, code: int, *tokens: str | None) -> int:
    """Print `error: ...` in one line on standard error, with `tokens` redacted as by `redact`, and return the code."""
    print(f"error: {redact(' '.join(str(error).split()), *tokens)}", file=sys.stderr)
    return code


def printable(text: str) -> str:
    """`text` with escapes for characters that UTF-8 cannot encode, as in a path in another encoding."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def without_token(argv: Sequence[str]) -> list[str]:
    """A command line without its `--hub_token`; anything else that looks like a token is redacted."""
    kept, skip = [], False
    for argument in argv:
        named = _TOKEN_ARGUMENT.fullmatch(argument)
        if not named and not skip:
            kept.append(redact(argument))
        skip = named is not None and named[1] is None
    return kept
