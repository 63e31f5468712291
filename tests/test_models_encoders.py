"""Encoders: padding is never read, rows do not see each other, empty sequences and zero rows are finite."""

import pytest
import torch
from torch import nn

from equipoise.models import GRU, MLP, CNN1d, CNN2d, EmbeddingGRU

STEPS = 7
ENCODERS = {
    "mlp": (lambda: MLP((STEPS, 3), (16,), 8), (STEPS, 3), True),
    "cnn1d": (lambda: CNN1d(3, 8, hidden=16), (STEPS, 3), True),
    "cnn1d_deep": (lambda: CNN1d(3, 8, hidden=16, depth=4, kernel=3), (STEPS, 3), True),
    "cnn2d": (lambda: CNN2d(2, 8, hidden=8), (2, 9, 5), False),
    "gru": (lambda: GRU(3, 8), (STEPS, 3), True),
    "gru_deep": (lambda: GRU(3, 8, depth=2), (STEPS, 3), True),
    "embedding_gru": (lambda: EmbeddingGRU(20, 6, 8), (STEPS,), True),
}
SEQUENCES = [name for name, (_, _, has_length) in ENCODERS.items() if has_length]


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return ENCODERS[name][0]()


def rows(name: str, n: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = ENCODERS[name][1]
    if name.startswith("embedding"):
        return torch.randint(1, 20, (n, *shape), generator=generator)
    return torch.randn(n, *shape, generator=generator)


@pytest.mark.parametrize("name", ENCODERS)
def test_one_feature_a_row_and_rows_do_not_see_each_other(name):
    encoder, x = build(name), rows(name, 6)
    length = torch.tensor([3, 7, 1, 0, 5, 7]) if name in SEQUENCES else None
    out = encoder(x, length)
    assert out.shape == (6, encoder.out_features) == (6, 8)
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    permuted = encoder(x[order], None if length is None else length[order])
    torch.testing.assert_close(permuted, out[order], rtol=0, atol=1e-6)
    alone = torch.cat([encoder(x[i : i + 1], None if length is None else length[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(alone, out, rtol=0, atol=1e-6)
    assert not [m for m in encoder.modules() if isinstance(m, nn.Dropout | nn.modules.batchnorm._BatchNorm)]


@pytest.mark.parametrize("name", SEQUENCES)
def test_padding_is_never_read(name):
    encoder, x = build(name), rows(name, 4)
    length = torch.tensor([3, 7, 1, 0])
    padding = torch.arange(STEPS) >= length[:, None]
    garbage = x.clone()
    garbage[padding] = 10**9 if name.startswith("embedding") else float("nan")
    clean, dirty = encoder(x, length), encoder(garbage, length)
    assert torch.equal(clean, dirty)
    expected = torch.autograd.grad(clean.square().sum(), list(encoder.parameters()))
    found = torch.autograd.grad(dirty.square().sum(), list(encoder.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("name", [n for n in SEQUENCES if n != "mlp"])
def test_a_padded_sequence_is_the_sequence(name):
    encoder, x = build(name), rows(name, 3)
    for n in range(1, STEPS + 1):
        padded = encoder(x, torch.full((3,), n))
        torch.testing.assert_close(padded, encoder(x[:, :n], torch.full((3,), n)), rtol=0, atol=1e-6)
        torch.testing.assert_close(padded, encoder(x[:, :n]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", SEQUENCES)
def test_empty_sequences_are_finite_in_values_and_gradients(name):
    encoder, x = build(name), rows(name, 3)
    out = encoder(x, torch.zeros(3, dtype=torch.int64))
    assert out.isfinite().all()
    assert torch.equal(out[0], out[1])
    if "gru" in name:
        assert not out.any()
    out.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


@pytest.mark.parametrize("name", ENCODERS)
def test_zero_rows(name):
    encoder = build(name)
    length = torch.zeros(0, dtype=torch.int64) if name in SEQUENCES else None
    out = encoder(rows(name, 0), length)
    assert out.shape == (0, 8)
    out.sum().backward()


@pytest.mark.parametrize("size", [1, 2, 3, 28])
def test_cnn2d_keeps_a_single_pixel(size):
    torch.manual_seed(0)
    encoder = CNN2d(1, 8)
    x = torch.randn(1, 1, size, size)
    assert not torch.equal(encoder(x), encoder(2 * x + 1))
