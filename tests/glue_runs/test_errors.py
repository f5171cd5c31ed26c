import pytest

from glue_runs.errors import InputError


def test_input_errors_are_value_errors_so_that_callers_need_not_know_the_class() -> None:
    with pytest.raises(ValueError, match="no such task"):
        raise InputError("no such task")
