"""The other rows of the tables: each learns, repeats, resumes, ignores padding, refuses what it cannot."""

import dataclasses
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from test_vadclip import tiny_clip
from torch import nn

from stprompt import learner
from stprompt.adapter import AdapterError
from stprompt.baselines import (
    FrameBaseline,
    LossParts,
    SultaniPatches,
    fit_at_once,
    new_baseline,
    real_frames,
    top_weights,
)
from stprompt.context import CLIPTSA, MultiScale, ShakenTop
from stprompt.datasets import Benchmark, VideoItem
from stprompt.experiments import (
    Data,
    JobError,
    Located,
    TrainJob,
    evaluate,
    feature_settings,
    fit,
    last_epoch,
    score,
    with_windows,
)
from stprompt.features import FeatureError, Summary, VideoFeatures
from stprompt.learner import LearnerError, LearnerOptions, Trainer, class_scores, score_video, train_model
from stprompt.losses import LossError
from stprompt.memory import ambiguous, pair_loss
from stprompt.methods import METHODS, PAPER_ROWS, method_named, method_table, paper_table
from stprompt.model import FrameDetector, ModelError
from stprompt.results import PAPER
from stprompt.words import OPVAD

D = 16
OURS = [method for method in METHODS if method.make and method.name not in ("VadCLIP", "STPrompt")]
LEARNED = [method for method in OURS if method.fitting is fit]
each = pytest.mark.parametrize("method", OURS, ids=lambda method: method.name)
each_learned = pytest.mark.parametrize("method", LEARNED, ids=lambda method: method.name)
JOB = TrainJob(epochs=2, lr=3e-3, batch=4, max_length=32, device="cpu")
RATES = {"DMU": 1e-3, "Hasan et al.": 1e-3}     # the two wide ones


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def clip(): return tiny_clip()


def video(seed, abnormal, windows=True, dim=D):
    "Noise around a direction; an abnormal video and one of its two windows point elsewhere, too."
    g, fixed = np.random.default_rng(seed), np.random.default_rng(9)
    T, (common, drift) = 10 + seed % 4 * 7, fixed.normal(size=(2, dim))
    noise = lambda *shape: .5 * g.normal(size=(T, *shape, dim))
    frame, grid = common + noise() + abnormal * drift, common + noise(1, 2)
    grid[:, :, 1] += abnormal * drift
    kept = torch.tensor(grid).float() if windows else None
    return VideoFeatures(torch.tensor(frame).float(), np.arange(T) * 4, np.arange(T) / 6, T * 4, 25.,
                         (24, 32), {}, None, kept)


def make_data(clip, job=JOB, **more):
    "56 videos, half of them abnormal, of two classes."
    label = lambda n: ("Normal", "Fire", "Normal", "RoadAccidents")[n % 4]
    items = [VideoItem(f"v{n:02d}", Path(f"v{n}.mp4"), (label(n),)) for n in range(56)]
    features = {item.id: video(n, n % 2, **more) for n, item in enumerate(items)}
    classes = {"Normal": "normal", "RoadAccidents": "road accident", "Fire": "fire"}
    benchmark = Benchmark("toy", classes, items[:32], items[32:40], items[40:])
    return Data(benchmark, clip, features, feature_settings(job, clip), {}, Summary(), 0.)


@pytest.fixture(scope="module")
def data(clip): return make_data(clip)


def auc(fitted, data):
    scores = {item.id: score_video(fitted.model, data.features[item.id]) for item in data.benchmark.test}
    truth = np.concatenate([[item.is_abnormal] * len(scores[item.id]) for item in data.benchmark.test])
    return roc_auc_score(truth, np.concatenate(list(scores.values())))


def inputs(model, videos, lengths=None):
    "A padded batch of what the model takes of each video; NaN behind each."
    pad = partial(nn.utils.rnn.pad_sequence, batch_first=True, padding_value=torch.nan)
    parts = [one.spatial(model.options.spatial) for one in videos]
    lengths = torch.tensor([len(one.frame) for one in videos]) if lengths is None else lengths
    return pad([one.frame for one in videos]), None if parts[0] is None else pad(parts), lengths


