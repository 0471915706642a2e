"""What replaces the engine's own functions in a trace says the same."""

import pytest
import torch

from accelerator.engines.vits.traceable import attend, spline_back
from tests.engines.vits.tiny import modeling_vits

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


@torch.inference_mode()
def test_splines_are_those_of_the_engine():
    random = torch.Generator().manual_seed(0)
    y = 4 * torch.randn(1, 1, 400, generator=random)  # some beyond the bound
    y[0, 0, :2] = torch.tensor([-5.0, 5.0])
    widths, heights = (torch.randn(1, 1, 400, 10, generator=random) for _ in range(2))
    slopes = torch.randn(1, 1, 400, 9, generator=random)
    expected, _ = modeling_vits._unconstrained_rational_quadratic_spline(
        y, widths, heights, slopes, reverse=True, tail_bound=5.0
    )
    torch.testing.assert_close(spline_back(y, widths, heights, slopes, 5.0), expected, atol=1e-4, rtol=1e-4)
    assert (y.abs() > 5).any()


@torch.inference_mode()
@pytest.mark.parametrize("length", [1, 3, 4, 5, 40])
def test_attention_is_that_of_the_engine(engine, length):
    own = engine.model.text_encoder.encoder.layers[0].attention
    x = torch.randn(1, length, 32, generator=torch.Generator().manual_seed(length))
    torch.testing.assert_close(attend(own, x)[0], own(x)[0], atol=1e-5, rtol=1e-5)
