"""Metrics against brute force, against real annotations, and against users' mistakes."""
import json
import pickle
import re
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stprompt import metrics as M

UCF = Path(__file__).resolve().parents[2] / "shared" / "annotations" / "ucf_crime" / "Test_annotation.pkl"


class PlainUnpickler(pickle.Unpickler):
    """Builtin containers, numbers and strings only: a pickle from the web must not run code."""
    def find_class(self, module, name): raise pickle.UnpicklingError(f"refused {module}.{name}")


def ucf_truths(path, base=1):
    with open(path, "rb") as file: raw = PlainUnpickler(file, encoding="latin1").load()
    truths = {}
    for name, rows in raw.items():
        boxes = {}
        for path, *corners in rows:
            frame = int(re.search(r"image_(\d+)", str(path)).group(1)) - 1
            x1, y1, x2, y2 = map(float, corners)
            corners = [x1 - base, y1 - base, x2, y2]           # base 1: 1-based inclusive -> half-open
            boxes.setdefault(frame, []).append(corners)
        boxes = {f: np.array(b) for f, b in boxes.items()}
        mask = np.ones(max(boxes, default=0) + 1, bool)
        if boxes: truths[name] = SimpleNamespace(size=(240, 320), boxes=boxes, pixel_masks=None, mask=mask)
    return truths


AS_THEY_STAND = {"whole frame": 23.07, "centred 0.5": 33.26, "centred 0.6": 35.31, "centred 0.8": 31.40}
AS_WE_READ = {"whole frame": 23.40, "centred 0.5": 33.36, "centred 0.6": 35.52, "centred 0.8": 31.74}


@pytest.mark.skipif(not UCF.exists(), reason="the official UCF-Crime boxes are not in ../shared/annotations")
@pytest.mark.parametrize("base, expected", [(0, AS_THEY_STAND), (1, AS_WE_READ)])
def test_trivial_floors_on_the_official_ucf_crime_boxes(base, expected):
    truths = ucf_truths(UCF, base)
    frames = M.annotated_frames(truths)
    assert (len(truths), sum(map(len, frames.values()))) == (140, 3102)
    floors = M.box_floors(truths, frames)
    for name, value in expected.items(): assert floors[name] == pytest.approx(value, abs=.006), name
    assert floors["best"] > 23.90                                                  # the paper's TIoU


def test_the_unpickler_refuses_code(tmp_path):
    evil = tmp_path / "evil.pkl"
    evil.write_bytes(pickle.dumps({"a": print}, protocol=2))
    with pytest.raises(pickle.UnpicklingError, match="refused"): ucf_truths(evil)


def videos(rng, n, ties):
    truths = {f"v{i}": rng.random(rng.integers(1, 12)) < .4 for i in range(n)}
    truths["v0"] = np.array([True, False])
    scores = {k: np.round(rng.random(len(y)), 1 if ties else 8) for k, y in truths.items()}
    return scores, truths


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 8), st.booleans())
def test_auc_and_ap_equal_their_definitions(seed, n, ties):
    scores, truths = videos(np.random.default_rng(seed), n, ties)
    v, y = np.concatenate(list(scores.values())), np.concatenate(list(truths.values()))
    pairs = (v[y][:, None] > v[~y][None]) + .5 * (v[y][:, None] == v[~y][None])
    assert M.frame_auc(scores, truths) == pytest.approx(100 * pairs.mean())
    ap, before = 0, 0
    for level in np.unique(v)[::-1]:
        chosen = v >= level
        recall = (chosen & y).sum() / y.sum()
        ap += (recall - before) * (chosen & y).sum() / chosen.sum()
        before = recall
    assert M.frame_ap(scores, truths) == pytest.approx(100 * ap)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 7), st.booleans())
def test_each_bootstrap_resample_equals_the_metric_of_the_drawn_videos(seed, n, ties):
    scores, truths = videos(np.random.default_rng(seed), n, ties)
    ids, values, labels = M.paired(scores, truths)
    pos, neg = M._levels(values, labels)
    for weight in M.draws(n, 5, seed):
        drawn = [(f"{k}#{j}", k) for k, w in zip(ids, weight) for j in range(int(w))]
        s, t = {a: scores[k] for a, k in drawn}, {a: truths[k] for a, k in drawn}
        y = np.concatenate(list(t.values()))
        if y.all() or not y.any(): continue
        counts = (weight @ pos)[None], (weight @ neg)[None]
        assert 100 * M._auc_of_counts(*counts)[0] == pytest.approx(M.frame_auc(s, t))
        assert 100 * M._ap_of_counts(*counts)[0] == pytest.approx(M.frame_ap(s, t))


