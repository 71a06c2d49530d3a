"""Processes that tests start: forks of one server, which has loaded what takes longest."""

import multiprocessing
import multiprocessing.forkserver
import sys
from multiprocessing.context import ForkServerContext, SpawnContext

# PyTorch loads its compiler, torch._dynamo, with the first optimizer, and that takes as long as all else of PyTorch.
# This package is not among them: the server may start in a folder from where it finds another copy, or none.
LOADED = ["torch", "torch._dynamo", "captum.attr"]


def forkserver() -> ForkServerContext | SpawnContext:
    """The server runs, so that no other library has it load something else.

    What has a pretended GPU has it from the start, and is no server for processes that use one.
    """
    if "pretend_device" in sys.modules:
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    multiprocessing.forkserver.ensure_running()
    return context
