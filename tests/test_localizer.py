"""The localizer against known answers, brute force and users' mistakes. CLIP is an oracle of colours."""
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from stprompt import localizer as L
from stprompt import metrics as M
from stprompt.video import VideoError, read_frames, write_video

ORANGE, GREY = (240, 130, 20), (150, 150, 150)


class ColourCLIP:
    resolution, dim = 224, 3

    def __init__(self, grow=1.): self.calls, self.grow = [], grow

    def text(self, sentences):
        return torch.tensor([ORANGE if "burn" in s else GREY for s in sentences], dtype=torch.float32)

    def windows(self, frames, size=32, stride=32, mode="token"):
        self.calls.append((len(frames), size, stride, mode))
        small = np.stack([cv2.resize(f, (224, 224), interpolation=cv2.INTER_AREA) for f in frames])
        colours = torch.from_numpy(small.astype(np.float32)).permute(0, 3, 1, 2)
        return self.grow * F.avg_pool2d(colours, size, stride).permute(0, 2, 3, 1)


FIRE = L.Queries(("a street", "a wall"), ("something burning",))


def scene(x, y, w, h, size=(120, 160)):
    image = np.full((*size, 3), GREY, np.uint8)
    image[y:y + h, x:x + w] = ORANGE
    return image


def build(**options):
    return L.Localizer(ColourCLIP(), FIRE, L.LocalizerOptions(**{"tau": .05, "threshold": .5, **options}))


def iou(a, b):
    w, h = np.minimum(a[2:4], b[2:4]) - np.maximum(a[:2], b[:2])
    both = max(w, 0) * max(h, 0)
    return both / (np.prod(a[2:4] - a[:2]) + np.prod(b[2:4] - b[:2]) - both)


def test_eq11_is_the_paper_formula_and_ignores_lengths():
    torch.manual_seed(0)
    x, q = torch.randn(5, 8), torch.randn(6, 8)
    heat = L.eq11(x, q, 4, .07)
    for i in range(5):
        e = torch.stack([torch.exp(F.cosine_similarity(x[i], q[k], dim=0) / .07) for k in range(6)])
        assert heat[i].item() == pytest.approx((e[4:].sum() / e.sum()).item(), rel=1e-4)
    assert torch.allclose(L.eq11(x * 40, q / 3, 4, .07), heat, atol=1e-6)
    assert torch.allclose(heat + L.eq11(x, torch.cat([q[4:], q[:4]]), 2, .07), torch.ones(5), atol=1e-6)
    assert torch.isfinite(L.eq11(torch.zeros(1, 8), q, 4, .01)).all()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 300),
    st.sampled_from([(32, 32), (80, 48), (64, 16), (224, 224), (48, 80)]),
    st.sampled_from(get_args(L.SpreadMode)),
)
def test_spreading_is_a_mean(pixels, scale, spread):
    window, stride = scale
    n = (224 - window) // stride + 1
    a = L.spread_matrix(pixels, n, window, stride, 224, spread)
    assert a.shape == (pixels, n) and (a >= 0).all() and np.allclose(a.sum(1), 1, atol=1e-5)
    alike = np.allclose(a, a[::-1, ::-1], atol=1e-5)             # left and right
    assert alike or (224 - window) % stride or spread == "cover"


def test_resize_is_the_bilinear_resize_of_torch():
    grid = torch.rand(2, 4, 7, generator=torch.Generator().manual_seed(0))
    ours = L.spread_map(grid, (50, 70), 32, 32)
    theirs = F.interpolate(grid[:, None], size=(50, 70), mode="bilinear")[:, 0]
    assert torch.allclose(ours, theirs, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.floats(.05, 1))
def test_boxes_enclose_exactly_the_hot_pixels(seed, threshold):
    heat = cv2.resize(np.random.default_rng(seed).random((5, 6)).astype(np.float32), (48, 40))
    boxes = L.heat_boxes(heat, threshold, min_area=0, max_boxes=1000)
    hot, covered = heat >= np.float32(threshold) * heat.max(), np.zeros(heat.shape, bool)
    for x1, y1, x2, y2, score in boxes:
        x1, y1, x2, y2 = map(int, (x1, y1, x2, y2))
        inside = hot[y1:y2, x1:x2]
        assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()  # tight
        assert score <= heat[y1:y2, x1:x2].max() + 1e-6
        covered[y1:y2, x1:x2] = True
    assert covered[hot].all() and boxes[0, 4] == pytest.approx(heat.max())
    assert (np.diff(boxes[:, 4]) <= 0).all()