def test_quantile_levels_stay_close_and_a_thousand_resamples_take_seconds():
    rng = np.random.default_rng(0)
    truths = {f"v{i}": rng.random(2000) < .1 for i in range(100)}
    scores = {k: rng.normal(size=2000) + y for k, y in truths.items()}
    start = time.perf_counter()
    low, high = M.ranking_interval(scores, truths)
    assert time.perf_counter() - start < 15
    _, values, labels = M.paired(scores, truths)
    pos, neg = M._levels(values, labels)
    assert pos.shape[1] <= 2049 and pos.sum() == sum(y.sum() for y in labels)
    auc = 100 * M._auc_of_counts(pos.sum(0)[None], neg.sum(0)[None])[0]
    assert auc == pytest.approx(M.frame_auc(scores, truths), abs=.1)
    assert low < M.frame_auc(scores, truths) < high


def ordered(b): return [min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]), max(b[1], b[3])]


boxes = st.lists(st.tuples(*[st.integers(0, 20)] * 4).map(ordered), max_size=4)


def painted(rows):
    canvas = np.zeros((20, 20), bool)
    for x1, y1, x2, y2 in rows: canvas[y1:y2, x1:x2] = True
    return canvas


@settings(max_examples=200, deadline=None)
@given(boxes, boxes)
def test_region_iou_and_area_equal_painted_pixels(a, b):
    A, B = painted(a), painted(b)
    expected = (A & B).sum() / (A | B).sum() if a and b and (A | B).any() else 0
    assert M.frame_iou(a, b, "union", "union") == pytest.approx(expected)
    assert M.region_area(np.array(a, float).reshape(-1, 4)) == A.sum()
    assert M.frame_iou(a, b, "union", "union") == pytest.approx(M.frame_iou(b, a, "union", "union"))


@settings(max_examples=100, deadline=None)
@given(boxes, boxes)
def test_options_agree_for_one_box_and_bound_each_other(a, b):
    one = [M.frame_iou(a[:1], b[:1], t, p) for t in M.TRUTH_BOXES for p in M.PREDICTED_BOXES]
    assert max(one) == pytest.approx(min(one))
    assert M.frame_iou(a, b, "best", "best") >= M.frame_iou(a, b, "best", "top") - 1e-12
    assert 0 <= M.frame_iou(a, b) <= 1


def test_predicting_many_boxes_does_not_pay_by_default():
    truth = np.array([[0, 0, 4, 4.]])
    grid = np.array([[x, y, x + 4, y + 4.] for x in range(0, 20, 4) for y in range(0, 20, 4)])
    assert M.frame_iou(grid, truth, boxes="best") == 1
    assert M.frame_iou(grid, truth) == pytest.approx(1 / 25)


def world(seed=0, n=6):
    rng = np.random.default_rng(seed)
    truths, scores = {}, {}
    for i in range(n):
        mask = np.zeros(20, bool)
        if i % 2: mask[5:12] = True
        box = np.array([[3, 3, 5 + i, 5 + i]], float)
        truths[f"v{i}"] = SimpleNamespace(n_frames=20, size=(24, 32), mask=mask, pixel_masks=None,
                                          boxes={f: box for f in np.flatnonzero(mask)})
        scores[f"v{i}"] = rng.random(20) * .5 + .4 * mask
    return scores, truths


def perfect(truths): return {k: dict(t.boxes) for k, t in truths.items()}


