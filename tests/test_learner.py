"""Training: it learns, repeats, resumes, stops with a reason, and scores any length in any batch."""

import dataclasses
import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from torch import nn

from stprompt import learner, model
from stprompt.features import VideoFeatures
from stprompt.learner import (
    History,
    LearnerError,
    LearnerOptions,
    class_scores,
    collate,
    epoch_batches,
    make_examples,
    score_video,
    score_videos,
    shrink,
    train_model,
    use,
)
from stprompt.losses import total_loss
from stprompt.model import ModelError, STPrompt, STPromptOptions

CLASSES = {"Normal": "normal", "zebra": "a zebra", "Fire": "fire"}  # not in alphabetical order, on purpose
D = 16


class ToyCLIP(nn.Module):
    "Words become vectors; a frozen tower mixes each with the context."
    token_width, dim = 12, D
    def __init__(self, seed=0):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.tower = nn.Parameter(torch.randn(12, D, generator=g), requires_grad=False)
        self.identity = {"name": "toy", "weights": "random", "sha256": f"{seed:064d}"}
    def prompts(self, context, texts):
        words = torch.stack(
            [torch.randn(12, generator=torch.Generator().manual_seed(sum(map(ord, t)))) for t in texts]
        )
        return torch.tanh(words + context.sum(0)) @ self.tower

def make(seed=0, **changes):
    torch.manual_seed(seed)
    return STPrompt(STPromptOptions(**({"dim": D, "token_width": 12, "classes": CLASSES} | changes)))

def features(frame, stride=4):
    T = len(frame)
    return VideoFeatures(
        frame, np.arange(T) * stride, np.arange(T) / 6, T * stride - 1, 25.0, (24, 32), {"sa2": frame * 1.1}
    )


def synthetic(n, seed=0):
    "n videos, half normal, a quarter of each class, and the truth of every frame."
    g, fixed = np.random.default_rng(seed), np.random.default_rng(9)
    common, directions = fixed.normal(size=D), dict(zip(CLASSES, [0, *fixed.normal(size=(2, D)) * 2]))
    videos, truth = [], {}
    for i in range(n):
        T, label = int(g.integers(20, 50)), ("Normal", "zebra", "Normal", "Fire")[i % 4]
        on = np.zeros(T, bool)
        start = g.integers(0, T - 10)
        on[start : start + 10] = label != "Normal"
        f = features(
            torch.tensor(
                common + 0.5 * g.normal(size=(T, D)) + on[:, None] * directions[label], dtype=torch.float32
            )
        )
        videos.append((f"v{i}", f, (label,)))
        truth[f"v{i}"] = f.to_frames(on)
    return videos, truth

TRAIN, (TEST, TRUTH) = synthetic(48)[0], synthetic(32, seed=1)
FAST = LearnerOptions(epochs=25, lr=3e-3, batch=24)

def auc(model):
    scores = score_videos(model, {id: f for id, f, _ in TEST})
    return roc_auc_score(
        np.concatenate([TRUTH[id] for id in scores]), np.concatenate([scores[id] for id in scores])
    )


def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

pytestmark = pytest.mark.usefixtures("one_thread")


# ---- it learns, and a broken one does not -------------------------------------------------------------
@pytest.mark.parametrize("branches", ["both", "classification", "alignment"])
def test_it_learns(branches):
    model = make(branches=branches)
    assert auc(model.store_text(ToyCLIP())) < .9
    train_model(model, ToyCLIP(), TRAIN, FAST)
    assert auc(model) > .95

# ways to break a training: given monkeypatch, each returns the videos to train on
def turned_around(m):
    return [(id, f, ("Fire",) if labels == ("Normal",) else ("Normal",)) for id, f, labels in TRAIN]


def other_labels(m):
    order = np.random.default_rng(3).permutation(len(TRAIN))
    return [(id, f, TRAIN[j][2]) for (id, f, _), j in zip(TRAIN, order)]


def shifted_scores(m):
    m.setattr(STPrompt, "scores", lambda self, out: (1 - self.probabilities(out)[..., 0]).roll(15, -1))
    return TRAIN


