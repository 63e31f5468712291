"""The U-Net: any size, rows that never meet, and what its indexing does."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from equipoise.models import UNet
from equipoise.models.errors import EquipoiseError
from equipoise.models.unet import repeated


def unet(dims, channels=2, **how):
    torch.manual_seed(0)
    return UNet(channels, **{"out_features": 3, "hidden": 4, "depth": 2, "dims": dims, **how}).double()


def pictures(dims, n=3, size=None, channels=2):
    size = size or (6, 5, 7)[:dims]
    return torch.randn(n, channels, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


SIZES = [(8, 8), (7, 5), (1, 1), (1, 9), (3, 2), (4, 6, 8), (5, 3, 7), (1, 1, 1), (1, 2, 3)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_map_has_the_size_of_its_picture(size, depth):
    model = unet(len(size), depth=depth)
    x = pictures(len(size), size=size).requires_grad_()
    found = model(x)
    assert found.shape == (3, 3, *size)
    assert found.isfinite().all()
    found.square().sum().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("dims", [2, 3])
def test_rows_never_influence_each_other(dims):
    model, x = unet(dims), pictures(dims, n=4)
    whole = model(x)
    for i in range(4):
        torch.testing.assert_close(model(x[i : i + 1])[0], whole[i], rtol=1e-12, atol=1e-13)
    other = x.clone()
    other[2] = torch.nan
    found = model(other)
    assert torch.equal(found[[0, 1, 3]], whole[[0, 1, 3]])
    order = torch.tensor([3, 1, 0, 2])
    torch.testing.assert_close(model(x[order]), whole[order], rtol=1e-12, atol=1e-13)
    # And in gradients: a row's loss moves only its own input.
    x.requires_grad_()
    [g] = torch.autograd.grad(model(x)[1].square().sum(), x)
    assert g[1].abs().max() > 0
    assert g[[0, 2, 3]].abs().max() == 0


@pytest.mark.parametrize("dims", [2, 3])
def test_no_rows(dims):
    model = unet(dims)
    found = model(pictures(dims, n=0))
    assert found.shape == (0, 3, *(6, 5, 7)[:dims])
    found.sum().backward()


def test_training_and_eval_mode_are_one():
    model, x = unet(2), pictures(2)
    assert torch.equal(model.train()(x), model.eval()(x))


def test_repeated_is_nearest_interpolation_cut_to_size():
    x = pictures(3, size=(3, 2, 4))
    for size in ((6, 4, 8), (5, 4, 7), (5, 3, 8)):
        wanted = F.interpolate(x, scale_factor=2, mode="nearest")[..., : size[0], : size[1], : size[2]]
        assert torch.equal(repeated(x, size), wanted)


def test_depth_one_by_hand():
    model, x = unet(2, depth=1), pictures(2, size=(5, 3))

    def double(block, x):
        for first in (0, 3):
            x = F.conv2d(x, block[first].weight, block[first].bias, padding=1)
            x = F.group_norm(x, block[first + 1].num_groups, block[first + 1].weight, block[first + 1].bias).clamp(
                min=0
            )
        return x

    top = double(model.down[0], x)
    # Maxima of 2 x 2 corners; the last row and column of an odd size alone.
    padded = F.pad(top, (0, 1, 0, 1), value=-np.inf)
    pooled = torch.stack([padded[..., a::2, b::2] for a in (0, 1) for b in (0, 1)]).amax(dim=0)
    low = double(model.down[1], pooled)
    rows, columns = torch.arange(5) // 2, torch.arange(3) // 2
    up = low[:, :, rows][:, :, :, columns]
    joined = double(model.up[0], torch.cat([top, up], dim=1))
    torch.testing.assert_close(model(x), F.conv2d(joined, model.out.weight, model.out.bias), rtol=1e-12, atol=1e-13)


def test_widths_double_and_the_size_is_declared():
    model = UNet(1, out_features=5, hidden=4, depth=3, dims=2)
    assert [block[0].out_channels for block in model.down] == [4, 8, 16, 32]
    assert model.out_features == 5
    assert isinstance(model.out, nn.Conv2d)


@pytest.mark.parametrize("dims", [1, 4])
def test_other_dimensions_are_a_sentence(dims):
    with pytest.raises(EquipoiseError) as error:
        UNet(1, dims=dims)
    assert str(error.value) == f"UNet is for pictures (dims=2) and volumes (dims=3), not dims={dims}."
