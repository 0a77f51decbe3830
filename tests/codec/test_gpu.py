"""On a CUDA device: the same words as on a CPU, and streams that decode on either."""

from __future__ import annotations

import pytest
import torch

from pipeline.codec import CCAConfig, CCAModel
from tests.codec.conftest import make_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(params=["small", "paper"])
def pair(request: pytest.FixtureRequest, small_config: CCAConfig) -> tuple[CCAModel, CCAModel]:
    """The same model on the CPU and on the device."""
    config = small_config if request.param == "small" else CCAConfig()
    return make_model(config), make_model(config).cuda()


def test_the_exact_networks_give_the_same_words(pair: tuple[CCAModel, CCAModel]) -> None:
    here, there = pair
    with torch.no_grad():
        output = here(torch.rand(1, 3, 192, 256))
    one = here.coder().encode(output.y)
    other = there.coder().encode(output.y.cuda())
    assert one.words.tobytes() == other.words.tobytes()
    assert torch.equal(one.y_hat, other.y_hat.cpu())


def test_streams_decode_on_the_other_device(pair: tuple[CCAModel, CCAModel]) -> None:
    here, there = pair
    x = torch.rand(1, 3, 100, 150)
    for maker, reader in ((here, there), (there, here)):
        data = maker.compress(x)
        own, other = maker.decompress(data), reader.decompress(data)
        # The symbols are checked inside; pixels come from a synthesis in floating point.
        assert (own - other).abs().max() < 1e-2
