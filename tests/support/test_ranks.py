"""A process that dies fails the test it was in, and no other."""

import on_ranks
import pytest
from ranks import Ranks


def test_the_next_call_starts_anew(ranks: Ranks) -> None:
    with pytest.raises(AssertionError, match="rank 1 died, exit code 3"):
        ranks(on_ranks.die, 1)
    assert ranks(on_ranks.die, None) == [None, None]
