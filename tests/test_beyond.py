"Options beyond the paper: each by its definition, off by default, and served as they were evaluated."
import dataclasses
import json
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from rules import cells, source
from test_experiments import publish

from stprompt import cells as grid_cells
from stprompt import experiments, grid, trainings, variants
from stprompt.ablations import GridJob
from stprompt.beyond import BeyondJob, Measured, chosen, each_once
from stprompt.cells import Row
from stprompt.clip import FrozenCLIP
from stprompt.detector import Detector, ScoredPart, read_settings, smooth_stream, whole
from stprompt.experiments import JobError, TrainJob, departures, localizer_options
from stprompt.files import project_root
from stprompt.grid import plan
from stprompt.learner import score_videos
from stprompt.localizer import (
    Localizer,
    LocalizerError,
    LocalizerOptions,
    Queries,
    background_frames,
    eq11,
    fuse,
    make_queries,
    refined,
)
from stprompt.metrics import compare, mean_iou
from stprompt.ministreet import ministreet
from stprompt.motion import AGGREGATES, GUIDED, MotionError, aggregate, motion_prior, spatial_names
from stprompt.prompts import anomaly_queries
from stprompt.variants import ScoreOptions, Variant, VariantError, final_scores
from stprompt.video import read_frames, write_video

CLASSES = {"Normal": "normal", "Fire": "fire", "Fighting": "fighting"}
FULL = Variant("text_motion", "extended",
               {"gate": .5, "background": .5, "smooth": 1, "phrases": "predicted", "threshold": .6},
               ScoreOptions(evidence=.3, smooth=2), "a test")


def random(*shape, seed=0): return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# ---- windows chosen by words ---------------------------------------------------------------------
def slowly(windows, value, k, temperature=.1):
    "Literally: of each frame the k highest windows, each times e^(value / temperature), over the sum."
    rows = []
    for x, v in zip(windows.flatten(1, 2).double(), value.flatten(1).double()):
        best = sorted(range(len(v)), key=lambda n: (-float(v[n]), n))[:k]
        weights = [np.exp(float(v[n]) / temperature) for n in best]
        rows.append(sum(w * x[n] for w, n in zip(weights, best)) / sum(weights))
    return torch.stack(rows).float()


@pytest.mark.parametrize("k", [1, 3, 12])
def test_guided_rows_are_their_definitions(k):
    x, evidence = random(5, 3, 4, 6), random(5, 3, 4, seed=1)
    motion = motion_prior(x)
    share = motion / motion.flatten(1).amax(1)[:, None, None]
    expected = {"sharp": slowly(x, motion, k), "text": slowly(x, evidence, k),
                "text_one": slowly(x, evidence, 1), "text_motion": slowly(x, evidence * share, k)}
    assert set(expected) == set(GUIDED)
    for name, rows in expected.items():
        assert torch.allclose(aggregate(x, motion, k, name, evidence), rows, atol=1e-5), name


def test_guided_rows_of_a_video_that_stands_still_and_of_one_frame():
    still, evidence = random(1, 2, 2, 6).expand(4, 2, 2, 6), random(4, 2, 2)
    for x, seen in ((still, evidence), (still[:1], evidence[:1])):
        by_both = aggregate(x, motion_prior(x), 2, "text_motion", seen)
        assert torch.equal(by_both, aggregate(x, motion_prior(x), 2, "text", seen))     # nothing moves
        assert torch.isfinite(aggregate(x, motion_prior(x), 2, "sharp", seen)).all()


def test_guided_rows_need_evidence_and_are_no_rows_of_the_store():
    x = random(3, 2, 2, 6)
    with pytest.raises(MotionError, match="mode='text': needs the evidence of each window"):
        aggregate(x, motion_prior(x), 2, "text")
    assert not set(GUIDED) & {*AGGREGATES, *spatial_names()}
    with pytest.raises(JobError, match="spatial='words': choose one of none, .*text_motion"):
        TrainJob(spatial="words")


