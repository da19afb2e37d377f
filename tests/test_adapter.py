"""The adapter: parity of its two forms, padding, memory, gradients, and a broken one that fails."""

import re
import subprocess
import sys
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stprompt import adapter as module
from stprompt.adapter import (
    AdapterError,
    AdapterKind,
    AdapterOptions,
    TemporalAdapter,
    decay,
    distance_attention,
    distance_average,
    valid_mask,
)

KINDS = get_args(AdapterKind)


def oracle(x, n, sigma):
    "The definition, in numpy's float64, for one video."
    place = np.arange(n)
    weight = np.exp(-np.abs(place[:, None] - place) / sigma)
    return weight / weight.sum(1, keepdims=True) @ x[:n].double().numpy()


@settings(max_examples=40, deadline=None)
@given(
    T=st.integers(1, 400),
    n=st.integers(1, 400),
    sigma=st.sampled_from([0.01, 0.07, 0.3, 1.0, 2.718, 5.0, 60.0, 1e4, 1e6]),
    seed=st.integers(0, 99),
)
def test_both_forms_are_the_definition(T, n, sigma, seed):
    n = min(n, T)
    x = torch.randn(2, T, 3, generator=torch.Generator().manual_seed(seed))
    for linear in (False, True):
        y = distance_average(x, torch.tensor([n, T]), sigma, linear)
        assert np.abs(y[0, :n].numpy() - oracle(x[0], n, sigma)).max() < 1e-5
        assert np.abs(y[1].numpy() - oracle(x[1], T, sigma)).max() < 1e-5
        assert (y[0, n:] == 0).all()

def test_a_broken_filter_fails_the_bound(monkeypatch):
    "The bound of 1e-5 is one that a wrong normaliser and a lost carry both break."
    x = torch.randn(1, 300, 3, generator=torch.Generator().manual_seed(0))
    want = oracle(x[0], 300, 5.)
    gap = lambda: np.abs(distance_average(x, None, 5.)[0].numpy() - want).max()
    assert gap() < 1e-5
    right = module.normaliser
    monkeypatch.setattr(
        module,
        "normaliser",
        lambda mask, rate, dtype=torch.float32: right(mask, rate).max().expand(mask.shape),
    )
    assert gap() > 1e-2
    monkeypatch.setattr(module, "normaliser", right)
    assert gap() < 1e-5
    no_carry = lambda x, rate: torch.cat([decay(part, rate) for part in x.split(module.BLOCK, 1)], 1)
    monkeypatch.setattr(module, "decay", no_carry)
    assert gap() > 1e-2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("linear", [False, True])
def test_padding_changes_nothing(kind, linear):
    torch.manual_seed(0)
    model, x = TemporalAdapter(16, AdapterOptions(kind=kind, layers=2)), torch.randn(3, 150, 16)
    lengths = torch.tensor([150, 90, 1])
    for row, n in enumerate(lengths.tolist()): x[row, n:] = torch.nan            # padding is never read
    y = model(x, lengths, linear)
    for row, n in enumerate(lengths.tolist()):
        assert torch.allclose(y[row, :n], model(x[row:row + 1, :n], linear=linear)[0], atol=1e-5)
        assert (y[row, n:] == 0).all()

@pytest.mark.parametrize("kind", KINDS[1:])
def test_gradients_reach_every_parameter_and_agree(kind):
    torch.manual_seed(0)
    model, x = TemporalAdapter(16, AdapterOptions(kind=kind, sigma=5.)), torch.randn(2, 130, 16)
    grads = []
    for linear in (False, True):
        model.zero_grad()
        model(x, torch.tensor([130, 70]), linear).pow(3).sum().backward()
        assert all(
            p.grad is not None and p.grad.abs().sum() > 0
            for name, p in model.named_parameters()
            if "norm2.bias" not in name
        )
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.allclose(*grads, rtol=1e-3, atol=1e-3 * grads[0].abs().max().item())

def test_half_precision_keeps_its_type():
    x = torch.randn(1, 500, 8).to(torch.bfloat16)
    assert distance_average(x, None, 5.).dtype == torch.bfloat16
    assert (distance_average(x, None, 5.).float() - distance_average(x.float(), None, 5.)).abs().max() < 2e-2