def deaf(m):
    m.setattr(torch.optim.AdamW, "step", lambda self: None)
    return TRAIN


def short_labels(m):
    m.setattr(model, "total_loss", lambda out, targets, *a: total_loss(out, targets[:, [1, 0, 2]], *a))
    return TRAIN


@pytest.mark.parametrize("harm", [turned_around, other_labels, shifted_scores, deaf, short_labels])
def test_the_bound_catches_a_broken_training(harm, monkeypatch):
    model = make()
    videos = harm(monkeypatch)
    train_model(model, ToyCLIP(), videos, dataclasses.replace(FAST, epochs=12))
    assert auc(model) < .93

def test_only_adapter_classifier_and_context_move():
    model, clip = make(), ToyCLIP()
    start, tower = learner.weights(model), clip.tower.clone()
    history = train_model(model, clip, TRAIN, dataclasses.replace(FAST, epochs=1))
    moved = {name.split(".")[0] for name in start if not torch.equal(start[name], history.last_state[name])}
    assert (
        moved == {"adapter", "classifier", "prompts", "text"}
        and torch.equal(clip.tower, tower)
        and clip.tower.grad is None
    )
    assert not model.training and torch.equal(model.text, model.embed(clip)), (
        "scoring uses the context as trained"
    )


def test_all_adapters_and_no_windows_train():
    for changes in ({"adapter": kind} for kind in ("none", "self_attention", "both")):
        history = train_model(make(**changes), ToyCLIP(), TRAIN[:8], LearnerOptions(epochs=1))
        assert history.losses[0]["total"] > 0
    bare = [(id, dataclasses.replace(f, aggregates={}), labels) for id, f, labels in TRAIN[:8]]
    model = make(spatial="none")
    train_model(model, ToyCLIP(), bare, LearnerOptions(epochs=1))
    assert score_video(model, bare[0][1]).shape == (len(bare[0][1].frame),)


