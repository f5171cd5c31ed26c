"""A process that dies fails the test it was in, and no other."""

import on_ranks
import pytest
from ranks import Ranks


@pytest.mark.parametrize("rank", [0, 1])
def test_the_next_call_starts_anew(ranks: Ranks, rank: int) -> None:
    with pytest.raises(AssertionError, match=f"rank {rank} died, exit code 3"):
        ranks(on_ranks.die, rank)
    assert ranks(on_ranks.die, None) == [None, None]
