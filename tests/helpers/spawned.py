"""Runs a function in two processes that talk over gloo; neither outlives the call."""

import gc
import time
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed, multiprocessing

PRELOADED = ["famus_hf", "tests.helpers.trainers", "peft"]  # what most of a start takes, once for all calls


def run_in_two_processes(function, folder, timeout=100):
    """What `function(rank)` returned in each, tensors and plain containers of them. It must be importable by name."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    arguments = (function, str(folder), timeout)
    context = multiprocessing.start_processes(
        _run, arguments, nprocs=2, join=False, daemon=True, start_method="forkserver"
    )
    deadline = time.monotonic() + timeout
    try:
        while not context.join(timeout=max(0.0, deadline - time.monotonic())):  # raises what a process raised
            assert time.monotonic() < deadline, f"the processes were not done after {timeout} s"
    finally:
        for process in context.processes:
            process.kill()
            process.join()
    return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(2)]


def _run(rank, function, folder, timeout):
    gc.freeze()  # what is preloaded stays: a Trainer collects garbage whenever it trains
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2, timeout=timedelta(seconds=timeout)
    )
    try:
        torch.save(function(rank), Path(folder) / f"{rank}.pt")
    finally:
        distributed.destroy_process_group()