@pytest.mark.parametrize("corner", [(0, 0), (100, 70), (60, 40)])
@pytest.mark.parametrize("spread", get_args(L.SpreadMode))
def test_a_hot_square_is_found_anywhere_in_the_frame(corner, spread):
    x, y = corner
    localizer = build(spread=spread)
    heat = localizer.heat(scene(x, y, 60, 50)[None])[0]
    assert iou(localizer.boxes(heat)[0], np.array([x, y, x + 60, y + 50])) > .45
    inside = np.zeros(heat.shape, bool)
    inside[y:y + 50, x:x + 60] = True
    assert heat[inside].mean() > 2 * heat[~inside].mean()


def test_raw_lengths_of_the_embeddings_do_not_matter():
    frames = scene(20, 20, 60, 50)[None]
    small = L.Localizer(ColourCLIP(.01), FIRE, L.LocalizerOptions(tau=.05)).heat(frames)
    assert np.allclose(small, build().heat(frames), atol=1e-5)


def test_chunks_are_bounded_and_change_nothing():
    frames = np.stack([scene(5 * t, 3 * t, 40, 40) for t in range(11)])
    whole, parts = build(chunk=64), build(chunk=3)
    assert np.allclose(whole.heat(frames), parts.heat(frames), atol=1e-6)
    assert max(n for n, *_ in parts.clip.calls) == 3
    assert {(s, d, m) for _, s, d, m in parts.clip.calls} == {(32, 32, "token"), (80, 48, "token")}
    crop = build(mode="crop")
    crop.heat(frames)
    assert {m for *_, m in crop.clip.calls} == {"crop"}


def test_motion_in_chunks_equals_motion_at_once():
    frames = np.random.default_rng(0).integers(0, 255, (9, 30, 40, 3), np.uint8)
    parts, whole = (build(method="motion", chunk=chunk).heat(frames) for chunk in (2, 50))
    assert np.allclose(parts, whole, atol=1e-4)


@pytest.mark.parametrize("method", get_args(L.HeatMethod))
@pytest.mark.parametrize("n", [0, 1, 2])
def test_few_frames_and_odd_sizes(method, n):
    frames = np.random.default_rng(0).integers(0, 255, (n, 37, 53, 3), np.uint8)
    localizer = build(method=method)
    heat = localizer.heat(frames)
    assert heat.shape == (n, 37, 53) and heat.dtype == np.float32 and np.isfinite(heat).all()
    assert len(localizer.boxes(heat)) == n


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    path = tmp_path_factory.mktemp("film")/"film.mp4"
    write_video(path, (scene(3 * t % 100, 2 * t % 60, 40, 40) for t in range(75)), 25)
    return path


def followed(localizer, film, index, stride=4, n_frames=75):
    parts = list(localizer.follow(film, np.array(index), stride, n_frames))
    assert [n for numbers, *_ in parts for n in numbers.tolist()] == index
    assert all(len(numbers) == len(images) == len(maps[0]) for numbers, images, maps in parts)
    return parts, np.concatenate([L.fuse(maps) for *_, maps in parts])


INDICES = [[0], [72], [0, 4, 8], [40, 72], list(range(0, 73, 4)), [8, 12, 32, 36, 40, 64], [4, 24, 44]]