# ---- every row ------------------------------------------------------------------------------------
@each
def test_two_epochs_beat_chance(method, data):
    fitted = method.fit(dataclasses.replace(JOB, lr=RATES.get(method.name, JOB.lr)), data)
    scored = score(fitted, data)
    assert {id: len(one) for id, one in scored.frames.items()} == {
        item.id: data.features[item.id].n_frames for item in data.benchmark.test}
    assert all(((one >= 0) & (one <= 1)).all() for one in scored.frames.values())
    assert all(np.allclose(one.sum(1), 1, atol=1e-5) for one in scored.classes.values())
    assert auc(fitted, data) > .7
    report = evaluate(scored, Located({}, {}, {}, {}), data)
    assert report["video_auc"] > 70 and last_epoch(fitted, data)["video_auc"] > 50
    assert len(fitted.history.losses) in (1, 2) and set(fitted.history.losses[0]) >= {"total"}


@each
def test_labels_turned_around_score_turned_around(method, data):
    "The bound above is no accident: the same training with the labels exchanged falls below chance."
    turned = {"Normal": ("Fire",), "Fire": ("Normal",), "RoadAccidents": ("Normal",)}
    change = lambda items: [dataclasses.replace(one, labels=turned[one.labels[0]]) for one in items]
    known = data.benchmark
    other = dataclasses.replace(known, train=change(known.train), validation=change(known.validation))
    job = dataclasses.replace(JOB, lr=RATES.get(method.name, JOB.lr))
    assert auc(method.fit(job, dataclasses.replace(data, benchmark=other)), data) < .5


@each
def test_a_reloaded_model_scores_the_same(method, data, tmp_path):
    model = method.make(JOB, data).store_text(data.clip).eval()
    if hasattr(model, "learn"): model = method.fit(JOB, data).model
    model.save_pretrained(tmp_path/"m", metrics={"frame AUC": .5})
    again, one = type(model).from_pretrained(tmp_path/"m"), data.features["v41"]
    assert again.options == model.options
    assert np.array_equal(score_video(again, one), score_video(model, one))
    assert np.array_equal(class_scores(again, one), class_scores(model, one))
    assert type(model).source[:20] in (tmp_path/"m"/"README.md").read_text()


@each
def test_it_says_where_it_is_from(method):
    kind = type(method.make(JOB, make_data(tiny_clip())))
    assert kind.source and kind.keeps and kind.leaves_out and kind.__doc__ != FrameBaseline.__doc__
    assert method.source == kind.source and method.note.startswith("keeps ") and "\n" not in method.note


@each
def test_a_maker_sets_no_number_of_the_method(method, data):
    "What a job says (length, width) must not meet a weight of the same name."
    options = method.make(dataclasses.replace(JOB, max_length=48), data).options
    shared = {"dim", "classes", "clip", "token_width", "positions", "length", "normal", "abnormal"}
    default = dataclasses.asdict(type(options)(dim=D, classes=data.benchmark.classes))
    if method.name == "OPVAD": default["similar"] = 1.     # of all benchmarks but two
    mine = {name: value for name, value in dataclasses.asdict(options).items() if name not in shared}
    assert mine == {name: default[name] for name in mine}
    assert getattr(options, "length", 48) == 48


# ---- padding, lengths, widths ---------------------------------------------------------------------
@each
def test_padding_does_not_change_a_score(method, data):
    model = method.make(JOB, data).store_text(data.clip).eval()
    videos = [data.features[id] for id in ("v03", "v00", "v01")]
    frame, spatial, lengths = inputs(model, videos)
    together = model(frame, spatial, lengths)
    for n, one in enumerate(videos):
        alone = model(one.frame[None], None if spatial is None else spatial[n:n + 1, :lengths[n]])
        assert torch.allclose(together.anomaly[n, :lengths[n]], alone.anomaly[0], atol=1e-5)
        assert torch.allclose(together.classes[n, :lengths[n]], alone.classes[0], atol=1e-5)


@each_learned
def test_padding_does_not_change_a_gradient(method, data):
    "Whatever lies behind a video, the loss and each gradient are finite and the same."
    videos, found = [data.features[id] for id in ("v00", "v02", "v01", "v03")], []
    targets = torch.tensor([[1., 0, 0], [1, 0, 0], [0, 0, 1], [0, 1, 0]])
    for behind in (torch.nan, 7.):
        model = method.make(JOB, data).eval()
        frame, spatial, lengths = inputs(model, videos)
        frame, spatial = (None if x is None else x.nan_to_num(nan=behind) for x in (frame, spatial))
        output = model(frame, spatial, lengths, model.embed(data.clip))
        loss = model.loss(output, targets, lengths, .9, 2.)
        loss.total.backward()
        found.append({"loss": loss.total, **{name: p.grad for name, p in model.named_parameters()}})
    missing = [name for name, value in found[0].items() if value is None]
    assert missing == [] and all(value.isfinite().all() for value in found[0].values())
    assert all(torch.allclose(found[1][name], value, atol=1e-5) for name, value in found[0].items())


