"""Processes that tests start: forks of one server, which has loaded what takes longest."""

import multiprocessing
import multiprocessing.forkserver
from multiprocessing.context import ForkServerContext

# PyTorch loads its compiler, torch._dynamo, with the first optimizer, and that takes as long as all else of PyTorch.
# This package is not among them: the server may start in a folder from where it finds another copy, or none.
LOADED = ["torch", "torch._dynamo", "captum.attr"]


def forkserver() -> ForkServerContext:
    """The server runs, so that no other library has it load something else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    multiprocessing.forkserver.ensure_running()
    return context