def test_65536_frames_in_bounded_memory():
    "In its own process: the peak grows by a few copies of the input, not by T x T (17 GB)."
    code = (
        "import resource, torch; from stprompt.adapter import TemporalAdapter; torch.set_num_threads(1); "
        "m = TemporalAdapter(64).eval(); x = torch.randn(1, 65536, 64)\n"
        "with torch.no_grad():\n m(x[:, :2048]); before = "
        "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; y = m(x)\n"
        "assert torch.isfinite(y).all(); print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - "
        "before) / 1024 / (65536 * 64 * 4 / 2**20))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1500:]
    assert float(done.stdout) < 20, "copies of the input"       # the FFN alone is 4 wide, twice

@pytest.mark.parametrize(
    "bad, word",
    [
        (dict(kind="x"), "kind='x': choose one of none, distance, self_attention, both"),
        (dict(sigma=0), "sigma=0: expected a number above 0"),
        (dict(sigma=float("nan")), "sigma"),
        (dict(sigma=float("inf")), "sigma"),
        (dict(layers=0), "layers"),
        (dict(layers=True), "layers"),
        (dict(heads=1.5), "heads"),
        (dict(expansion=0), "expansion"),
        (dict(kinds="none"), "did you mean kind?"),
    ],
)
def test_bad_options(bad, word):
    with pytest.raises(AdapterError, match=re.escape(word)): AdapterOptions(**bad)

def test_bad_lengths():
    for lengths in ([0], [9], [[1]]):
        with pytest.raises(AdapterError, match="lengths"): valid_mask(lengths, 8)
    for wrong in ([5], [5, 5, 5]):
        with pytest.raises(AdapterError, match="each of 2 videos"):
            TemporalAdapter(8)(torch.zeros(2, 9, 8), torch.tensor(wrong))
    for shape in ((3, 8), (1, 3, 9)):
        with pytest.raises(AdapterError, match="D = 8"): TemporalAdapter(8)(torch.zeros(shape))

def test_reversed_time_is_reversed_output():
    torch.manual_seed(0)
    model, x = TemporalAdapter(8), torch.randn(1, 90, 8)
    assert torch.allclose(model(x).flip(1), model(x.flip(1)), atol=1e-5)
    assert torch.allclose(distance_attention([5])[0].sum(1), torch.ones(5))


# ---- fast, and the same ---------------------------------------------------------------------------------
def grads(y, *of):
    "Gradients of a sum of squares."
    return torch.autograd.grad(y.square().sum(), of)


@pytest.mark.parametrize("shape", [(300, 256), (3, 70, 256), (1, 1, 512)])
def test_the_fused_ffn_is_the_ffn(shape):
    torch.manual_seed(0)
    layer, x = module.ffn(shape[-1]), torch.randn(shape, requires_grad=True)
    assert layer[0].out_features >= module.WIDE
    fused, plain = module.feed_forward(x, layer), layer(x)
    assert torch.allclose(fused, plain, atol=1e-6)
    for ours, theirs in zip(grads(fused, x, *layer.parameters()), grads(plain, x, *layer.parameters())):
        assert ours.shape == theirs.shape and (ours - theirs).abs().max() <= 2e-6 * theirs.abs().max()


def test_the_fused_gradient_is_a_gradient():
    torch.manual_seed(0)
    sizes = (3, 4), (6, 4), (6,), (4, 6), (4,)
    inputs = [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in sizes]
    assert torch.autograd.gradcheck(module.FusedFFN.apply, inputs)


def test_narrow_layers_are_torchs_own():
    torch.manual_seed(0)
    layer, x = module.ffn(64), torch.randn(2, 9, 64)
    assert torch.equal(module.feed_forward(x, layer), layer(x))


def test_far_frames_weigh_exactly_nothing():
    weights = module.distance_attention(torch.tensor([256, 40]))
    assert weights[0, 0, 69:].count_nonzero() <= 1 and weights[0, 0, 60] > 0
    assert (weights[weights > 0] > 1e-30).all() and torch.allclose(weights.sum(-1), torch.ones(2, 256))
    x = torch.randn(2, 256, 8, generator=torch.Generator().manual_seed(0))
    place = torch.arange(256.)
    exact = (-(place[:, None] - place).abs()).softmax(-1) @ x[:1]
    assert torch.equal(module.distance_average(x[:1], linear=False), exact)