@each
def test_no_frames_no_score(method, data):
    model = method.make(JOB, data).store_text(data.clip).eval()
    frame, spatial, lengths = inputs(model, [data.features["v00"], data.features["v01"]])
    none = lambda x: None if x is None else x[:, :0]
    with pytest.raises(ModelError, match="at least one frame, found"): model(none(frame), none(spatial))
    with pytest.raises(AdapterError, match="one length from 1"): model(frame, spatial, torch.tensor([0, 5]))
    nothing = torch.zeros(0, D), np.zeros(0, int), np.zeros(0)
    empty = VideoFeatures(*nothing, 9, 25., (24, 32), {}, None, torch.zeros(0, 1, 2, D))
    with pytest.raises(LearnerError, match="at least one feature"): score_video(model, empty)
    other = dataclasses.replace(data, features={**data.features, "v05": empty})
    with pytest.raises(LearnerError, match="video 'v05': expected features"): method.fit(JOB, other)


@each
def test_one_frame_is_a_video(method, data):
    one = lambda x: None if x is None else x[:1]
    short = {id: dataclasses.replace(found, frame=one(found.frame), frame_index=one(found.frame_index),
                                     time=one(found.time), windows=one(found.windows))
             for id, found in data.features.items()}
    mixed = {**data.features, **dict(list(short.items())[:9])}
    fitted = method.fit(JOB, dataclasses.replace(data, features=mixed))
    assert all(math.isfinite(value) for value in fitted.history.losses[-1].values())
    assert np.isfinite(score_video(fitted.model, short["v00"])).all()


def no_training(monkeypatch):
    def never(*args, **kwargs): raise AssertionError("it was trained")
    for name in ("step", "epoch"): monkeypatch.setattr(Trainer, name, never)


@each
def test_wrong_width_is_refused_before_training(method, clip, data, monkeypatch):
    no_training(monkeypatch)
    other = make_data(clip, dim=12)
    with pytest.raises(LearnerError, match=r"video 'v00': expected features \[T, 16\], found \[.*12\]"):
        method.fit(JOB, other)
    model = method.make(JOB, data).store_text(clip)
    with pytest.raises(ModelError, match=r"expected \[B, T, 16\] with"): model(torch.ones(1, 3, 12), None)


# ---- windows --------------------------------------------------------------------------------------
def test_missing_windows_are_refused_before_training(clip, monkeypatch):
    no_training(monkeypatch)
    method, data = method_named("Sultani et al., patches"), make_data(clip, windows=False)
    assert [one.name for one in METHODS if one.windows] == [method.name]
    words = "'v00': spatial='windows': .*extract again with keep_windows=True"
    with pytest.raises(LearnerError, match=words): method.fit(JOB, data)
    with pytest.raises(FeatureError, match="keep_windows"): data.features["v00"].spatial("windows")
    model = method.make(JOB, data)
    for wrong in (None, torch.ones(1, 3, D + 1), torch.ones(1, 2, D), torch.ones(1, 3, 0)):
        with pytest.raises(ModelError, match="wants all windows"): model(torch.ones(1, 3, D), wrong)


def test_a_frame_is_its_highest_window(data):
    model, found = new_baseline(SultaniPatches, JOB, data).eval(), data.features["v01"]
    T = len(found.frame)
    whole = model(found.frame[None], found.spatial("windows")[None]).anomaly[0]
    sides = [model(found.frame[None], found.windows[None, :, 0, n]).anomaly[0] for n in (0, 1)]
    assert torch.allclose(whole, torch.maximum(*sides), atol=1e-6) and len(whole) == T