@pytest.mark.parametrize("index", INDICES)
@pytest.mark.parametrize("method", get_args(L.HeatMethod))
@pytest.mark.parametrize("chunk", [1, 3, 32])
def test_a_video_in_parts_has_the_maps_of_all_its_sampled_frames(film, index, method, chunk):
    sampled = np.concatenate([part.images for part in read_frames(film, stride=4)])
    whole = build(method=method).heat(sampled)[np.array(index) // 4]
    localizer = build(method=method, chunk=chunk)
    parts, found = followed(localizer, film, index)
    assert np.allclose(found, whole, atol=1e-5)
    assert max(len(numbers) for numbers, *_ in parts) <= chunk
    assert np.array_equal(np.concatenate([images for _, images, _ in parts]), sampled[np.array(index) // 4])
    if method == "text":                                         # no other frame is encoded
        assert sum(n for n, window, *_ in localizer.clip.calls if window == 32) == len(index)


@pytest.mark.parametrize("method", ["motion", "pixels"])
def test_frames_beside_the_sampled_ones_have_neighbours_at_the_same_distance(film, method):
    "UCF-Crime counts its boxes from the anomaly's first frame."
    shifted = np.concatenate([part.images for part in read_frames(film, stride=16, start=5)])
    whole = build(method=method).heat(shifted)
    _, found = followed(build(method=method), film, [21, 37, 69], stride=16)
    assert np.allclose(found, whole[[1, 2, 4]], atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 99), min_size=1), st.integers(1, 20), st.integers(1, 7), st.booleans())
def test_stretches_hold_every_frame_once_with_its_neighbours(index, stride, longest, around):
    index = np.array(sorted(index))
    parts = L.stretches(index, stride, 100, longest, around)
    assert np.concatenate([part for part, _ in parts]).tolist() == index.tolist()
    for part, seen in parts:
        assert len(part) <= longest and set(part.tolist()) <= set(seen.tolist())
        near = {n for f in part.tolist() for n in (f - stride, f, f + stride) if 0 <= n < 100}
        assert set(seen.tolist()) == (near if around else set(part.tolist()))
        assert (np.diff(seen) == stride).all() or not around


def test_pictures_come_in_parts_that_share_one_frame_at_either_end(film):
    wanted = [seen for _, seen in L.stretches(np.arange(0, 73, 4), 4, 75, longest=3)]
    found = list(L.pictures_at(film, wanted))
    assert [len(images) for images in found] == [len(seen) for seen in wanted] and max(map(len, found)) == 5


@pytest.mark.parametrize("method", ["text", "pixels"])
def test_a_choice_is_what_a_localizer_with_these_options_does(film, method):
    from stprompt.sweeps import box_choices
    index = np.array([8, 12, 40])
    actual = {f: np.array([[f, 0, f + 40., 50]]) for f in index.tolist()}
    seen = SimpleNamespace(source=film), SimpleNamespace(n_frames=75, boxes=actual), index, 4
    found = box_choices(build(method=method), *seen, (.3, 1.), (.4, .9))
    assert list(found) == [(.3, .4), (.3, .9), (1., .4), (1., .9)]
    for (fusion, threshold), ious in found.items():
        localizer = build(method=method, fusion=fusion, threshold=threshold)
        parts, _ = followed(localizer, film, index.tolist())
        boxes = localizer.boxes(np.concatenate([L.fuse(maps, fusion) for *_, maps in parts]))
        assert ious == pytest.approx([M.frame_iou(*pair) for pair in zip(boxes, actual.values())])


def test_the_best_threshold_is_one_for_each_method_at_its_lambda():
    from stprompt.sweeps import best_thresholds
    index = pd.MultiIndex.from_product([["a", "b"], [.5, 1.]], names=["localizer", "lambda"])
    table = pd.DataFrame({.5: [1., 9, 3, 0], .8: [2., 1, 1, 7], "n": 5, "best trivial": 50.}, index)
    assert best_thresholds(table) == {"a": .8, "b": .5} and best_thresholds(table, 1.) == {"a": .5, "b": .8}
    assert best_thresholds(pd.DataFrame()) == {}


def test_a_video_that_ends_too_early_is_named(film):
    with pytest.raises(L.LocalizerError, match="film.mp4: frame 90 .* ends before it") as error:
        list(L.pictures_at(film, [np.array([2, 90])]))
    assert "\n" not in str(error.value)


def test_each_method_has_a_threshold_of_its_own_and_a_given_one_stays():
    assert set(L.BOX_THRESHOLDS) == {*get_args(L.NormalQueries), "motion", "pixels"}
    own = {L.LocalizerOptions(normal=name).threshold for name in get_args(L.NormalQueries)}
    assert own == {L.BOX_THRESHOLDS["paper"], L.BOX_THRESHOLDS["extended"]}
    for method in ("motion", "pixels"):
        assert L.LocalizerOptions(method=method, normal="extended").threshold == L.BOX_THRESHOLDS[method]
        assert L.LocalizerOptions(method=method, threshold=.25).threshold == .25


def test_fusion_is_linear_between_the_scales():
    frames = scene(20, 20, 60, 50)[None]
    one, two = (build(scales=(s,)).heat(frames) for s in ((32, 32), (80, 48)))
    assert np.allclose(build(fusion=.25).heat(frames), .25 * one + .75 * two, atol=1e-5)
    assert np.allclose(build(fusion=1.).heat(frames), one, atol=1e-5)


def test_the_papers_normal_list_and_the_extended_one():
    paper, extended = L.make_queries(["Fire"]), L.make_queries(["Fire"], "extended")
    assert len(paper.normal) == 13 and set(paper.normal) < set(extended.normal)
    assert paper.abnormal == extended.abnormal


MISTAKES = {
    "option": (lambda: L.LocalizerOptions(method="boxes"), "method='boxes': .*text, motion, pixels"),
    "no such option": (lambda: L.LocalizerOptions(spraed="cover"), "spraed.*did you mean spread"),
    "temperature": (lambda: L.LocalizerOptions(tau=-1), "tau=-1: expected a number"),
    "weight": (lambda: L.LocalizerOptions(fusion=2), "fusion=2: expected a number from 0 to 1"),
    "word for a number": (lambda: L.LocalizerOptions(threshold="half"), "threshold='half': expected a num"),
    "NaN": (lambda: L.LocalizerOptions(threshold=float("nan")), "threshold=nan: expected a number"),
    "no boxes": (lambda: L.LocalizerOptions(max_boxes=0), "max_boxes=0: expected a whole number from 1"),
    "scales": (lambda: L.LocalizerOptions(scales=((32,),)), r"scales: expected pairs.*found \(\(32,\),\)"),
    "no scales": (lambda: L.LocalizerOptions(scales=()), "scales: expected pairs"),
    "a scale of nothing": (lambda: L.LocalizerOptions(scales=((32, 0),)), "scales: expected pairs"),
    "words for scales": (lambda: L.LocalizerOptions(scales="32/32"), "scales: expected pairs"),
    "large window": (lambda: build(scales=((300, 32),)), "does not fit"),
    "no class": (lambda: L.make_queries({"Normal": "normal"}), "at least one anomaly class"),
    "no sentence": (lambda: L.Queries((), ("fire",)), "normal queries"),
    "a bare string": (lambda: L.Queries(("street",), "fire"), "abnormal queries"),
    "float frames": (lambda: build().heat(np.zeros((1, 8, 8, 3))), "uint8"),
    "one frame without a batch": (lambda: build().heat(np.zeros((8, 8, 3), np.uint8)), r"\[N, H, W, 3\]"),
    "NaN in a map": (lambda: L.heat_boxes(np.full((4, 4), np.nan)), "NaN"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_end_with_one_sentence(name):
    action, words = MISTAKES[name]
    with pytest.raises((L.LocalizerError, VideoError), match=words) as error: action()
    assert "\n" not in str(error.value)


PED2 = Path(__file__).resolve().parents[2] / "shared" / "data" / "ucsd_ped2"


@pytest.mark.skipif(not PED2.exists(), reason="the UCSD Ped2 frames are not in ../shared/data")
def test_motion_of_pixels_beats_the_floors_on_real_footage():
    "All test videos at hand, one of four frames, with the threshold that MiniStreet gave the method."
    truths, samples, boxes, frames = {}, {}, {}, {}
    localizer = L.Localizer(ColourCLIP(), FIRE, L.LocalizerOptions(method="pixels"))
    for folder in sorted((PED2 / "testing" / "frames").iterdir()):
        video, masks = folder.name, sorted((PED2 / "masks" / f"Test0{folder.name}_gt").iterdir())
        mask = np.stack([cv2.imread(str(p), 0) > 0 for p in masks])
        shown = np.array([f for f in np.flatnonzero(mask.any((1, 2))) if f % 4 == 0])
        pixels = {int(f): np.nonzero(mask[f]) for f in shown}
        around = {f: [[c.min(), r.min(), c.max() + 1, r.max() + 1]] for f, (r, c) in pixels.items()}
        truths[video] = SimpleNamespace(size=mask.shape[1:], mask=mask.any((1, 2)), boxes=around,
                                        pixel_masks=lambda f, mask=mask: mask[f])
        heat = np.concatenate([L.fuse(maps) for *_, maps in localizer.follow(folder, shown, 4, len(masks))])
        samples[video], frames[video] = M.patch_samples(heat, truths[video], shown, 4), shown
        boxes[video] = dict(zip(shown.tolist(), localizer.boxes(heat)))
    floors, found = M.box_floors(truths), M.mean_iou(M.box_ious(boxes, truths))
    assert M.patch_auc(samples) > 90 > M.patch_floors(truths, frames, 4)["patch_auc"] + 10
    assert found > 18 and found > 1.9 * floors["best"], (found, floors)