# ---- batches ------------------------------------------------------------------------------------------
@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 90), st.integers(1, 90), st.sampled_from([2, 8, 64]), st.integers(0, 5), st.integers(1, 4)
)
def test_batches(normal, abnormal, batch, epoch, processes):
    kinds = np.random.default_rng(0).permutation(np.arange(normal + abnormal) < abnormal)
    found = epoch_batches(kinds, LearnerOptions(batch=batch), epoch, processes)
    half = len(found[0]) // 2
    assert half % processes == 0 and half < min(batch // 2, max(normal, abnormal)) + processes
    assert len(found) == -(-max(normal, abnormal) // half)
    assert all(len(b) == 2 * half and not kinds[b[:half]].any() and kinds[b[half:]].all() for b in found)
    times = np.bincount(np.concatenate(found), minlength=len(kinds))
    assert times.min() >= 1 and all(np.ptp(times[kinds == kind]) <= 1 for kind in (False, True)), (
        "each stream passes over all before it repeats"
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 700), st.integers(1, 300))
def test_shrink_is_the_mean_of_stretches(T, length):
    x = torch.randn(T, 2, generator=torch.Generator().manual_seed(T))
    y = shrink(x, length)
    assert y.shape == (min(T, length), 2) and y.dtype == x.dtype
    if T > length:
        assert all(
            torch.allclose(y[i], x[i * T // length : (i + 1) * T // length].mean(0), atol=1e-5)
            for i in range(length)
        )
    else: assert torch.equal(x, y)

def test_padding_and_neighbours_in_a_batch_change_no_loss():
    model, clip = make(), ToyCLIP()
    examples = make_examples(TRAIN[:6], model, 256)

    def losses(chosen):
        frame, spatial, lengths, targets = collate(chosen)
        frame[torch.arange(frame.shape[1]) >= lengths[:, None]] = 1e3
        return total_loss(model(frame, spatial, lengths, model.embed(clip)), targets, lengths)
    together, alone = losses(examples), [losses([e]) for e in examples]
    for name in ("classification", "alignment"):
        assert torch.allclose(
            getattr(together, name), torch.stack([getattr(l, name) for l in alone]).mean(), atol=1e-5
        )


def test_several_labels_of_one_video():
    e = make_examples([TRAIN[0], ("two", TRAIN[1][1], ("zebra", "Fire"))], make(), 256)[1]
    assert e.target.tolist() == [0, 1, 1]


# ---- it repeats, resumes, keeps -----------------------------------------------------------------------
SHORT = LearnerOptions(epochs=5, lr=3e-3, batch=16)

def test_one_seed_one_result_another_seed_another():
    options = [dataclasses.replace(SHORT, seed=seed) for seed in (0, 0, 1)]
    runs = [train_model(make(), ToyCLIP(), TRAIN, one) for one in options]
    assert (
        same(runs[0].last_state, runs[1].last_state)
        and runs[0].losses == runs[1].losses
        and not same(runs[0].last_state, runs[2].last_state)
    )


def test_it_does_not_depend_on_global_randomness_nor_touch_it():
    first = train_model(make(), ToyCLIP(), TRAIN, SHORT)
    model = make()
    torch.manual_seed(77)
    np.random.seed(77)
    before = torch.get_rng_state()
    assert same(first.last_state, train_model(model, ToyCLIP(), TRAIN, SHORT).last_state) and torch.equal(
        before, torch.get_rng_state()
    )


@pytest.mark.parametrize("stop_in", ["on_epoch", "validate", "step"])
def test_interrupted_and_resumed_is_undisturbed(tmp_path, monkeypatch, stop_in):
    highest = lambda model: float(score_video(model, TEST[1][1]).max())
    whole, calls = train_model(make(), ToyCLIP(), TRAIN, SHORT, validate=highest), []
    def halt(after):
        calls.append(1)
        if len(calls) == after: raise KeyboardInterrupt
    kwargs = {"validate": highest}
    if stop_in == "on_epoch": kwargs["on_epoch"] = lambda *_: halt(2)
    if stop_in == "validate": kwargs["validate"] = lambda m: (halt(3), highest(m))[1]
    model = make()
    with monkeypatch.context() as m:
        step = learner.Trainer.step
        if stop_in == "step":
            m.setattr(learner.Trainer, "step", lambda self, *a: (halt(8), step(self, *a))[1])
        half = train_model(model, ToyCLIP(), TRAIN, SHORT, checkpoint=tmp_path / "deep" / "run.pt", **kwargs)
    assert half.interrupted and len(half.losses) == 2 and same(half.last_state, learner.weights(model)), (
        "the model holds the last finished epoch"
    )
    model = make(seed=5)                                                     # its weights come from the file
    path = tmp_path / "deep" / "run.pt"
    resumed = train_model(model, ToyCLIP(), TRAIN, SHORT, validate=highest, checkpoint=path)
    assert (
        same(whole.last_state, resumed.last_state)
        and same(whole.best_state, resumed.best_state)
        and same(whole.last_state, learner.weights(model))
    )
    assert (whole.losses, whole.validation, whole.best_epoch) == (
        resumed.losses,
        resumed.validation,
        resumed.best_epoch,
    ) and not resumed.interrupted


def test_interrupted_in_the_first_epoch(monkeypatch):
    step, calls = learner.Trainer.step, []
    def halting(self, *a):
        calls.append(1)
        if len(calls) == 2: raise KeyboardInterrupt
        return step(self, *a)
    monkeypatch.setattr(learner.Trainer, "step", halting)
    model = make()
    start = learner.weights(model)
    history = train_model(model, ToyCLIP(), TRAIN, SHORT)
    assert (
        history.interrupted
        and history.losses == []
        and not same(history.last_state, start)
        and same(history.best_state, history.last_state)
    )
    assert score_video(use(model, history), TEST[0][1]).shape == (len(TEST[0][1].frame),)

def test_a_finished_run_is_not_trained_again_and_can_go_on(tmp_path):
    path = tmp_path / "run.pt"
    first = train_model(make(), ToyCLIP(), TRAIN, SHORT, checkpoint=path)
    never = lambda *_: pytest.fail("trained")
    again = train_model(make(), ToyCLIP(), TRAIN, SHORT, checkpoint=path, on_epoch=never)
    longer = train_model(make(), ToyCLIP(), TRAIN, dataclasses.replace(SHORT, epochs=7), checkpoint=path)
    assert (
        same(first.last_state, again.last_state)
        and len(longer.losses) == 7
        and longer.losses[:5] == first.losses
    )


@pytest.mark.parametrize("change, word", [
    (lambda: (make(), ToyCLIP(), TRAIN, dataclasses.replace(SHORT, seed=3)), "seed=0, this run has 3"),
    (lambda: (make(), ToyCLIP(), TRAIN[:-1], SHORT), "training videos"),
    (lambda: (make(sigma=2.), ToyCLIP(), TRAIN, SHORT), "model="),
    (lambda: (make(), ToyCLIP(seed=4), TRAIN, SHORT), "model=")])
def test_a_checkpoint_of_another_run_is_refused(tmp_path, change, word):
    path = tmp_path / "run.pt"
    train_model(make(), ToyCLIP(), TRAIN, dataclasses.replace(SHORT, epochs=1), checkpoint=path)
    before = path.read_bytes()
    with pytest.raises(LearnerError, match=f"run.pt: was written with .*{word}"):
        train_model(*change(), checkpoint=path)
    assert path.read_bytes() == before

@pytest.mark.parametrize("harm", [lambda b: b[:len(b) // 2], lambda b: b"", lambda b: b"not a checkpoint"])
def test_a_damaged_checkpoint(tmp_path, harm):
    path = tmp_path / "run.pt"
    train_model(make(), ToyCLIP(), TRAIN, dataclasses.replace(SHORT, epochs=1), checkpoint=path)
    path.write_bytes(harm(path.read_bytes()))
    with pytest.raises(LearnerError, match="run.pt: is no readable checkpoint.*remove run.pt"):
        train_model(make(), ToyCLIP(), TRAIN, SHORT, checkpoint=path)


def test_a_checkpoint_executes_nothing_and_is_replaced_in_one_step(tmp_path, monkeypatch):
    path = tmp_path / "run.pt"
    one = dataclasses.replace(SHORT, epochs=1)
    train_model(make(), ToyCLIP(), TRAIN, one, checkpoint=path)
    before = path.read_bytes()
    assert set(torch.load(path, weights_only=True)) == {
        "fingerprint",
        "model",
        "optimizer",
        "best_state",
        "history",
    } and os.listdir(tmp_path) == ["run.pt"]
    monkeypatch.setattr("stprompt.files.os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError): train_model(make(), ToyCLIP(), TRAIN, SHORT, checkpoint=path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["run.pt"]

def test_best_and_last():
    values = iter([0.5, 0.9, 0.9, float("nan"), 0.1])
    model = make()
    history = train_model(model, ToyCLIP(), TRAIN, SHORT, validate=lambda m: next(values))
    assert (
        history.best_epoch == 3
        and same(learner.weights(model), history.last_state)
        and not same(history.best_state, history.last_state)
    )
    again = train_model(make(), ToyCLIP(), TRAIN, dataclasses.replace(SHORT, epochs=3))
    assert same(history.best_state, again.last_state) and again.best_epoch == 3, (
        "without validation the last is the best"
    )
    assert same(learner.weights(use(model, history)), history.best_state) and same(
        learner.weights(use(model, history, "last")), history.last_state
    )
    json.dumps(history.rows())

def test_a_first_nan_is_not_kept_forever():
    history = History()
    for value in (float("nan"), .2, .1): history = history.after({}, value, 0., {})
    assert history.best_epoch == 2

def test_validation_sees_stored_text_and_evaluation_mode():
    clip, seen = ToyCLIP(), []
    train_model(
        make(),
        clip,
        TRAIN,
        dataclasses.replace(SHORT, epochs=2),
        validate=lambda m: seen.append((m.training, torch.equal(m.text, m.embed(clip)))) or 0,
    )
    assert seen == [(False, True)] * 2


# ---- it stops with a reason ---------------------------------------------------------------------------
@pytest.mark.parametrize("where", ["frame", "sa2"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_video_is_named_and_reaches_no_weight(tmp_path, where, value):
    frame = TRAIN[3][1].frame.clone()
    aggregate = frame.clone()
    (frame if where == "frame" else aggregate)[7, 2] = value
    bad = dataclasses.replace(TRAIN[3][1], frame=frame, aggregates={"sa2": aggregate})
    model = make()
    with pytest.raises(
        LearnerError,
        match=r"epoch 1, batch \d of \d: expected a finite loss, found nan.*videos poison: .*extract",
    ) as error:
        videos = [*TRAIN, ("poison", bad, ("zebra",))]
        train_model(model, ToyCLIP(), videos, SHORT, checkpoint=tmp_path / "run.pt")
    assert (
        "v0" not in str(error.value)
        and all(p.isfinite().all() for p in model.parameters())
        and not os.listdir(tmp_path)
    )


def test_a_loss_that_explodes_names_the_batch(monkeypatch):
    total = model.total_loss
    monkeypatch.setattr(
        model,
        "total_loss",
        lambda *a: dataclasses.replace(loss := total(*a), total=loss.total * float("inf")),
    )
    with pytest.raises(
        LearnerError,
        match=r"epoch 1, batch 1 of 3: expected a finite loss, found inf.*v\d+.*8 more.*lower lr=0.003",
    ):
        train_model(make(), ToyCLIP(), TRAIN, SHORT)


def test_a_gradient_that_explodes_stops_too(monkeypatch):
    monkeypatch.setattr(learner, "clip_grad_norm_", lambda *_: torch.tensor(float("nan")))
    with pytest.raises(LearnerError, match=r"gradient nan"): train_model(make(), ToyCLIP(), TRAIN, SHORT)

@pytest.mark.parametrize(
    "videos, word",
    [
        ([], "found no normal one among 0"),
        (TRAIN[:1], "no abnormal one among 1"),
        (TRAIN[1:2], "no normal one among 1"),
        ([("a", TRAIN[0][1], ("zebr",))], "video 'a': label 'zebr'; the model knows Normal, zebra, Fire"),
        ([("a", TRAIN[0][1], ())], "video 'a': label 'missing'"),
        (
            [("a", features(torch.zeros(0, D)), ("Fire",))],
            r"video 'a': expected features \[T, 16\], found \[0, 16\]",
        ),
        ([("a", features(torch.zeros(3, 8)), ("Fire",))], r"found \[3, 8\]"),
        ([("a", dataclasses.replace(TRAIN[0][1], aggregates={}), ("Fire",))], "video 'a': spatial='sa2'"),
    ],
)
def test_a_bad_training_list(videos, word):
    with pytest.raises(LearnerError, match=word): train_model(make(), ToyCLIP(), videos, SHORT)

def test_another_clip_is_refused_before_work():
    with pytest.raises(ModelError, match="belongs to toy"):
        train_model(make(clip=ToyCLIP().identity), ToyCLIP(seed=3), [], SHORT)


@pytest.mark.parametrize(
    "bad",
    [
        {"epochs": 0},
        {"epochs": 1.5},
        {"epochs": True},
        {"batch": 1},
        {"batch": 7},
        {"max_length": 0},
        {"lr": 0},
        {"lr": float("nan")},
        {"lr": "1e-4"},
        {"alpha": -1},
        {"beta": float("inf")},
        {"weight_decay": -0.1},
        {"seed": -1},
        {"device": "tpu9"},
    ],
)
def test_bad_options(bad):
    with pytest.raises(LearnerError, match=f"^{next(iter(bad))}="): LearnerOptions(**bad)


# ---- read when its turn comes, moved once, in parts ----------------------------------------------------
def test_a_function_that_gives_features_trains_the_same():
    asked = []
    lazy = [(id, lambda id=id, f=f: asked.append(id) or f, labels) for id, f, labels in TRAIN]
    given, read = (train_model(make(), ToyCLIP(), videos, SHORT) for videos in (TRAIN, lazy))
    assert same(given.last_state, read.last_state) and asked == [id for id, *_ in TRAIN]


def test_labels_are_checked_before_anything_is_read():
    never = lambda: pytest.fail("read")
    with pytest.raises(LearnerError, match="video 'b': label 'Flood'"):
        train_model(make(), ToyCLIP(), [("a", never, ("Fire",)), ("b", never, ("Flood",))], SHORT)


def test_many_videos_have_a_bar(capsys):
    few, many = TRAIN[:2], [(str(i), TRAIN[i % 4][1], TRAIN[i % 4][2]) for i in range(1000)]
    for videos, shown in ((few, False), (many, True)):
        make_examples(videos, make(), 4, progress=True)
        assert ("training features" in capsys.readouterr().err) == shown
    make_examples(many, make(), 4)
    assert not capsys.readouterr().err


def test_halves_stay_halves_and_train_in_float32():
    model = make(spatial="none")
    bare = [(id, dataclasses.replace(f, frame=f.frame.half(), aggregates={}), labels)
            for id, f, labels in TRAIN]
    examples = make_examples(bare, model, 30)
    assert {e.frame.dtype for e in examples} == {torch.float16} and {e.spatial for e in examples} == {None}
    frame, spatial, *_ = collate(examples[:4])
    assert frame.dtype == spatial.dtype == torch.float32 and not spatial.any()
    train_model(model, ToyCLIP(), bare, dataclasses.replace(FAST, epochs=3))
    scores = score_video(model, bare[1][1])
    exact = score_video(model, dataclasses.replace(bare[1][1], frame=bare[1][1].frame.float()))
    assert np.array_equal(scores, exact)


@pytest.mark.parametrize("branches", ["both", "classification", "alignment"])
def test_a_batch_in_parts_is_the_batch(monkeypatch, branches):
    whole, model = make(branches=branches), make(branches=branches)
    index = np.arange(24)
    first = learner.Trainer(whole, ToyCLIP(), TRAIN, SHORT)
    wanted = first.gradients(index)
    monkeypatch.setattr(learner, "LARGE", 1000)
    monkeypatch.setattr(learner, "PART", 5 * 50 * D)
    second = learner.Trainer(model, ToyCLIP(), TRAIN, SHORT)
    parts = learner.batch_shares(index, second.examples, second.device)
    assert len(parts) > 3 and np.array_equal(np.concatenate(parts), index)
    assert second.gradients(index) == pytest.approx(wanted, rel=1e-5)
    for ours, theirs in zip(model.parameters(), whole.parameters()):
        if theirs.grad is None: assert ours.grad is None
        else: assert torch.allclose(ours.grad, theirs.grad, atol=1e-5 * float(theirs.grad.abs().max()))


def test_examples_move_to_the_device_when_they_fit():
    examples, meta = make_examples(TRAIN[:4], make(), 30), torch.device("meta")
    size = sum(e.frame.nbytes + e.spatial.nbytes for e in examples)
    assert learner.at_home(examples, torch.device("cpu")) is examples
    assert learner.at_home(examples, meta, free=2 * size - 1) is examples
    assert {x.device.type for e in learner.at_home(examples, meta, free=2 * size)
            for x in (e.frame, e.spatial)} == {"meta"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("free", [None, 0])
def test_training_on_a_gpu_at_home_and_from_pinned_memory(monkeypatch, free):
    home = learner.at_home
    monkeypatch.setattr(learner, "at_home", lambda examples, device: home(examples, device, free))
    model, clip = make(), ToyCLIP().to("cuda")
    prompts = type(clip).prompts
    monkeypatch.setattr(type(clip), "prompts", lambda self, context, texts: torch.tanh(
        torch.stack([torch.randn(12, generator=torch.Generator().manual_seed(sum(map(ord, t))))
                     for t in texts]).to(context) + context.sum(0)) @ self.tower)
    trainer = learner.Trainer(model, clip, TRAIN, dataclasses.replace(SHORT, device="cuda"))
    assert {e.frame.is_cuda for e in trainer.examples} == {free is None} and prompts
    losses = trainer.gradients(np.arange(24))
    monkeypatch.undo()
    cpu = learner.Trainer(make(), ToyCLIP(), TRAIN, dataclasses.replace(SHORT, device="cpu"))
    assert losses == pytest.approx(cpu.gradients(np.arange(24)), rel=1e-4)


# ---- scores -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("T", [1, 2, 255, 256, 257, 512, 700])
def test_any_length_in_chunks(T):
    model = make().store_text(ToyCLIP()).eval()
    f = features(torch.randn(T, D, generator=torch.Generator().manual_seed(T)))
    scores, classes, frame, aggregate = (
        score_video(model, f),
        class_scores(model, f),
        f.frame,
        f.aggregates["sa2"],
    )
    by_hand = torch.cat(
        [
            model.scores(model(frame[None, i : i + 256], aggregate[None, i : i + 256]))[0]
            for i in range(0, T, 256)
        ]
    )
    assert (
        scores.shape == (T,)
        and scores.dtype == np.float64
        and np.allclose(scores, by_hand.detach(), atol=1e-5)
    )
    assert (
        classes.shape == (T, 3)
        and np.allclose(classes.sum(1), 1, atol=1e-5)
        and np.allclose(1 - classes[:, 0], scores, atol=1e-5)
    )
    assert np.allclose(
        score_video(model, f, whole=True),
        model.scores(model(frame[None], aggregate[None]))[0].detach(),
        atol=1e-5,
    )
    assert score_videos(model, {"a": f})["a"].shape == (f.n_frames,)

def test_a_score_belongs_to_its_frame():
    model = make()
    train_model(model, ToyCLIP(), TRAIN, FAST)
    f = TEST[1][1]
    scores = score_videos(model, {"a": f})["a"]
    assert np.array_equal(scores[::4], score_video(model, f)) and all(
        len(set(scores[i : i + 4])) == 1 for i in range(0, f.n_frames - 4, 4)
    )


def test_bad_scoring():
    model = make()
    with pytest.raises(ModelError, match="no label embeddings"): score_video(model, TEST[0][1])
    model.store_text(ToyCLIP())
    with pytest.raises(LearnerError, match="at least one feature"):
        score_video(model, features(torch.zeros(0, D)))
    with pytest.raises(LearnerError, match="chunk=0"): score_video(model, TEST[0][1], chunk=0)
    with pytest.raises(ValueError, match="sa2"):
        score_video(model, dataclasses.replace(TEST[0][1], aggregates={}))


# ---- several processes --------------------------------------------------------------------------------
WORKER = """
import sys
sys.path.insert(0, sys.argv[1])
import torch, test_learner as t
torch.set_num_threads(1)
history = t.train_model(t.make(), t.ToyCLIP(), t.TRAIN, t.SHORT, checkpoint=sys.argv[2])
torch.save(history.last_state, sys.argv[3])
"""


def test_two_processes_are_one(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    here = os.path.dirname(os.path.abspath(__file__))
    env = os.environ | {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "1",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join(filter(None, [os.path.dirname(here), os.environ.get("PYTHONPATH")])),
    }
    command = lambda r: [
        sys.executable,
        "-c",
        WORKER,
        here,
        str(tmp_path / "run.pt"),
        str(tmp_path / f"{r}.pt"),
    ]
    workers = [
        subprocess.Popen(
            command(r), env=env | {"RANK": str(r), "LOCAL_RANK": str(r)}, stderr=subprocess.PIPE, text=True
        )
        for r in range(2)
    ]
    try: said = [w.communicate(timeout=120)[1] for w in workers]
    finally: [w.kill() for w in workers]
    assert [w.returncode for w in workers] == [0, 0], said
    a, b = (torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in range(2))
    single = train_model(make(), ToyCLIP(), TRAIN, SHORT).last_state
    assert (
        same(a, b)
        and all(torch.allclose(a[k], single[k], atol=2e-3) for k in a)
        and (tmp_path / "run.pt").is_file()
    )
