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

from stprompt import bootstrap as B
from stprompt import metrics as M
from stprompt import overlap as O

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
    pos, neg = B.levels(values, labels)
    for weight in M.draws(n, 5, seed):
        drawn = [(f"{k}#{j}", k) for k, w in zip(ids, weight) for j in range(int(w))]
        s, t = {a: scores[k] for a, k in drawn}, {a: truths[k] for a, k in drawn}
        y = np.concatenate(list(t.values()))
        if y.all() or not y.any(): continue
        counts = (weight @ pos)[None], (weight @ neg)[None]
        assert 100 * B.auc_of_counts(*counts)[0] == pytest.approx(M.frame_auc(s, t))
        assert 100 * B.ap_of_counts(*counts)[0] == pytest.approx(M.frame_ap(s, t))


def test_quantile_levels_stay_close_and_a_thousand_resamples_take_seconds():
    rng = np.random.default_rng(0)
    truths = {f"v{i}": rng.random(2000) < .1 for i in range(100)}
    scores = {k: rng.normal(size=2000) + y for k, y in truths.items()}
    start = time.perf_counter()
    low, high = M.ranking_interval(scores, truths)
    assert time.perf_counter() - start < 15
    _, values, labels = M.paired(scores, truths)
    pos, neg = B.levels(values, labels)
    assert pos.shape[1] <= 2049 and pos.sum() == sum(y.sum() for y in labels)
    auc = 100 * B.auc_of_counts(pos.sum(0)[None], neg.sum(0)[None])[0]
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
    one = [M.frame_iou(a[:1], b[:1], t, p) for t in O.TRUTH_BOXES for p in O.PREDICTED_BOXES]
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
    scores, truths = world(2, 24)
    first, second = (M.frame_report(scores, truths, perfect(truths), threshold=.5, n=300) for _ in range(2))
    assert first.to_dict() == second.to_dict()
    json.dumps(first.to_dict(), allow_nan=False)
    for name, metric in first.metrics.items():
        assert metric["ci95"][0] - 1e-9 <= metric["mean"] <= metric["ci95"][1] + 1e-9, name
    assert {metric["n"] for metric in first.metrics.values()} == {24, 12}


def test_no_interval_below_ten_videos_and_how_many_beside_each():
    scores, truths = world(2, 18)                                # nine of them abnormal
    report = M.frame_report(scores, truths, perfect(truths), threshold=.5, n=50)
    counted = {name: (metric["n"], metric["ci95"] is None) for name, metric in report.metrics.items()}
    assert counted["frame_auc"] == counted["frame_ap"] == (18, False)
    assert counted["ano_auc"] == counted["mean_iou"] == counted["tiou"] == (9, True)
    shown = report.table().set_index("metric")
    assert shown.loc["mean IoU, no gate", ["95 % interval", "n"]].tolist() == ["-", 9]
    few = {f"v{i}": [i / 9] for i in range(9)}
    assert M.ranking_interval(few, {name: [v[0] > .5] for name, v in few.items()}) is None
    assert M.mean_interval({name: np.array(v) for name, v in few.items()}) is None
    more = few | {"v9": [1.]}
    assert M.ranking_interval(more, {name: [v[0] > .5] for name, v in more.items()}) == [100, 100]
    assert M.mean_interval({name: np.array(v) for name, v in more.items()}) is not None


def test_a_report_prints_a_small_table_and_every_floor_on_request():
    scores, truths = world(2, 24)
    report = M.frame_report(scores, truths, perfect(truths), threshold=.5, n=300)
    head, *rows = repr(report).splitlines()
    assert head.split() == "metric ours 95 % interval n best trivial answer".split()
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
    assert both.table().values.tolist() == [["TIoU, gate from training videos", "1.00", "-", "-", "2.00"]]
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


def literal_map(curves, actual, level):
    "VadCLIP's mAP at one IoU as their code goes through it, loop by loop; percent."
    videos, scores, average = list(curves), {}, []
    for v in videos:                                             # video scores; a class is kept above 0
        T, C = curves[v].shape
        for c in range(C):
            top = sorted(curves[v][:, c].tolist(), reverse=True)[:int(T / 16)]
            scores[v, c] = np.mean(top) if top else float("nan")
    for c in range(C):
        predicted = []
        for v in videos:
            kept = scores[v, c] > 0                              # False for NaN
            p = [x if kept else 0. for x in curves[v][:, c].tolist()]
            threshold = max(p) - .6 * (max(p) - min(p))
            start = None
            for t, x in enumerate([*p, -np.inf]):
                if x > threshold and start is None: start = t
                if not x > threshold and start is not None:
                    if t - start >= 2: predicted.append((v, start, t, max(p[start:t]) + .7 * scores[v, c]))
                    start = None
        predicted.sort(key=lambda segment: -segment[3])
        left = [(v, s, e) for v in videos for s, e, kind in actual[v] if kind == c]
        total, hits, precisions = len(left), [], []
        for v, s, e, _ in predicted:
            best, found = 0, None
            for n, (video, first, last) in enumerate(left):
                ours, theirs = set(range(s, e)), set(range(first, last))
                overlap = len(ours & theirs) / len(ours | theirs)
                if video == v and overlap >= level and overlap > best: best, found = overlap, n
            hits.append(found is not None)
            if found is not None: del left[found]
            precisions.append(sum(hits) / len(hits))
        ap = sum(p for p, hit in zip(precisions, hits) if hit) / total if total else 0
        average.append(ap)
    return 100 * np.mean(average)


