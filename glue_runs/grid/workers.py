"""Runs in several processes of this machine, each of which may die without harm to the others."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import TypeVar

import torch
from tqdm import tqdm

from .progress import quiet_libraries

Item = TypeVar("Item")
Result = TypeVar("Result")


def do_in_workers(
    do: Callable[[Item, int], Result],
    give_up: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    workers: int,
    threads: int,
    max_retries: int,
) -> Iterator[Result]:
    """Call a function on each item in processes of their own, and give its results as they come.

    The processes end with this one, however it ends, and when the iterator is closed.

    Args:
        do: can be pickled; its second argument is how many processes have died of the item so far.
        give_up: called here instead, for an item whose process died once more than `max_retries` times.
        items: what it is called on, in order.
        workers: how many at once.
        threads: with which PyTorch computes in each of them.
        max_retries: how often an item whose process died is begun again.
    """
    context = multiprocessing.get_context("spawn")
    # Nothing is ever sent: the workers see the end of it when this process closes it, or dies.
    ended, alive = context.Pipe(duplex=False)
    pools: list[ProcessPoolExecutor] = []

    def new_pool() -> ProcessPoolExecutor:
        # Of one process: one that dies takes its whole pool with it.
        pools.append(ProcessPoolExecutor(1, context, _start_worker, (ended, threads)))
        return pools[-1]

    waiting, deaths = deque(range(len(items))), Counter[int]()
    idle = [new_pool() for _ in range(min(workers, len(items)))]
    held: dict[Future[Result], tuple[ProcessPoolExecutor, int]] = {}
    try:
        while waiting or held:
            while waiting and idle:
                pool, index = idle.pop(), waiting.popleft()
                try:
                    with _interrupts_ignored():
                        held[pool.submit(do, items[index], deaths[index])] = pool, index
                except BrokenProcessPool:  # it died with nothing to do
                    waiting.appendleft(index)
                    idle.append(new_pool())
            for future in wait(held, return_when=FIRST_COMPLETED).done:
                pool, index = held.pop(future)
                try:
                    result = future.result()
                except BrokenProcessPool:
                    idle.append(new_pool())
                    deaths[index] += 1
                    if deaths[index] <= max_retries:
                        waiting.appendleft(index)
                        continue
                    result = give_up(items[index])
                else:
                    idle.append(pool)
                yield result
    finally:
        for connection in (alive, ended):  # the pools would wait for what they are doing
            connection.close()
        for pool in pools:
            pool.shutdown()


def _start_worker(ended: Connection, threads: int) -> None:
    threading.Thread(target=_end_with, args=(ended,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tqdm.set_lock(threading.RLock())  # its own is a semaphore of the system, which outlives a process that is ended
    torch.set_num_threads(threads)
    quiet_libraries()


def _end_with(connection: Connection) -> None:
    connection.poll(None)
    os._exit(1)


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """A process that starts here ignores Ctrl-C from its first moment; this one answers for all."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
