"""Shared set-up: no test touches the network, and the ones on real GLUE files skip loudly without them."""

import gc
import os
import signal

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # the models are so small that threads, of tests side by side, only wait

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer
from transformers.utils import logging

signal.signal(signal.SIGINT, signal.default_int_handler)  # a script's background jobs start with SIGINT ignored


def pytest_collection_finish() -> None:
    """Exclude what is loaded by now from garbage collection, which `Trainer` calls in every training."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def verbosity_is_put_back() -> Iterator[None]:
    """Of Transformers, on which the default of `disable_tqdm` depends."""
    before = logging.get_verbosity()
    yield
    logging.set_verbosity(before)


@pytest.fixture
def glue_data_dir() -> Path:
    folder = os.environ.get("GLUE_DATA_DIR")
    if not folder:
        pytest.skip("GLUE_DATA_DIR is not set: the tests on the official GLUE files did not run")
    return Path(folder)


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of an encoder that `glue_runs` loads by name and trains in a second."""
    import tiny

    folder = tmp_path_factory.mktemp("encoder")
    tiny.save_encoder(folder)
    return str(folder)


@pytest.fixture(scope="session")
def ranks() -> Iterator[Any]:
    """`ranks(function, ...)` calls a function of `on_ranks` in two processes of one group, as `torchrun` makes it."""
    from ranks import Ranks

    pair = Ranks()
    yield pair
    pair.stop()


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., Trainer]:
    """`make_trainer(cls, model, rows, **arguments)`: a trainer on the CPU that writes into a temporary folder."""
    import tiny

    def make(
        trainer_class: type[Trainer], model: Any, rows: Any, trainer: dict[str, Any] | None = None, **arguments: Any
    ) -> Any:
        arguments = {"output_dir": str(tmp_path / "run"), **arguments}
        return trainer_class(model, args=tiny.arguments(**arguments), train_dataset=rows, **(trainer or {}))

    return make


@pytest.fixture
def warnings_of(caplog: pytest.LogCaptureFixture) -> Any:
    """Texts of the warnings that the library logged so far."""
    logging.enable_propagation()
    yield lambda: [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    logging.disable_propagation()


@pytest.fixture
def hub() -> Iterator[Any]:
    """A Hub on 127.0.0.1 (`hub_server.Hub`), for clients in processes of their own."""
    import hub_server

    with hub_server.serve() as served:
        yield served
