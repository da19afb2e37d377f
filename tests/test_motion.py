"""The motion prior and SA2: the paper's equations in plain loops, rows of one's own, streaming against
the whole, ties, NaN, and a broken one that the bounds catch."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stprompt import motion as module
from stprompt.motion import (
    AGGREGATES,
    MotionError,
    Spatial,
    StreamingMotion,
    aggregate,
    motion_prior,
    select,
    spatial_names,
)
from stprompt.options import Options, options


def walk(T=9, h=3, w=4, D=5, seed=0, scale=1.0):
    return torch.randn(T, h, w, D, generator=torch.Generator().manual_seed(seed)) * scale


def prior_by_loops(x):
    "Eq. 1, one window at a time; an end takes its one neighbour twice."
    x, T = x.double().numpy(), len(x)
    out = np.zeros(x.shape[:3])
    for i in range(T):
        before, after = (i - 1 if i else min(1, T - 1)), (i + 1 if i < T - 1 else max(T - 2, 0))
        for r in range(x.shape[1]):
            for c in range(x.shape[2]):
                three = zip(x[i, r, c], x[before, r, c], x[after, r, c])
                out[i, r, c] = math.sqrt(sum((2 * a - b - d) ** 2 for a, b, d in three))
    return out

def sa2_by_loops(x, mo, k):
    "Eq. 2-3, one frame at a time, in plain Python."
    rows = []
    for windows, moved in zip(x.flatten(1, 2).tolist(), mo.flatten(1).tolist()):
        top = sorted(range(len(moved)), key=lambda n: -moved[n])[:k]
        weight = [math.exp(moved[n] - moved[top[0]]) for n in top]
        rows.append([sum(a * windows[n][d] for a, n in zip(weight, top)) / sum(weight)
                     for d in range(len(windows[0]))])
    return rows

def streamed(x, sizes):
    stream, pieces, at = StreamingMotion(), [], 0
    for n in sizes:
        pieces.append(stream.feed(x[at:at + n]))
        at += n
    assert at == len(x)
    pieces.append(stream.close())
    return torch.cat([p for p, _ in pieces]), torch.cat([m for _, m in pieces])


# ---- the equations ------------------------------------------------------------------------------------
@settings(max_examples=40, deadline=None)
@given(
    T=st.integers(1, 9),
    h=st.integers(1, 3),
    w=st.integers(1, 4),
    D=st.integers(1, 6),
    k=st.integers(1, 12),
    seed=st.integers(0, 999),
)
def test_the_papers_equations(T, h, w, D, k, seed):
    x, k = walk(T, h, w, D, seed), min(k, h * w)
    mo = motion_prior(x)
    assert np.abs(mo.numpy() - prior_by_loops(x)).max() < 1e-5
    assert np.abs(aggregate(x, mo, k).numpy() - np.array(sa2_by_loops(x, mo, k))).max() < 1e-5
    assert torch.allclose(aggregate(x, mo, k, "attention"), aggregate(x, mo, h * w, "sa2"), atol=1e-5)
    assert torch.allclose(aggregate(x, mo, k, "average"), x.flatten(1, 2).mean(1), atol=1e-6)
    assert torch.allclose(aggregate(x, mo, 1, "sa2"), aggregate(x, mo, 1, "selection_average"), atol=1e-6)
    assert aggregate(x, mo, k, "none").shape == (T, D) and not aggregate(x, mo, k, "none").any()

def test_a_case_for_paper():
    "Three frames, two windows, one channel: (0, 1), (3, 1), (0, 5)."
    x = torch.tensor([[0., 1.], [3., 1.], [0., 5.]]).view(3, 1, 2, 1)
    mo = motion_prior(x)
    assert mo.view(3, 2).tolist() == [[6, 0], [6, 4], [6, 8]]
    assert aggregate(x, mo, 1).flatten().tolist() == [0, 3, 5]  # the one that moves most
    assert aggregate(x, mo, 2, "average").flatten().tolist() == [.5, 2, 2.5]
    e2, e6 = math.exp(2), math.exp(6)
    want = [(0 * e6 + 1) / (e6 + 1), (3 * e2 + 1) / (e2 + 1), (0 + 5 * e2) / (1 + e2)]
    assert torch.allclose(aggregate(x, mo, 2).flatten(), torch.tensor(want), atol=1e-6)

def test_a_broken_prior_fails_the_bound(monkeypatch):
    x = walk()
    gap = lambda: np.abs(motion_prior(x).numpy() - prior_by_loops(x)).max()
    right = module.second_difference
    assert gap() < 1e-5
    for wrong in (
        lambda b, n, a: (n - b).norm(dim=-1),
        lambda b, n, a: (2 * n - b - a).abs().mean(-1),
        lambda b, n, a: torch.nn.functional.normalize(2 * n - b - a, dim=-1).norm(dim=-1),
    ):
        monkeypatch.setattr(module, "second_difference", wrong)
        assert gap() > 0.1
    monkeypatch.setattr(module, "second_difference", right)
    assert gap() < 1e-5


def test_ties_go_by_window_order():
    "Where nothing moves the choice must not depend on the machine: the first K windows."
    x = walk(2, 3, 3, 2)
    chosen, top = select(x, torch.zeros(2, 3, 3), 4)
    assert torch.equal(chosen, x.flatten(1, 2)[:, :4]) and not top.any()
    assert torch.allclose(aggregate(x, torch.zeros(2, 3, 3), 4), x.flatten(1, 2)[:, :4].mean(1))

def test_large_motion_does_not_overflow():
    x = walk(5, scale=1e4)
    for mode in ("sa2", "attention"): assert torch.isfinite(aggregate(x, motion_prior(x), 5, mode)).all()


def test_sa2_follows_a_small_square():
    "A bright window walks over a still wall: SA2 with K = 2 holds it, the average of all hardly."
    x = torch.zeros(8, 7, 7, 2)
    x[..., 0] = 1.0
    for t in range(8): x[t, 2, min(t, 6)] = torch.tensor([0., 5.])
    mo = motion_prior(x)
    assert (aggregate(x, mo, 2)[1:6, 1] > 2 * aggregate(x, mo, 2, "average")[1:6, 1]).all()

def test_no_parameters_and_a_gradient():
    x = walk().requires_grad_()
    for mode in AGGREGATES:
        x.grad = None
        aggregate(x, motion_prior(x), 5, mode).sum().backward()
        assert torch.isfinite(x.grad).all() and x.grad.abs().sum() > 0, mode


# ---- rows of one's own --------------------------------------------------------------------------------
@options
class Row(Options, error=MotionError): spatial: Spatial = "sa2"


def test_the_rows_of_table_5_stand_in_its_order():
    assert spatial_names() == ("none", "average", "attention", "selection_average", "sa2", "sa2_motion")
    assert [Row(name).spatial for name in spatial_names()] == list(spatial_names())

def test_a_row_of_ones_own_is_one_line(monkeypatch):
    "The names and the options know it at once, and no longer when it is gone."
    x = walk()
    with monkeypatch.context() as patch:
        patch.setitem(AGGREGATES, "first", lambda windows, motion, k: windows[:, 0, 0] * k)
        assert spatial_names()[-1] == "first" and Row("first").spatial == "first"
        assert torch.equal(aggregate(x, motion_prior(x), 3, "first"), x[:, 0, 0] * 3)
    for call in (lambda: Row("first"), lambda: aggregate(x, motion_prior(x), 3, "first")):
        with pytest.raises(MotionError, match="'first': choose one of none, average"): call()
    with pytest.raises(MotionError, match="spatial=3: expected a text, found int"): Row(spatial=3)

def test_a_row_that_gives_no_vector_a_frame_is_refused(monkeypatch):
    monkeypatch.setitem(AGGREGATES, "wrong", lambda windows, motion, k: windows.mean(1))
    with pytest.raises(MotionError, match=r"mode='wrong': .* \[9, 5\], found \[9, 4, 5\]"):
        aggregate(walk(), motion_prior(walk()), mode="wrong")


# ---- streaming ----------------------------------------------------------------------------------------
@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 6), min_size=1, max_size=7).filter(lambda s: sum(s) > 0),
    seed=st.integers(0, 99),
)
def test_streaming_is_the_whole(sizes, seed):
    x = walk(sum(sizes), 2, 3, 4, seed)
    windows, mo = streamed(x, sizes)
    assert torch.equal(windows, x) and torch.equal(mo, motion_prior(x))

def test_chunks_without_overlap_would_differ():
    "What StreamingMotion is for: cutting into chunks and treating each as a video is another result."
    x = walk(10)
    assert (torch.cat([motion_prior(part) for part in x.split(5)]) - motion_prior(x)).abs().max() > .1

def test_streaming_holds_two_frames_only():
    stream = StreamingMotion()
    for _ in range(50): stream.feed(walk(32))
    assert sum(len(v) for v in (stream.before, stream.held)) == 2


# ---- faults -------------------------------------------------------------------------------------------
def test_nan_stays_where_it_is():
    "A broken frame spoils itself and its neighbours, and is not silently averaged away."
    x = walk(9)
    x[4, 1, 1, 0] = torch.nan
    bad = motion_prior(x).isnan().flatten(1).any(1)
    assert bad.tolist() == [False] * 3 + [True] * 3 + [False] * 3
    for mode in ("average", "attention"):
        found = aggregate(x, motion_prior(x), 5, mode)
        assert found[4].isnan().any() and torch.isfinite(found[[0, 1, 2, 6, 7, 8]]).all()
    # NaN sorts first: it is selected, and seen
    assert aggregate(x, motion_prior(x), 5)[3:6].isnan().any(1).all()


@pytest.mark.parametrize(
    "windows",
    [torch.zeros(3, 2, 2), torch.zeros(3, 4, 4, 2, dtype=torch.int64), torch.zeros(2, 2)],
    ids=["3 axes", "integers", "2 axes"],
)
def test_window_features_of_the_wrong_kind(windows):
    for call in (
        lambda: motion_prior(windows),
        lambda: aggregate(windows, torch.zeros(3, 4, 4)),
        lambda: StreamingMotion().feed(windows),
    ):
        with pytest.raises(MotionError, match=r"expected floats \[T, h, w, D\]"): call()

@pytest.mark.parametrize("k", [0, -1, 13])
def test_k_out_of_range(k):
    with pytest.raises(MotionError, match=f"k={k}: expected 1 to 12"):
        aggregate(walk(), motion_prior(walk()), k)


def test_other_faults():
    x = walk()
    with pytest.raises(MotionError, match="mode='max': choose one of none, average"):
        aggregate(x, motion_prior(x), mode="max")
    with pytest.raises(MotionError, match="one number a window"): aggregate(x, motion_prior(x)[:4], 5)
    with pytest.raises(MotionError, match="no frames were fed"): StreamingMotion().close()
    stream = StreamingMotion()
    stream.feed(x)
    with pytest.raises(MotionError, match="one stream is one video"): stream.feed(walk(h=2))