def test_a_perfect_localizer_scores_100_and_a_broken_one_does_not():
    scores, truths = world()
    frames = M.annotated_frames(truths)
    exact = {k: {int(f): M.truth_pixels(truths[k], f) * 1. for f in index} for k, index in frames.items()}
    samples = {k: M.patch_samples(exact[k], truths[k], index, 2) for k, index in frames.items()}
    good = M.frame_report(scores, truths, perfect(truths), samples, threshold=-1., n=50)
    assert [good[k] for k in ("mean_iou", "tiou", "patch_auc", "patch_ap")] == pytest.approx([100] * 4)
    assert not good.skipped and set(good.by_size) == {"mean_iou", "frame_auc"}
    shifted = {k: {f: b + 20 for f, b in v.items()} for k, v in perfect(truths).items()}
    assert M.frame_report(scores, truths, shifted, n=50)["mean_iou"] == 0
    flipped = {k: (-h, y) for k, (h, y) in samples.items()}
    assert M.patch_auc(flipped) == pytest.approx(0)


def test_tiou_is_monotone_in_the_gate_and_never_above_mean_iou():
    scores, truths = world(1)
    frames, ious = M.annotated_frames(truths), M.box_ious(perfect(truths), truths)
    values = [M.tiou(ious, scores, frames, t) for t in np.linspace(-1, 2, 40)]
    assert all(a >= b for a, b in zip(values, values[1:]))
    assert values[0] == pytest.approx(M.mean_iou(ious)) and values[-1] == 0


def test_frames_without_a_prediction_count_zero():
    _, truths = world()
    half = {k: {f: b for f, b in v.items() if f % 2} for k, v in perfect(truths).items()}
    assert M.mean_iou(M.box_ious(half, truths)) == pytest.approx(100 * 4 / 7)


def test_report_is_json_and_intervals_are_reproducible_and_hold_the_mean():
    scores, truths = world(2, 12)
    first, second = (M.frame_report(scores, truths, perfect(truths), threshold=.5, n=300) for _ in range(2))
    assert first.to_dict() == second.to_dict()
    json.dumps(first.to_dict(), allow_nan=False)
    for name, metric in first.metrics.items():
        assert metric["ci95"][0] - 1e-9 <= metric["mean"] <= metric["ci95"][1] + 1e-9, name


def test_a_report_prints_a_small_table_and_every_floor_on_request():
    scores, truths = world(2, 12)
    report = M.frame_report(scores, truths, perfect(truths), threshold=.5, n=300)
    head, *rows = repr(report).splitlines()
    assert head.split() == "metric ours 95 % interval best trivial answer".split()
    assert len(rows) == len(report.metrics) + 1 and "not computed: patch_auc (no local" in rows[-1]
    best, low = f"{report.floors['iou best']:.2f}", f"{report.metrics['tiou']['ci95'][0]:.2f}"
    row = next(row for row in rows if "gate from training" in row)
    assert row.split()[-1] == best and f"{report['tiou']:.2f}" in row and low in row
    assert "centred" not in repr(report) and "whole frame" not in repr(report)
    table = report.floor_table()
    assert set(report.floors) - set(M.METRIC_NAMES) <= set(table.metric)
    assert len(table) == len(report.floors) + 3 * len(report.by_size)
    assert f"{table.percent[table.metric == 'iou best'].item():.2f}" == best
    assert set(report.metrics) <= set(M.METRIC_NAMES)


def test_a_report_is_a_value():
    report = M.Report({"tiou": {"mean": 1., "ci95": None}}, {"iou best": 2.})
    both = report | M.Report(skipped={"mean_iou": "no boxes"})
    assert both["tiou"] == 1 and both.floors == report.floors and not report.skipped
    assert M.floor_of("tiou_oracle", both.floors) == 2 and M.floor_of("frame_auc", both.floors) is None
    assert both.table().values.tolist() == [["TIoU, gate from training videos", "1.00", "none", "2.00"]]
    with pytest.raises(AttributeError): report.metrics = {}


def test_pixel_masks_come_before_boxes():
    exact = np.eye(4, dtype=bool)
    truth = SimpleNamespace(size=(4, 4), boxes={0: [[0, 0, 4, 4]]}, pixel_masks=lambda f: exact)
    assert M.truth_pixels(truth, 0).sum() == 4
    truth.pixel_masks = lambda f: None
    assert M.truth_pixels(truth, 0).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=60, unique=True), st.floats(.01, .99))
