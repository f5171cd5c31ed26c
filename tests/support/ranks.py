"""Two processes of one gloo group on this machine, which call functions for the tests."""

import faulthandler
import multiprocessing
import os
import pickle
import socket
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

SIZE = 2
_PATIENCE = 300  # seconds; a collective that not all processes call would wait for ever


class Ranks:
    """`ranks(function, ...)` calls a function, by its module and name, in all processes at once.

    They are started with the first call, which takes seconds, and go on until `stop`.
    """

    def __init__(self) -> None:
        self._started: list[tuple[Any, Connection]] = []

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
        """What the function returns in each process, by rank."""
        if not self._started:
            self._start()
        for _, pipe in self._started:
            with suppress(BrokenPipeError):  # no answer will come, which is seen below
                pipe.send_bytes(pickle.dumps((function, args, kwargs)))
        failures: list[str] = []
        results: list[Any] = []
        for rank, (process, pipe) in enumerate(self._started):
            if not pipe.poll(_PATIENCE):
                failures.append(f"rank {rank} does not answer")
                continue
            try:
                failure, result = pickle.loads(pipe.recv_bytes())
            except (EOFError, ConnectionResetError):
                process.join()
                failures.append(f"rank {rank} died, exit code {process.exitcode}")
                continue
            results.append(result)
            if failure:
                failures.append(f"rank {rank}: {failure}")
        if failures:
            if len(failures) < SIZE or len(results) < SIZE:
                self.stop()  # the processes are out of step
            raise AssertionError("\n".join(failures))
        return results

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        for rank in range(SIZE):
            ours, theirs = context.Pipe()
            process = context.Process(target=_answer, args=(rank, port, theirs), daemon=True)
            process.start()
            theirs.close()
            self._started.append((process, ours))

    def stop(self) -> None:
        for process, pipe in self._started:
            pipe.close()
            process.terminate()
            process.join()
        self._started.clear()


def _answer(rank: int, port: int, pipe: Connection) -> None:
    import torch

    faulthandler.enable()
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": SIZE, "LOCAL_WORLD_SIZE": SIZE}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=_PATIENCE / 2))
    while True:
        try:
            function, args, kwargs = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        try:
            answer = ("", function(*args, **kwargs))
        except Exception:
            answer = (traceback.format_exc(), None)
        pipe.send_bytes(pickle.dumps(answer))
