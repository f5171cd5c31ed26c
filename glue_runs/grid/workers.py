"""Worker processes on this machine, each of which may die without affecting the others."""

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
from itertools import cycle, islice
from multiprocessing.connection import Connection
from typing import TypeVar

import torch
from tqdm import tqdm

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
    initializer: Callable[[], None] | None = None,
    environments: Sequence[dict[str, str]] = ({},),
) -> Iterator[Result]:
    """Call a function on each item in separate processes; yield results as they finish.

    The processes end when this process ends, for any reason, and when the iterator is closed.

    Args:
        do: the function, which must be picklable; its second argument is how many processes died with the item so far.
        give_up: called in this process instead, for an item whose processes died more than `max_retries` times.
        items: arguments of the calls, in order.
        workers: number of processes.
        threads: number of threads that PyTorch uses in each process.
        max_retries: how often an item is repeated after its process died.
        initializer: called once in each process, before its first item; picklable.
        environments: environment variables of the processes, in turn; a process that replaces another one has its.
    """
    context = multiprocessing.get_context("spawn")
    # Nothing is sent through it: the workers see its end when this process closes it, or dies.
    ended, alive = context.Pipe(duplex=False)
    pools: dict[ProcessPoolExecutor, dict[str, str]] = {}

    def new_pool(environment: dict[str, str]) -> ProcessPoolExecutor:
        # One process per pool: a process that dies breaks its whole pool.
        pool = ProcessPoolExecutor(1, context, _start_worker, (ended, threads, environment, initializer))
        pools[pool] = environment
        return pool

    waiting, deaths = deque(range(len(items))), Counter[int]()
    idle = [new_pool(environment) for environment in islice(cycle(environments), min(workers, len(items)))]
    held: dict[Future[Result], tuple[ProcessPoolExecutor, int]] = {}
    try:
        while waiting or held:
            while waiting and idle:
                pool, index = idle.pop(), waiting.popleft()
                try:
                    with _interrupts_ignored():
                        held[pool.submit(do, items[index], deaths[index])] = pool, index
                except BrokenProcessPool:  # it died while idle
                    waiting.appendleft(index)
                    idle.append(new_pool(pools[pool]))
            for future in wait(held, return_when=FIRST_COMPLETED).done:
                pool, index = held.pop(future)
                try:
                    result = future.result()
                except BrokenProcessPool:
                    idle.append(new_pool(pools[pool]))
                    deaths[index] += 1
                    if deaths[index] <= max_retries:
                        waiting.appendleft(index)
                        continue
                    result = give_up(items[index])
                else:
                    idle.append(pool)
                yield result
    finally:
        for connection in (alive, ended):  # otherwise, the pools would wait for their running items
            connection.close()
        for pool in pools:
            pool.shutdown()


def _start_worker(
    ended: Connection, threads: int, environment: dict[str, str], initializer: Callable[[], None] | None
) -> None:
    os.environ.update(environment)
    threading.Thread(target=_end_with, args=(ended,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tqdm.set_lock(threading.RLock())  # the default is a system semaphore, which outlives a killed process
    torch.set_num_threads(threads)
    if initializer is not None:
        initializer()


def _end_with(connection: Connection) -> None:
    connection.poll(None)
    os._exit(1)


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Processes started here ignore Ctrl-C from the beginning; only this process handles it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