def test_windows_are_extracted_into_a_store_of_their_own(clip, tmp_path, monkeypatch):
    import cv2
    monkeypatch.setenv("STPROMPT_CACHE", str(tmp_path/"cache"))     # nothing of an earlier run
    items = [VideoItem(f"clip{n}", tmp_path/f"clip{n}", ("Normal", "Fire")[n:][:1]) for n in range(2)]
    for item in items:
        item.source.mkdir()
        for n in range(5):
            picture = np.random.default_rng(n).integers(0, 255, (32, 48, 3), np.uint8)
            cv2.imwrite(str(item.source/f"{n:03d}.png"), picture)
    job = dataclasses.replace(JOB, stride=2)
    settings = feature_settings(job, clip)
    benchmark = Benchmark("pictures", {"Normal": "normal", "Fire": "fire"}, items, (), ())
    data = Data(benchmark, clip, {}, settings, {}, Summary(), 0.)
    found = with_windows(job, data)
    assert found.settings.keep_windows and found.settings.hash != settings.hash
    assert len(found.summary.done) == 2
    assert found.features["clip1"].spatial("windows").shape == (3, clip.dim)       # one window of 32 x 32
    assert with_windows(job, data).summary.skipped == ["clip0", "clip1"]           # found again


# ---- it repeats, and it resumes -------------------------------------------------------------------
def same(a, b): return all(torch.equal(a[name], b[name]) for name in a)


@each
def test_a_seed_repeats(method, data):
    first, second = method.fit(JOB, data), method.fit(JOB, data)
    assert same(first.history.last_state, second.history.last_state)
    if method in LEARNED:
        other = method.fit(dataclasses.replace(JOB, seed=1), data)
        assert not same(first.history.last_state, other.history.last_state)


@each_learned
def test_a_stopped_run_goes_on_exactly(method, data, tmp_path):
    "Dropout and other draws depend on seed and epoch, so nothing has to be remembered."
    def stop(epoch, values):
        if epoch == 1: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): method.fit(JOB, data, on_epoch=stop, checkpoint=tmp_path/"run.pt")
    torch.rand(3)
    resumed, whole = method.fit(JOB, data, checkpoint=tmp_path/"run.pt"), method.fit(JOB, data)
    assert same(resumed.history.last_state, whole.history.last_state)
    assert resumed.history.losses == whole.history.losses


@each_learned
def test_a_large_batch_has_the_gradients_of_the_whole(method, data, monkeypatch):
    "A loss that compares videos sees its batch whole; one that does not, in parts."
    model, train = method.make(JOB, data), [(one.id, data.features[one.id], one.labels)
                                            for one in data.benchmark.train]
    trainer = Trainer(model.eval(), data.clip, train, LearnerOptions(device="cpu", batch=8))
    index, found = np.array([0, 2, 4, 6, 1, 3, 5, 7]), []
    for large in (2**30, 100):
        monkeypatch.setattr(learner, "LARGE", large)
        monkeypatch.setattr(learner, "PART", 3 * 31 * D)
        values = trainer.gradients(index)
        found.append((values, [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-5)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found[0][1], found[1][1]))
    assert FrameDetector.apart and len(learner.batch_shares(index, trainer.examples, trainer.device)) == 3


def test_in_parts_a_comparing_loss_would_be_refused(data, monkeypatch):
    "The test above sees the difference: pretend that the ranking could go in parts."
    method = method_named("Sultani et al.")
    monkeypatch.setattr(learner, "LARGE", 100)
    monkeypatch.setattr(learner, "PART", 3 * 31 * D)
    monkeypatch.setattr("stprompt.baselines.Sultani.apart", True)
    with pytest.raises(LossError, match="this loss compares the two kinds"): method.fit(JOB, data)


def test_draws_leave_the_generator_alone(data):
    method, before = method_named("DMU"), torch.get_rng_state()
    model, train = method.make(JOB, data), [(one.id, data.features[one.id], one.labels)
                                            for one in data.benchmark.train]
    after_make = torch.get_rng_state()
    train_model(model, data.clip, train, LearnerOptions(epochs=1, batch=8, device="cpu"))
    assert torch.equal(torch.get_rng_state(), after_make)
    torch.set_rng_state(before)