# ---- the heat of windows -------------------------------------------------------------------------
def refined_slowly(grid, motion, median, background, gate, radius):
    T, found = len(grid), torch.zeros(grid.shape, dtype=torch.float64)
    for t, y, x in np.ndindex(*grid.shape):
        highest = float(motion[t].max())
        share = float(motion[t, y, x]) / highest if highest > 0 else 1.
        found[t, y, x] = max(0., float(grid[t, y, x]) - background * float(median[y, x])) * share ** gate
    near = [found[max(0, t - radius):min(T, t + radius + 1)] for t in range(T)]
    return torch.stack([sum(one) / len(one) for one in near]).float()


@pytest.mark.parametrize("background, gate, radius", [
    (0., 0., 1), (.5, 0., 0), (1., 1., 0), (.3, .5, 2), (1., 2., 9)])
@pytest.mark.parametrize("T", [1, 2, 7])
def test_refined_is_its_definition(T, background, gate, radius):
    grid, motion = random(T, 3, 2), random(T, 3, 2, seed=1)
    motion[0] = 0                                                      # a frame in which nothing moves
    median = torch.from_numpy(np.median(grid.numpy(), 0))
    known = LocalizerOptions(background=background, gate=gate, smooth=radius)
    expected = refined_slowly(grid, motion, median, background, gate, radius)
    assert torch.allclose(refined(grid, known, motion, median), expected, atol=1e-6)


def test_off_by_default_to_the_bit():
    grid = random(4, 3, 3)
    assert refined(grid, LocalizerOptions()) is grid
    assert replace(LocalizerOptions(), phrases="all", background=0., gate=0., smooth=0) == LocalizerOptions()
    x, text = random(3, 2, 2, 8), random(5, 8, seed=1)
    plain = (torch.nn.functional.normalize(x, dim=-1) @ torch.nn.functional.normalize(text, dim=-1).T / .01)
    assert torch.equal(eq11(x, text, 2), plain.softmax(-1)[..., 2:].sum(-1))
    assert torch.equal(eq11(x, text, 2, heard=torch.ones(3, 1, 1, 5, dtype=torch.bool)), eq11(x, text, 2))
    scores = np.random.default_rng(0).random(9)
    assert final_scores(scores, None, ScoreOptions()) is scores
    assert TrainJob() == TrainJob(variant="paper")
    assert (TrainJob().spatial, TrainJob().queries) == ("sa2", "paper")
    assert localizer_options(TrainJob()) == LocalizerOptions(mode=TrainJob().mode)


@pytest.fixture(scope="module")
def clip(): return FrozenCLIP.load("mini")


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("film")/"film.mp4"
    frames = rng.integers(0, 60, (26, 48, 64, 3), np.uint8)
    for n, image in enumerate(frames): image[10:30, 2 * n:2 * n + 10] = (240, 140, 20)
    return write_video(path, frames, 25)


@pytest.mark.parametrize("changes", [{"gate": 1.}, {"smooth": 1}, {"background": 1.}, {
    "gate": .5, "smooth": 2, "background": .5, "normal": "extended", "phrases": "predicted"}], ids=str)
