"""What the tests let worker processes do: a module that a spawned process can import."""

import os
import signal
import time
from pathlib import Path


def double(item: int, deaths: int) -> int:
    return 2 * item


def die_times(item: tuple[str, int], deaths: int) -> tuple[str, int]:
    """Name of the item and how often its process died, after it died as often as the item tells."""
    name, wanted = item
    if deaths < wanted:
        os.kill(os.getpid(), signal.SIGKILL)
    return name, deaths


def sleep_and_tell(item: str, deaths: int) -> None:
    """Write the number of the process into the file that the item names, and stay."""
    Path(f"{item}.part").write_text(str(os.getpid()))
    Path(f"{item}.part").replace(item)
    time.sleep(600)
