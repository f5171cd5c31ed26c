import inspect
from typing import Any

from lbe_hf.signatures import show_own_parameters


class Mixin:
    def __init_subclass__(cls) -> None:
        show_own_parameters(cls, Mixin, ["call", "missing"])

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Documented in the mixin."""
        return "mixin", super().call(*args, **kwargs)  # type: ignore[misc]


class Base:
    def call(self, first: int, *, second: str = "b") -> Any:
        return first, second


class Mixed(Mixin, Base):
    pass


def test_the_signature_is_that_of_the_extended_method_and_the_mixin_still_runs() -> None:
    assert list(inspect.signature(Mixed.call).parameters) == ["self", "first", "second"]
    assert Mixed.call.__doc__ == "Documented in the mixin."
    assert Mixed().call(1, second="x") == ("mixin", (1, "x"))


def test_a_method_that_a_subclass_defines_keeps_its_own_signature() -> None:
    class Own(Mixin, Base):
        def call(self, only: int) -> Any:  # type: ignore[override]
            return super().call(only)

    assert list(inspect.signature(Own.call).parameters) == ["self", "only"]
    assert Own().call(3) == ("mixin", (3, "b"))