def test_parts_of_a_video_give_the_maps_of_the_whole(clip, film, changes):
    "Whatever is evaluated, and however few frames are looked at together."
    index = np.arange(0, 26, 2)
    labels = np.array(["Fire", "Fighting"] * 13)
    (images,) = (np.concatenate([part.images for part in read_frames(film, stride=2)]),)
    place = Localizer(clip, CLASSES, LocalizerOptions(chunk=3, **changes))
    expected = place.heat(images, labels[index])
    plain = Localizer(clip, CLASSES, LocalizerOptions()).heat(images)
    assert np.abs(expected - plain).max() > 1e-3
    for judged in (index, index[[0, 5, 6, 12]], index[[7]]):
        maps = [fuse(one) for _, _, one in place.follow(film, judged, 2, 26, labels)]
        assert np.abs(np.concatenate(maps) - expected[judged // 2]).max() < 1e-5


def test_one_frame_and_an_empty_one(clip):
    image = np.full((1, 48, 64, 3), 90, np.uint8)
    everything = LocalizerOptions(gate=1., smooth=3, background=1.)
    plain = Localizer(clip, CLASSES, LocalizerOptions()).heat(image)
    assert np.array_equal(Localizer(clip, CLASSES, everything).heat(image), plain)     # no neighbours
    assert Localizer(clip, CLASSES, everything).heat(image[:0]).shape == (0, 48, 64)


def test_background_frames_are_sampled_ones_and_never_more_than_asked():
    for n_frames in (1, 3, 4, 5, 255, 256, 257, 100_000):
        found = background_frames(n_frames, 4)
        assert len(found) == min(64, -(-n_frames // 4)) and (found % 4 == 0).all()
        assert found[0] == 0 and found[-1] < n_frames and (np.diff(found) > 0).all()


def test_the_predicted_class_only_hears_its_own_phrases(clip, film):
    (images,) = (np.concatenate([part.images for part in read_frames(film, stride=8)]),)
    place = Localizer(clip, CLASSES, LocalizerOptions(phrases="predicted"))
    labels = ["Fire", "Fighting", "Fire", "Fire"]
    found, normal = place.heat(images, labels), make_queries(CLASSES).normal
    for image, label, heat in zip(images, labels, found):
        only = Queries(normal, tuple(anomaly_queries({label: CLASSES[label]})))
        assert np.abs(Localizer(clip, only).heat(image[None])[0] - heat).max() < 1e-5
    for call, words in (
            (lambda: place.heat(images), "the class of each of 4 frames, found none"),
            (lambda: place.heat(images, labels[:2]), "each of 4 frames, found 2"),
            (lambda: place.heat(images, ["Normal"] * 4), "of the class 'Normal', only of Fire, Fighting"),
            (lambda: Localizer(clip, make_queries(CLASSES), LocalizerOptions(phrases="predicted")),
             "expected classes, found sentences")):
        with pytest.raises(LocalizerError, match=words): call()


# ---- scores --------------------------------------------------------------------------------------
@pytest.mark.parametrize("radius", [0, 1, 4, 50])
@pytest.mark.parametrize("sizes", [(1,), (23,), (1,) * 23, (5, 1, 17), (20, 3)], ids=str)
def test_a_smoothed_stream_is_the_smoothed_curve(radius, sizes):
    n = sum(sizes)
    curve = np.random.default_rng(0).random(n)
    edges = np.cumsum([0, *sizes])
    parts = [ScoredPart(np.arange(a, b), np.arange(a, b) / 5, curve[a:b], np.ones((b - a, 2)) / 2, b)
             for a, b in zip(edges, edges[1:])]
    found = whole(list(smooth_stream(iter(parts), radius)))
    assert np.allclose(found.scores, [curve[max(0, t - radius):t + radius + 1].mean() for t in range(n)])
    assert found.index.tolist() == list(range(n)) and found.seen == n


def test_evidence_that_is_not_there_is_refused():
    with pytest.raises(VariantError, match="evidence=0.5: these features hold no evidence"):
        final_scores(np.ones(2), None, ScoreOptions(evidence=.5))
    with pytest.raises(VariantError, match="evidence=2.0: expected a number from 0 to 1"):
        ScoreOptions(evidence=2.)


# ---- the switch ----------------------------------------------------------------------------------
@pytest.fixture
def beyond(monkeypatch): monkeypatch.setitem(variants.VARIANTS, "beyond", FULL)


def test_a_variant_sets_what_a_job_leaves_open(beyond):
    job = TrainJob(variant="beyond", mode="token")
    assert (job.spatial, job.queries) == ("text_motion", "extended")
    assert TrainJob(variant="beyond", spatial="average").spatial == "average"
    assert dataclasses.replace(job, spatial="sa2").spatial == "sa2"          # what is given stays
    known = localizer_options(job)
    assert (known.normal, known.gate, known.threshold, known.phrases) == ("extended", .5, .6, "predicted")
    assert localizer_options(job, gate=0.).gate == 0
    assert "variant: 'beyond'; the paper: 'paper'" in departures(job)
    with pytest.raises(JobError, match="variant='best': choose one of paper, beyond"):
        TrainJob(variant="best")


def test_what_is_packaged_is_possible():
    for name, variant in variants.VARIANTS.items():
        job = TrainJob(variant=name)
        assert job.spatial == variant.spatial and localizer_options(job).normal == variant.queries
    assert variants.VARIANTS["paper"] == Variant() and variants.VARIANTS["beyond"] != Variant()


def test_published_features_have_no_windows_to_ask(beyond, tmp_path):
    with pytest.raises(JobError, match="variant='beyond'.* needs windows of videos"):
        TrainJob(dataset="ucf_crime", features=str(publish(tmp_path)), variant="beyond", backbone="mini")


def test_cells_of_a_variant_are_other_cells(beyond):
    job = GridJob(size="small", device="cpu")

    def names(job, *rows):
        found = plan(job, rows, [0], "nowhere")
        return [cell.name for cell in found.cells.values()], list(found.grounds.values())

    plain, (ground,) = names(job, Row("a"))
    other, _ = names(dataclasses.replace(job, variant="beyond"), Row("a"))
    guided, (kept,) = names(job, Row("a", {"spatial": "text"}))
    assert len({*plain, *other, *guided}) == 3
    assert (ground.settings.keep_windows, kept.settings.keep_windows) == (False, True)
    assert grid_cells.data_job(job, Row("a", {"spatial": "text", "sigma": 2.})).spatial == "text"
    assert grid_cells.data_job(job, Row("a", {"spatial": "average"})).spatial == "sa2"


def sixteen():
    "MiniStreet small with two normal and two abnormal videos of each split, twice that to learn from."
    known = ministreet(None, "small")
    few = {split: tuple(one for kind in (True, False) for one in [
        item for item in getattr(known, split) if item.is_abnormal == kind][:n])
        for split, n in (("train", 4), ("validation", 2), ("test", 2))}
    return replace(known, **few)


def test_the_detector_does_what_was_evaluated(beyond, tmp_path, monkeypatch):
    "Every option at once, through detector.json: scores of every frame, heat maps and boxes."
    known = sixteen()
    known = replace(known, validation=(), train=known.train[4:6], test=known.test[:1])
    monkeypatch.setattr(experiments, "open_benchmark", lambda *_: known)
    monkeypatch.setattr(experiments, "check_splits", lambda _: None)
    job = TrainJob(device="cpu", variant="beyond", out=str(tmp_path))
    data = experiments.prepare(job)
    torch.manual_seed(1)
    fitted = experiments.Fitted(experiments.new_model(job, data).eval().store_text(data.clip), None)
    scored = experiments.score(fitted, data)
    found = experiments.locate(job, data, scored)
    report = experiments.evaluate(scored, found, data)
    experiments.save_detector(tmp_path/"model", job, data, fitted, scored, report)
    saved = read_settings(tmp_path/"model")
    assert (saved.evidence, saved.smooth, saved.localizer) == (.3, 2, localizer_options(job))
    detector, (item,) = Detector.load(tmp_path/"model", device="cpu"), data.benchmark.test
    detection = detector(item.source)
    assert np.abs(detection.to_frames() - scored.frames[item.id]).max() < 1e-3      # half precision
    raw = score_videos(fitted.model, {item.id: data.features[item.id]})[item.id]
    assert np.abs(raw - scored.frames[item.id]).max() > .02                        # the bound can fail
    called = variants.likeliest(scored.classes[item.id], list(known.classes))
    frame, _, heat = found.heats[item.id]
    ((_, _, looked),) = detector.look(item.source, [frame], detection.n_frames, called)
    assert np.abs(looked - heat).max() < 1e-4
    with pytest.raises(LocalizerError, match="found none"): experiments.locate(job, data)


def test_a_detector_json_from_before_has_the_options_off(tmp_path):
    from stprompt.detector import write_settings
    from stprompt.features import FeatureSettings
    write_settings(tmp_path, .4, FeatureSettings({"name": "mini"}), LocalizerOptions(), CLASSES)
    file = tmp_path/"detector.json"
    values = json.loads(file.read_text())
    for name in ("evidence", "smooth"): del values[name]
    for name in ("phrases", "background", "gate", "smooth"): del values["localizer"][name]
    now = read_settings(tmp_path)
    file.write_text(json.dumps(values))
    assert read_settings(tmp_path) == now and now.localizer == LocalizerOptions()


# ---- choosing ------------------------------------------------------------------------------------
def test_only_what_surely_helps_is_kept_and_together_it_is_measured_anew():
    rng = np.random.default_rng(0)
    base = {f"v{n:02d}": rng.uniform(.2, .5, 6) for n in range(15)}
    luck = rng.normal(.01, .2, 15)

    def measure(changes):
        "a: +5; b: +3, but nothing beside a; c: luck; d: +1 only beside a; e: -2."
        gain = .05 * ("a" in changes) + .03 * ("b" in changes and "a" not in changes)
        gain += .01 * ("d" in changes and "a" in changes) - .02 * ("e" in changes)
        values = {id: x + gain + luck[n] * ("c" in changes) for n, (id, x) in enumerate(base.items())}
        return Measured(changes, mean_iou(values), values)

    def against(a, b): return compare(a.values, b.values, metric="mean_iou")
    found = chosen({name: {name: 1} for name in "abcde"}, each_once(measure, beside=2), against, measure({}))
    assert found.changes == {"a": 1, "d": 1} and found.measured.percent == measure({"a": 1, "d": 1}).percent
    assert found.steps.groupby("step").size().tolist() == [5, 4, 3]
    assert found.steps[found.steps["kept"]]["option"].tolist() == ["a", "d"]


def test_a_choice_is_measured_once_and_answers_come_in_the_order_of_the_questions():
    asked = []

    def measure(changes):
        asked.append(changes)
        time.sleep(.05 * (changes == {"a": 1}))     # the first is the last to be done
        return Measured(changes, 0., {})

    measured = each_once(measure, beside=3)
    rows = [{"a": 1}, {"b": 2}, {"b": 2, "a": 1}]
    assert [one.changes for one in measured(rows)] == rows and len(asked) == 3
    assert [one.changes for one in measured([{"a": 1, "b": 2}, {"c": 3}])] == [rows[2], {"c": 3}]
    assert len(asked) == 4


def test_choosing_needs_the_benchmark_that_has_boxes_to_choose_on(tmp_path):
    with pytest.raises(JobError, match="dataset='folder': choosing needs .* only MiniStreet has"):
        BeyondJob(dataset="folder", root=str(tmp_path))


def test_the_notebook_runs(tmp_path, monkeypatch):
    "nbs/reproduce/beyond.ipynb, cell by cell, on sixteen videos: too few to keep anything, and it says so."
    known = sixteen()
    for module in (experiments, grid_cells): monkeypatch.setattr(module, "open_benchmark", lambda *_: known)
    monkeypatch.setattr(trainings, "that_fit", lambda *_: 1)     # other processes do not know the sixteen
    monkeypatch.setattr(grid, "cache_dir", lambda name: tmp_path/name)     # their cells are their own
    parts = [source(cell) for cell in cells(project_root()/"nbs"/"reproduce"/"beyond.ipynb")
             if cell["cell_type"] == "code"]
    names = {}
    exec(parts[0], names)
    names |= {"smoke": True, "out": str(tmp_path), "seeds": "0", "device": "cpu"}
    for part in parts[1:]: exec(part, names)
    variant, table = names["variant"], names["table"].set_index("metric")
    assert replace(variant, chosen_on="", localizer={}) == Variant()
    assert set(names["where"].alone["surely helps"]) == {"", "cannot tell"}
    assert (table["faithful"] == table["beyond"]).all() and table.loc["mean IoU", "reached"] == "no"
    assert names["real"].empty and len(names["where"].alone) == 15 and len(names["when"].alone) == 13
    saved = json.loads((tmp_path/"metrics.json").read_text())
    assert {"once", "where_options", "when_options", "where_steps", "when_steps"} <= set(saved["more"])
    assert "once_ped2" not in saved["more"] and "Beyond the paper on ministreet-small" in saved["experiment"]
