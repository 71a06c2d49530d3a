"""Settings of the process stay while a thread is within and go with the last, in whatever order threads leave."""

import pytest
import torch
from torch.backends.cuda import flash_sdp_enabled

from captum_density._model.shared_settings import EAGER_CODE, PLAIN_ATTENTION


def compiles():
    """Whether a function that torch.compile has taken is compiled when it runs."""
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    torch.compile(lambda x: x + 1, backend=backend)(torch.ones(1))
    return bool(graphs)


@pytest.mark.parametrize(("setting", "as_usual"), [(EAGER_CODE, compiles), (PLAIN_ATTENTION, flash_sdp_enabled)])
def test_the_last_to_leave_takes_it_back(setting, as_usual):

    assert as_usual()
    setting.__enter__()
    setting.__enter__()
    assert not as_usual()
    setting.__exit__(None, None, None)
    assert not as_usual()
    setting.__exit__(None, None, None)
    assert as_usual()