# ---- parts ----------------------------------------------------------------------------------------
def test_hl_net_is_its_equations_frame_by_frame(data):
    "The three graphs with loops, as the paper writes them."
    torch.manual_seed(0)
    model = method_named("Wu et al.").make(JOB, data).double().eval()
    x = data.features["v01"].frame.double() - .5
    T, w = len(x), {name: p.detach() for name, p in model.named_parameters()}
    line = lambda name, v: v @ w[f"{name}.weight"].T + w[f"{name}.bias"]
    hidden = line("second", line("first", x).relu()).relu()
    early = line("approximator.2", line("approximator.0", hidden).relu()).relu()
    kernel, online = w["causal.weight"][0], []
    for t in range(T):
        heard = [kernel[:, k] @ early[t + k - 4] for k in range(5) if t + k >= 4]
        online.append(w["causal.bias"][0] + sum(heard))
    s = torch.stack(online).sigmoid()
    cosine = torch.stack([torch.stack([a @ b / a.norm() / b.norm() for b in x]) for a in x])
    alike = torch.where(cosine > .7, cosine, 0 * cosine).exp()
    near = torch.tensor([[math.exp(-abs(i - j) / math.e) for j in range(T)] for i in range(T)]).double()
    agree = torch.tensor([[math.exp(1 / (1 + math.exp(-((1 - abs(a - b)) - .5) / .1))) for b in s.tolist()]
                          for a in s.tolist()]).double()
    heard = []
    rows = lambda graph: graph / graph.sum(1, keepdim=True)
    for n, graph in enumerate((rows(alike), near, rows(agree))):
        kept, kernel = torch.zeros(T, 32).double(), w[f"branches.{n}.0.residual.weight"]
        for t in range(T):
            kept[t] = w[f"branches.{n}.0.residual.bias"] + sum(
                kernel[:, :, k] @ hidden[t + k - 2] for k in range(5) if 0 <= t + k - 2 < T)
        first = (graph @ hidden @ w[f"branches.{n}.0.weight"] + kept).relu()
        heard.append((graph @ first @ w[f"branches.{n}.1.weight"] + first).relu())
    logits = line("classifier", torch.cat(heard, 1)).squeeze(1)
    said = model.float()(x[None].float())
    assert torch.allclose(said.online[0].double(), torch.stack(online), atol=1e-5)
    assert torch.allclose(said.logits[0].double(), logits, atol=1e-5)


def test_everything_kept_is_everything(data):
    values, k = torch.randn(2, 6, requires_grad=True), torch.tensor([6, 6])
    kept = ShakenTop.apply(values, k, torch.randn(1, 50, 6), .05)
    assert kept.tolist() == [[1.] * 6] * 2
    model = new_baseline(CLIPTSA, JOB, data, share=1.).eval()
    x, mask = real_frames(data.features["v00"].frame[None], None, D)
    assert torch.equal(model.prepared(x, mask), x)


def test_test_time_noise_is_a_frame_s_own(data):
    model = new_baseline(CLIPTSA, JOB, data).eval()
    short, long = model.noise(2, 5), model.noise(1, 40)
    assert torch.equal(long[..., :5], short) and model.train().noise(2, 5).shape == (2, 100, 5)


def test_behind_a_video_multiscale_is_silent():
    network, x = MultiScale(8).train(), torch.randn(2, 9, 8)
    mask = torch.arange(9) < torch.tensor([[9], [4]])
    out = network(x * mask[..., None], mask)
    assert out[1, 4:].abs().sum() == 0 and out.isfinite().all()
    assert network.norm.num_batches_tracked == 1 and network.norm.running_mean.isfinite().all()


def test_top_weights_are_the_k_highest():
    g = torch.Generator().manual_seed(0)
    values, lengths = torch.randn(6, 50, generator=g), torch.tensor([1, 15, 16, 31, 32, 50])
    weights = top_weights(values, torch.arange(50) < lengths[:, None])
    for n, T in enumerate(lengths.tolist()):
        k = T // 16 + 1
        want = torch.zeros(50)
        want[values[n, :T].topk(k).indices] = 1 / k
        assert torch.allclose(weights[n], want)
    assert top_weights(torch.zeros(1, 4), torch.ones(1, 4) > 0).sum() == 1      # ties


def test_ambiguous_frames_are_of_abnormal_videos():
    g = torch.Generator().manual_seed(0)
    scores, inside = torch.rand(4, 40, generator=g), torch.zeros(4, 40, dtype=torch.bool)
    inside[2:, :30] = True
    unsure = ambiguous(scores, inside)
    assert not (unsure & ~inside).any() and .6 < unsure.sum() / inside.sum() < .8
    assert (scores[unsure] - .5).abs().max() < (scores[inside & ~unsure] - .5).abs().max()
    assert not ambiguous(scores, torch.zeros_like(inside)).any()
    chances = scores.flatten()[:6, None]
    assert pair_loss(torch.cat([chances, 1 - chances], 1), torch.ones(6, 3)).isfinite()


