"""ReLU and dropout in one, on the CPU: how much is dropped, what flows back, and that a seed decides it."""

import pytest
import torch
from torch.func import vmap

from wsi_mil.models.dropout import ReluDropout


def layer(p):
    return ReluDropout(p).train()


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_part_p_of_the_positive_values_is_0_and_the_others_are_scaled_up(p, dtype):
    torch.manual_seed(0)
    x = torch.randn(1001, 333).to(dtype)  # not a multiple of the four numbers of a word
    y = layer(p)(x)
    kept = y[x > 0] != 0
    error = (p * (1 - p) / kept.numel()) ** 0.5
    assert float(kept.float().mean()) == pytest.approx(1 - p, abs=5 * error)
    assert not y[x <= 0].any()
    torch.testing.assert_close(y[y != 0], (x[y != 0] / (1 - p)).to(dtype), rtol=1e-2, atol=0)


def test_rows_and_columns_are_dropped_independently():
    torch.manual_seed(0)
    dropped = (layer(0.5)(torch.ones(4000, 64)) == 0).float()
    assert float(dropped.mean(dim=0).std()) == pytest.approx((0.25 / 4000) ** 0.5, rel=0.4)
    assert float(dropped.mean(dim=1).std()) == pytest.approx((0.25 / 64) ** 0.5, rel=0.1)
    neighbours = torch.corrcoef(torch.stack((dropped[:, :-1].flatten(), dropped[:, 1:].flatten())))
    assert abs(float(neighbours[0, 1])) < 0.01


def test_the_gradient_flows_where_something_came_out():
    torch.manual_seed(0)
    x = torch.randn(50, 31, requires_grad=True)
    y = layer(0.25)(x)
    weight = torch.randn(50, 31)
    (y * weight).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.where(y > 0, weight / 0.75, 0.0))


def test_nothing_is_dropped_when_predicting_or_at_0():
    x = torch.randn(40, 8)
    assert torch.equal(ReluDropout(0.5).eval()(x), x.relu())
    assert torch.equal(layer(0.0)(x), x.relu())


def test_what_is_no_number_stays_none():
    assert layer(0.5)(torch.full((1000,), torch.nan)).isnan().all()


def test_a_seed_decides_what_is_dropped():
    x = torch.ones(100, 10)
    first, second, other = (layer(0.5)(x) for seed in (1, 1, 2) if torch.manual_seed(seed))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_networks_side_by_side_drop_different_values():
    torch.manual_seed(0)
    x_MTH = torch.ones(3, 400, 50, requires_grad=True)
    y_MTH = vmap(layer(0.25), randomness="different")(x_MTH)
    y_MTH.sum().backward()
    assert x_MTH.grad is not None
    torch.testing.assert_close(x_MTH.grad, y_MTH.detach())
    assert (y_MTH == 0).float().mean(dim=(1, 2)).tolist() == pytest.approx([0.25] * 3, abs=0.02)
    assert not torch.equal(y_MTH[0], y_MTH[1])
