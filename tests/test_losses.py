"""Losses: oracles, padding, and the ways to get them wrong."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from stprompt import losses as module
from stprompt.adapter import AdapterError
from stprompt.losses import (
    LossError,
    classification_loss,
    contrastive_loss,
    mil_align_loss,
    topk_mean,
    total_loss,
)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=5),
    extra=st.integers(0, 40),
    seed=st.integers(0, 99),
)
def test_topk_is_the_definition_whatever_the_padding(lengths, extra, seed):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(len(lengths), max(lengths) + extra, 2)).astype(np.float32)
    want = []
    for row, n in zip(scores, lengths): want.append(np.sort(row[:n], 0)[::-1][:n // 16 + 1].mean(0))
    found = topk_mean(torch.from_numpy(scores), torch.tensor(lengths))
    assert np.allclose(found.numpy(), np.stack(want), atol=1e-5)
    assert torch.allclose(topk_mean(torch.from_numpy(scores)[..., 0], torch.tensor(lengths)), found[:, 0])

@pytest.mark.parametrize("T, k", [(1, 1), (15, 1), (16, 2), (31, 2), (32, 3), (256, 17)])
def test_k(T, k):
    x = torch.arange(T, dtype=torch.float32)
    assert topk_mean(x[None]).item() == pytest.approx(x[-k:].mean().item())

def problem(pad=0, B=4, T=50, C=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([50, 31, 16, 2])
    output = SimpleNamespace(
        anomaly=torch.rand(B, T, generator=g),
        classes=torch.rand(B, T, 1 + C, generator=g) * 2 - 1,
        text=torch.randn(1 + C, 8, generator=g),
    )
    if pad:
        output.anomaly, output.classes = (
            F.pad(output.anomaly, (0, pad), value=0.9999),
            F.pad(output.classes, (0, 0, 0, pad), value=1.0),
        )
    return output, torch.tensor([[0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0]]), lengths

def test_padded_and_unpadded_agree():
    assert total_loss(*problem()).items() == pytest.approx(total_loss(*problem(pad=77)).items(), abs=1e-6)

def test_a_loss_that_sees_padding_fails_that_test(monkeypatch):
    "Breaks the mask on purpose."
    monkeypatch.setattr(
        module, "valid_mask", lambda lengths, T, B=1, device=None: torch.ones(B, T, dtype=torch.bool)
    )
    assert total_loss(*problem()).items() != pytest.approx(total_loss(*problem(pad=77)).items(), abs=1e-2)

def test_gradients_of_padding_are_zero_and_of_the_rest_finite():
    output, targets, lengths = problem(pad=5)
    for name in ("anomaly", "classes", "text"): getattr(output, name).requires_grad_()
    total_loss(output, targets, lengths).total.backward()
    for i, n in enumerate(lengths):
        assert (output.anomaly.grad[i, n:] == 0).all() and (output.classes.grad[i, n:] == 0).all()
    assert all(torch.isfinite(getattr(output, name).grad).all() for name in ("anomaly", "classes", "text"))

@pytest.mark.parametrize("p", [0., 1.])
def test_a_sure_mistake_costs_a_finite_price(p):
    a = torch.full((1, 3), p, requires_grad=True)
    loss = classification_loss(a, torch.tensor([1 - p]))
    loss.backward()
    assert loss.item() == pytest.approx(27.6, abs=.1) and torch.isfinite(a.grad).all()
    assert classification_loss(a, torch.tensor([p])).item() < 1e-4

@pytest.mark.parametrize("logit, label", [(-25., 1), (-15., 1), (15., 0)])
def test_a_sure_mistake_still_learns(logit, label):
    x = torch.full((1, 3), logit, requires_grad=True)
    classification_loss(x.sigmoid(), torch.tensor([label])).backward()
    assert x.grad.sum().item() == pytest.approx(
        1 - 2 * label, abs=0.2
    )  # p - y; coarse, for 1 - p has few bits left at 15


def test_nan_is_not_hidden():
    a = torch.full((2, 5), 0.5)
    a[0, 3] = torch.nan
    assert classification_loss(a, torch.tensor([1, 0])).isnan()
    m = torch.zeros(1, 5, 2)
    m[0, 0, 0] = torch.nan
    assert mil_align_loss(m, torch.tensor([[0, 1]])).isnan()

def test_contrastive_against_a_double_loop():
    text = torch.randn(6, 9, generator=torch.Generator().manual_seed(1))
    want = sum(
        max(0.0, F.cosine_similarity(text[i], text[j], 0).item())
        for i in range(6)
        for j in range(6)
        if i != j
    )
    assert contrastive_loss(text).item() == pytest.approx(want, abs=1e-5)

def test_half_precision_is_summed_in_float32():
    output, targets, lengths = problem()
    half = SimpleNamespace(**{k: v.half() for k, v in vars(output).items()})
    assert total_loss(half, targets, lengths).total.dtype == torch.float32
    assert total_loss(half, targets, lengths).total.item() == pytest.approx(
        total_loss(output, targets, lengths).total.item(), rel=1e-2
    )


def test_bad_input():
    output, targets, lengths = problem()
    with pytest.raises(LossError, match="targets"): mil_align_loss(output.classes, targets[:, :2])
    with pytest.raises(LossError, match="abnormal"): classification_loss(output.anomaly, torch.ones(2))
    for wrong in (torch.zeros_like(targets), targets - 1):
        with pytest.raises(LossError, match="a label on each video"): mil_align_loss(output.classes, wrong)
    with pytest.raises(LossError, match="tau"): mil_align_loss(output.classes, targets, tau=0.)
    with pytest.raises(LossError, match="sigmoid"):
        classification_loss(output.anomaly * 9 - 4, torch.ones(4))
    with pytest.raises(LossError, match="one_hot"): total_loss(output, targets[:, 0], lengths)
    with pytest.raises(AdapterError, match="each of 4 videos"): topk_mean(output.anomaly, torch.tensor([50]))
    assert mil_align_loss(output.classes, targets * 0.2).item() == pytest.approx(
        mil_align_loss(output.classes, targets).item()
    )
    with pytest.raises(LossError, match="branches"): total_loss(output, targets, lengths, branches="C")
    with pytest.raises(AdapterError, match="lengths"):
        topk_mean(output.anomaly, torch.tensor([50, 31, 16, 51]))