def test_halves_that_are_missing_are_named(data):
    for method in LEARNED:
        model = method.make(JOB, data).eval()
        if model.apart: continue
        frame, spatial, lengths = inputs(model, [data.features["v00"], data.features["v02"]])
        output = model(frame, spatial, lengths, model.embed(data.clip))
        with pytest.raises(LossError, match="found 0 abnormal ones of 2"):
            model.loss(output, torch.tensor([[1., 0, 0]] * 2), lengths)


def test_opvad_reads_the_benchmark_s_phrases(data):
    model = method_named("OPVAD").make(dataclasses.replace(JOB), data)
    assert isinstance(model, OPVAD) and {"fire", "road accident"} <= set(model.options.abnormal)
    assert model.knowledge.shape == (len(model.options.normal) + len(model.options.abnormal), D)
    assert model.options.similar == 1 and "a picture of sky" in model.options.normal


def test_parts_add_up():
    loss = LossParts({"a": torch.tensor(1., requires_grad=True), "b": torch.tensor(2.)})
    assert loss.items() == {"total": 3., "a": 1., "b": 2.} and loss.total.requires_grad


# ---- the list -------------------------------------------------------------------------------------
def printed_tables():
    "Tables 1 to 3 as the paper's text has them: {benchmark: {name: (feature, AUC, TIoU)}}."
    path = Path(__file__).resolve().parents[2]/"shared"/"papers"/"stprompt_2408.05905.md"
    if not path.is_file(): pytest.skip("the papers are not here (../shared/papers)")
    tables, name = {}, None
    for line in path.read_text(encoding="utf-8").split("\n"):
        if line.startswith("Table "): name = line.rstrip(".").split()[-1] if line[6] in "123" else None
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if name and len(cells) == 4 and cells[2].replace(".", "").isdigit():
            method, feature = (cell.split(" [")[0].split("[")[0] for cell in cells[:2])
            method += cells[0].partition("]")[2].replace("+", " + ")
            if "\u2020" in cells[0] or "dagger" in cells[0]: method = "Sultani et al., patches"
            tiou = None if cells[3] == "N/A" else float(cells[3])
            tables.setdefault(name, {})[method.strip()] = (feature, float(cells[2]), tiou)
    return tables


def test_the_paper_s_values_are_the_paper_s():
    names = {"UCFCrime": "UCF-Crime", "ShanghaiTech": "ShanghaiTech", "UBnormal": "UBnormal"}
    for name, rows in printed_tables().items():
        table = paper_table(names[name])
        plain = [tuple(None if value != value else value for value in row) for row in table.values.tolist()]
        assert dict(zip(table.index, plain)) == rows, name


def test_each_row_is_either_ours_or_says_why():
    assert {one.name for one in METHODS} == {"STPrompt", *(n for rows in PAPER_ROWS.values() for n in rows)}
    assert set(PAPER_ROWS) == set(PAPER) and len(OURS) == 13
    for method in METHODS:
        assert method.source and method.note and "\n" not in method.note
        if method.make is None:
            with pytest.raises(JobError, match=method.name.split(" +")[0]): method.fit(JOB, None)
    table = method_table()
    assert (table["ours"] == "cited only").sum() == 12 and list(table.index) == [m.name for m in METHODS]


def test_settings_are_the_method_s_own_on_the_paper_s_benchmarks():
    tsa, own = method_named("CLIP-TSA"), {"lr": 1e-3, "weight_decay": 5e-3}
    assert tsa.settings("ucf_crime") == tsa.settings("xd_violence") == own
    assert tsa.settings("ministreet") == {"weight_decay": 5e-3}
    assert method_named("VadCLIP").settings("ucf_crime")["lr"] == 2e-5
    assert method_named("STPrompt").settings("ucf_crime") == {}


def test_fitted_at_once_is_one_epoch(data):
    seen = []
    fitted = fit_at_once(JOB, data, on_epoch=lambda *one: seen.append(one),
                         make=method_named("SVM baseline").make, lr=3., max_length=5)
    assert seen[0][0] == 1 and set(seen[0][1]) == {"total", "validation AUC"}
    assert (fitted.history.best_epoch, fitted.epochs, fitted.unfinished) == (1, 1, "")
    assert fitted.history.best_state.keys() == fitted.history.last_state.keys()