def softmax(x): return np.exp(x) / np.exp(x).sum(1, keepdims=True)


def random_events(rng, n_frames, columns):
    cuts = np.sort(rng.choice(n_frames + 1, 2 * int(rng.integers(1, 3)), replace=False)).reshape(-1, 2)
    return [(int(s), int(e), int(rng.integers(1, columns))) for s, e in cuts]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(2, 4),
       st.sampled_from(["softmax", "ties", "ties of few", "some below 0"]), st.booleans())
def test_map_by_vadclips_code_equals_its_loops(seed, videos, columns, kind, short):
    rng, curves, actual = np.random.default_rng(seed), {}, {}
    for n in range(videos):
        T = int(rng.integers(4, 20) if short else rng.integers(16, 70))
        drift = np.cumsum(rng.normal(size=(T, columns)), 0) / 2
        curves[f"v{n}"] = {"softmax": softmax(drift), "ties": np.round(softmax(drift), 1),
                           "ties of few": rng.integers(0, 3, (T, columns)) / 4,
                           "some below 0": drift - 1}[kind]
        actual[f"v{n}"] = random_events(rng, T, columns) if n % 3 != 1 else []
    found = M.map_at_iou(curves, actual, definition="code")
    for level in (.1, .2, .3, .4, .5):
        assert found[level] == pytest.approx(literal_map(curves, actual, level), abs=1e-9), level
    assert found["average"] == pytest.approx(np.mean([found[level] for level in (.1, .2, .3, .4, .5)]))


def test_the_two_definitions_of_map_differ_as_they_say():
    curve, other = np.zeros((32, 3)), np.zeros((32, 3))
    curve[8:16, 1], other[4:6, 1] = .8, .9
    fine = {"a": curve, "b": other}, {"a": [(8, 16, 1)], "b": []}
    assert M.map_at_iou(*fine)["average"] == pytest.approx(100)          # the normal video is not looked at
    assert M.map_at_iou(*fine, definition="code")["average"] == pytest.approx(100 / 2 / 3)
    only = {"a": fine[0]["a"]}, {"a": fine[1]["a"]}
    assert M.map_at_iou(*only, definition="code")[.5] == pytest.approx(100 / 3)     # 'fire' empty: 0 alone
    cut = {"a": curve[4:19]}, {"a": [(4, 12, 1)]}                        # 15 frames
    assert M.map_at_iou(*cut)[.5] == 100 and M.map_at_iou(*cut, definition="code")[.5] == 0
    assert M.events(np.array([.2, .8, .8, .47, .47, .2] + [.2] * 10))[0][:2] == (1, 5)        # cut at .44
    assert M.events(np.array([0., .9, 0.] + [0.] * 13)) == []            # one frame is no segment


# ---- paired ----------------------------------------------------------------------------------------
def two_methods(seed, n, ties=False):
    scores, truths = videos(np.random.default_rng(seed), n, ties)
    rng = np.random.default_rng(seed + 1)
    return scores, {v: np.round(x + rng.normal(size=len(x)) / 3, 1 if ties else 8)
                    for v, x in reversed(scores.items())}, truths


def drawn_again(metric, a, b, truths, n, seed=0):
    "The slow way: both metrics on the videos of each draw, copies under names of their own."
    found, names = [], sorted(a)
    for weight in M.draws(len(names), n, seed):
        drawn = {f"{v}#{j}": v for v, w in zip(names, weight) for j in range(int(w))}
        ours, theirs, known = ({new: part[v] for new, v in drawn.items()} for part in (a, b, truths))
        try: found.append(metric(ours, known) - metric(theirs, known))
        except M.MetricError: pass
    return found


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.booleans(),
       st.sampled_from(["frame_auc", "frame_ap", "video_auc", "video_ap"]))
def test_a_paired_difference_equals_the_slow_way(seed, ties, name):
    a, b, truths = two_methods(seed, 14, ties)
    if name.startswith("video") and all(t.any() for t in truths.values()): return
    metric, found = getattr(M, name), M.compare(a, b, truths, name, n=60)
    slow = drawn_again(metric, a, b, truths, 60)
    assert found.points == pytest.approx(metric(a, truths) - metric(b, truths), abs=1e-6)
    assert found.ci95 == pytest.approx(np.quantile(slow, [.025, .975]).tolist(), abs=1e-6)
    own = M.compare(a, b, truths, metric, n=60)                  # the metric as a function
    assert [*own.ci95, own.favour_b] == pytest.approx([*found.ci95, found.favour_b], abs=1e-6)
    assert own.metric == name and found.n == 14
    turned = M.compare(b, a, truths, name, n=60)
    assert turned.points == pytest.approx(-found.points)
    assert turned.favour_b == pytest.approx(1 - found.favour_b)
    assert turned.ci95 == pytest.approx([-v for v in found.ci95[::-1]], abs=1e-6)