def test_the_weak_threshold_is_a_rate_of_false_alarms(values, alarms):
    scores = {"a": values[::2], "b": values[1::2], "fight": [.5, 1.]}
    labels = {"a": False, "b": False, "fight": True}
    t = M.weak_threshold(scores, labels, alarms)
    reached = (np.array(values) >= t).sum()
    assert 1 <= reached <= alarms * len(values) + 1
    assert t == M.weak_threshold({**scores, "fight": [0., 0.]}, labels, alarms)


def test_oracle_threshold_is_youden():
    scores, truths = world(3)
    t = M.oracle_threshold(scores, truths)
    v, y = np.concatenate(list(scores.values())), np.concatenate([x.mask for x in truths.values()])
    youden = lambda t: (v[y] >= t).mean() - (v[~y] >= t).mean()
    assert youden(t) == pytest.approx(max(youden(x) for x in v))


def test_temporal_ap_takes_each_event_once():
    twice = [("a", 0, 4, .9), ("a", 0, 4, .8), ("a", 10, 14, .7)]
    assert M.interval_ap(twice, [("a", 0, 4), ("a", 10, 14)], .5) == pytest.approx((1 + 2 / 3) / 2)
    assert M.interval_ap([], [("a", 0, 4)], .1) == 0
    assert M.interval_ap([("b", 0, 4, 1.)], [("a", 0, 4)], .1) == 0


GOOD = {"a": [.1, .2], "b": [.3, .4]}, {"a": np.array([0, 1]), "b": np.array([0, 0])}
MISTAKES = {
    "NaN": (lambda: M.frame_auc({**GOOD[0], "b": [0.1, np.nan]}, GOOD[1]), "'b'.*finite"),
    "infinite": (lambda: M.frame_ap({**GOOD[0], "b": [np.inf, 0]}, GOOD[1]), "'b'.*finite"),
    "length": (lambda: M.frame_auc({**GOOD[0], "a": [0.1] * 3}, GOOD[1]), "'a': 3 scores for 2 frames"),
    "video without scores": (lambda: M.frame_auc({"a": [0.1, 0.2]}, GOOD[1]), "'b' has no scores"),
    "video without truth": (lambda: M.frame_auc({**GOOD[0], "c": [1]}, GOOD[1]), "'c' has no ground truth"),
    "nothing": (lambda: M.frame_auc({}, {}), "no videos"),
    "one class": (lambda: M.frame_auc({"b": [0.3, 0.4]}, {"b": [0, 0]}), "only ordinary"),
    "one class of videos": (lambda: M.video_auc(GOOD[0], {"a": True, "b": True}), "only anomalous"),
    "no abnormal video": (lambda: M.ano_auc({"b": [.3, .4]}, {"b": np.zeros(2)}), "needs an abnormal video"),
    "no boxes": (lambda: M.box_ious({}, {"a": SimpleNamespace(boxes={})}), "found none"),
    "box inside out": (lambda: M.frame_iou([[5, 5, 1, 1]], [[0, 0, 1, 1]]), "x1 <= x2"),
    "box of three numbers": (lambda: M.frame_iou([[5, 5, 1]], [[0, 0, 1, 1]]), "x1 y1 x2 y2"),
    "truth option": (lambda: M.frame_iou([], [], truth="mean"), "hull, union, best"),
    "boxes option": (lambda: M.frame_iou([], [], boxes="mean"), "union, hull, top, best"),
    "pool option": (lambda: M.video_auc(*GOOD, pool="median"), "'max' or 'topk'"),
    "metric option": (lambda: M.ranking_interval(*GOOD, metric="f1"), "'auc' or 'ap'"),
    "no gate": (lambda: M.gates({"a": [1]}, {"a": np.array([0])}, np.nan), "finite"),
    "score too short for a box": (lambda: M.gates({"a": [1]}, {"a": np.array([4])}, 0), "frame 4.*only 1 s"),
    "frames of an unknown video": (lambda: M.box_ious({}, {}, {"b": np.array([0])}), "'b' is to be eval"),
    "map definition": (lambda: M.map_at_iou({}, {}, definition="mine"), "'paper' or 'code'"),
    "map without events": (lambda: M.map_at_iou({"a": np.zeros((4, 1))}, {"a": []}), "true event"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_end_with_one_sentence(name):
    action, words = MISTAKES[name]
    with pytest.raises(M.MetricError, match=words) as error: action()
    assert "\n" not in str(error.value)