@pytest.mark.parametrize("name", M.COMPARED)
def test_a_method_against_itself(name):
    a, _, truths = two_methods(3, 24)
    values = {"iou": {v: np.abs(x) for v, x in a.items()}, "tch": {v: (x, truths[v]) for v, x in a.items()}}
    given = values.get(name[-3:], values["tch"] if name.startswith("patch") else a)
    found = M.compare(given, dict(given), truths, name, n=100)
    assert (found.points, found.ci95, found.favour_b, found.p) == (0, [0, 0], .5, 1)
    assert repr(found).startswith("difference 0.0 [0.0, 0.0], ")


def test_a_known_shift_is_found_and_a_video_drawn_twice_counts_twice():
    rng = np.random.default_rng(0)
    base = {f"v{i}": rng.random(int(rng.integers(1, 9))) / 2 for i in range(30)}
    shifted = {v: x + .2 for v, x in base.items()}
    found = M.compare(shifted, base, metric="mean_iou")
    assert [found.points, *found.ci95] == pytest.approx([20] * 3) and found.favour_b == 0 and found.p == 0
    some = {v: x + .4 * (i % 2) for i, (v, x) in enumerate(base.items())}
    found = M.compare(some, base, metric="tiou")
    slow = drawn_again(lambda values, _: 100 * np.concatenate(list(values.values())).mean(), some, base,
                       dict.fromkeys(base), 1000)
    assert found.ci95 == pytest.approx(np.quantile(slow, [.025, .975]).tolist())
    assert found.ci95[0] < found.points < found.ci95[1]


def test_seeds_are_averaged_within_each_draw():
    a, b, truths = two_methods(5, 20)
    both, one = M.compare([a, b], b, truths, n=80), M.compare(a, b, truths, n=80)
    assert both.points == pytest.approx(one.points / 2)
    assert both.ci95 == pytest.approx([v / 2 for v in one.ci95])


def test_ano_auc_draws_abnormal_videos_alone():
    a, b, truths = two_methods(7, 40)
    kept = M.abnormal_only(truths)
    part = lambda values: {v: values[v] for v in kept}
    found, alone = M.compare(a, b, truths, "ano_auc", n=50), M.compare(part(a), part(b), kept, n=50)
    assert found.n == len(kept) < 40 and (found.points, found.ci95) == (alone.points, alone.ci95)


def test_three_hundred_videos_take_seconds_and_pairing_narrows():
    rng = np.random.default_rng(0)
    truths = {f"v{i}": rng.random(1000) < .1 * (i % 2) for i in range(300)}
    a = {v: rng.normal(size=1000) + y + rng.normal() for v, y in truths.items()}
    b = {v: x + rng.normal(size=1000) for v, x in a.items()}
    start = time.perf_counter()
    found = M.compare(a, b, truths)
    assert time.perf_counter() - start < 20
    alone = [M.ranking_interval(values, truths) for values in (a, b)]
    assert found.ci95[1] - found.ci95[0] < .5 * min(high - low for low, high in alone)
    assert found.ci95[0] > 0 and alone[0][0] < alone[1][1], "they overlap, and yet a is better"


def test_below_ten_videos_a_difference_has_no_interval():
    a, b, truths = two_methods(1, 9)
    found = M.compare(a, b, truths, n=50)
    shown = f"difference {round(found.points, 1) + 0.:.1f} [-], 9 videos"
    assert found.ci95 is None and repr(found) == shown


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
    "map of uneven columns": (lambda: M.map_at_iou({"a": np.zeros((4, 2))}, {"a": [(0, 2, 2)]}), "columns"),
    "other videos": (lambda: M.compare({"a": [.1]}, {"b": [.1]}, metric="mean_iou"), "'a' is not in all"),
    "other videos of the truth": (lambda: M.compare(*[{"a": [.1]}] * 2, {"c": [1]}), "'a' is not in all"),
    "other frames": (lambda: M.compare({"a": [.1]}, {"a": [.1, .2]}, metric="tiou"), "'a': a and b differ"),
    "no videos": (lambda: M.compare({}, {}, metric="tiou"), "found none"),
    "no truth": (lambda: M.compare({"a": [.1]}, {"a": [.1]}), "frame_auc needs the ground truth"),
    "unknown metric": (lambda: M.compare({"a": [.1]}, {"a": [.1]}, metric="f1"), "one of frame_auc, .*'f1'"),
    "map without events": (lambda: M.map_at_iou({"a": np.zeros((4, 1))}, {"a": []}), "true event"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_end_with_one_sentence(name):
    action, words = MISTAKES[name]
    with pytest.raises(M.MetricError, match=words) as error: action()
    assert "\n" not in str(error.value)
