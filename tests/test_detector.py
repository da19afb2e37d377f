"The detector: it is what was evaluated, whole equals stream, words alone, times, faults."
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import pictures

import stprompt
from stprompt.clip import BackboneError, FrozenCLIP, mini_config
from stprompt.detector import (
    Detector,
    DetectorError,
    DetectorOptions,
    DetectorSettings,
    Learned,
    find_spans,
    read_settings,
    write_settings,
)
from stprompt.features import FeatureSettings, extract_video
from stprompt.learner import score_video
from stprompt.localizer import LocalizerOptions
from stprompt.ministreet import ministreet
from stprompt.model import ModelError, STPrompt, STPromptOptions
from stprompt.variants import ScoreOptions
from stprompt.video import VideoError, read_frames, write_video

ROOT = Path(__file__).resolve().parent.parent
CLASSES = {"Normal": "normal", "Fire": "fire", "Fighting": "fighting"}


def a_model(clip, **options):
    model = STPrompt(STPromptOptions(dim=clip.dim, token_width=clip.token_width, classes=CLASSES, **options))
    return model.eval().store_text(clip)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A checkpoint with random weights."
    path, clip = tmp_path_factory.mktemp("detector"), FrozenCLIP.load("mini")
    torch.manual_seed(0)
    a_model(clip).save_pretrained(path / "model")
    settings = FeatureSettings(clip.identity, stride=4)
    write_settings(path / "model", .4, settings, LocalizerOptions(), CLASSES)
    return path


@pytest.fixture(scope="module")
def film(folder): return write_video(folder / "film.mp4", pictures(60), 25)


def test_it_loads_from_the_package_root():
    assert stprompt.Detector is Detector and not hasattr(stprompt, "Detectr")


def test_the_package_brings_a_checkpoint_that_fits_its_backbone():
    detector = Detector.load()
    assert 0 < detector.threshold < 1
    assert detector.scorer.model.options.clip["sha256"] == detector.clip.identity["sha256"]
    assert sum(p.stat().st_size for p in (ROOT / "stprompt" / "assets" / "detector").iterdir()) < 1.5e6


def test_a_stream_scores_like_the_whole_video(folder, monkeypatch, film):
    import stprompt.detector as module
    monkeypatch.setattr(module, "LENGTH", 4)                          # several stretches from 15 samples
    detector = Detector.load(folder / "model", options=DetectorOptions(chunk=3))
    parts = list(detector.stream(film))
    assert [len(part.scores) for part in parts] == [4, 4, 4, 3]
    seen = [part.seen for part in parts]
    assert seen == sorted(seen) and seen[-1] == 60
    features = extract_video(film, detector.clip, FeatureSettings(detector.clip.identity, stride=4))
    scores = np.concatenate([part.scores for part in parts])
    assert np.allclose(scores, score_video(detector.scorer.model, features, chunk=4), atol=1e-5)
    assert np.concatenate([part.index for part in parts]).tolist() == features.frame_index.tolist()


def test_memory_is_bounded_by_what_waits(folder, monkeypatch):
    import stprompt.detector as module
    detector, most = Detector.load(folder / "model"), 0
    monkeypatch.setattr(module, "LENGTH", 8)
    frames = (part for _ in range(10) for part in read_frames(folder / "film.mp4", stride=4, chunk=4))
    rolling = module.Rolling(detector.clip, detector.scorer.model, detector.settings)
    monkeypatch.setattr(module, "Rolling", lambda *a: rolling)
    for _ in detector.stream(frames): most = max(most, len(rolling.stamps), len(rolling.queue))
    assert 0 < most <= 8 + 4 + 1 and not rolling.queue and not rolling.stamps


@pytest.mark.parametrize("spatial", ["none", "average"])
def test_every_kind_of_window_aggregate(folder, film, spatial):
    clip = FrozenCLIP.load("mini")
    model = a_model(clip, spatial=spatial)
    settings = DetectorSettings(.5, 4, 32, 32, "token", 12, "fp32", CLASSES, LocalizerOptions())
    features = extract_video(film, clip, FeatureSettings(clip.identity, stride=4))
    found = Detector(Learned(model, clip, settings))(film)
    assert np.allclose(found.scores, score_video(model, features), atol=1e-5)


def test_times_follow_a_varying_frame_rate(folder, tmp_path):
    times = np.cumsum([0.] + [.04] * 20 + [.4] * 19)
    video = write_video(tmp_path / "vfr.mp4", pictures(40), 25, times=times)
    detection = Detector.load(folder / "model", options=DetectorOptions(threshold=1e-9))(video)
    assert np.allclose(detection.time, times[detection.index], atol=.01)
    assert len(detection.events) == 1 and detection.duration > times[-1]
    assert detection.events[0].stop == pytest.approx(detection.duration)


def test_one_frame_and_a_folder_of_images(folder, tmp_path):
    import cv2
    one = Detector.load(folder / "model")(write_video(tmp_path / "one.mp4", pictures(1), 25))
    assert one.n_frames == 1 and len(one.scores) == 1 and one.to_frames().shape == (1,)
    (tmp_path / "images").mkdir()
    for i, image in enumerate(pictures(9)): cv2.imwrite(str(tmp_path / "images" / f"{i:03d}.png"), image)
    assert Detector.load(folder / "model")(tmp_path / "images").n_frames == 9


@pytest.mark.parametrize("content", [b"", b"not a film at all", None])
def test_a_file_that_is_no_video_is_named(folder, tmp_path, content):
    bad = tmp_path / "bad.mp4"
    if content is not None: bad.write_bytes(content)
    with pytest.raises(VideoError, match="bad.mp4"): Detector.load(folder / "model")(bad)


def test_a_truncated_video_is_named(folder, film, tmp_path):
    bad = tmp_path / "cut.mp4"
    bad.write_bytes(film.read_bytes()[: film.stat().st_size // 2])
    with pytest.raises(VideoError, match="cut.mp4"): Detector.load(folder / "model")(bad)


def test_another_backbone_is_refused(folder):
    clip = FrozenCLIP.load("mini")
    other = FrozenCLIP.from_config(mini_config(), seed=7)
    with pytest.raises(ModelError, match="belongs to"):
        Learned(STPrompt.from_pretrained(folder / "model"), other, read_settings(folder / "model"))
    assert clip.identity["sha256"] != other.identity["sha256"]


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"threshold": 2}', '{"threshold": "high"}', "[" * 9999,
                                  '{"localizer": 5}', '{"localizer": {"scales": [[32, 32], 5]}}'])
def test_settings_that_are_none_are_refused(folder, tmp_path, text):
    shutil.copytree(folder / "model", tmp_path / "model")
    (tmp_path / "model" / "detector.json").write_text(text)
    with pytest.raises(DetectorError, match="detector.json.*train.ipynb"): Detector.load(tmp_path / "model")


WRONG_SETTINGS = [
    ({"threshold": True}, "threshold=True: expected a number from 0 to 1"),
    ({"threshold": float("nan")}, "threshold=nan"),
    ({"stride": 0}, "stride=0: expected a whole number from 1"),
    ({"stride": 4.}, "stride=4.0"),
    ({"mode": "tokens"}, "mode='tokens': choose one of token, crop"),
    ({"precision": "fp8"}, "precision='fp8': choose one of fp32"),
    ({"window": 10**9}, "window=1000000000"),
    ({"kernel": 3}, "kernel=3: there is no such parameter"),
    ({"queries": "paper"}, "queries='paper': there is no such parameter"),
    ({"k": None}, "k: a value is missing"),
    ({"words": {}}, "words={}: expected {label: words} of at least one anomaly"),
    ({"words": {"Normal": "a street"}}, "at least one anomaly"),
    ({"words": {"Fire": 3}}, "words=3"),
    ({"words": ["Fire"]}, "words="),
    ({"localizer": {"fusion": 2.}}, "localizer: fusion=2.0: expected a number from 0 to 1"),
    ({"localizer": {"method": "guess"}}, "localizer: method='guess': choose one of text, motion, pixels"),
    ({"localizer": {"threshold": None}}, "localizer: threshold: a value is missing"),
    ({"localizer": {"colour": 1}}, "localizer: colour=1: there is no such parameter"),
]


@pytest.mark.parametrize("change, words", WRONG_SETTINGS)
def test_every_field_of_the_settings_is_checked(folder, tmp_path, change, words):
    "Types and bounds; None stands for a field that is missing."
    path = tmp_path / "model" / "detector.json"
    shutil.copytree(folder / "model", path.parent)
    values = json.loads(path.read_text())
    merged = {**values, **change} | ({"localizer": values["localizer"] | change["localizer"]}
                                     if "localizer" in change else {})
    for one in (merged, merged["localizer"]):
        for name in [name for name, value in one.items() if value is None]: del one[name]
    path.write_text(json.dumps(merged))
    with pytest.raises(DetectorError) as error: Detector.load(path.parent)
    assert str(path) in str(error.value) and words in str(error.value) and "\n" not in str(error.value)


def test_settings_come_back_as_they_were_written(tmp_path):
    clip = {"name": "ViT-B-16", "weights": "openai", "sha256": "ab"}
    made = FeatureSettings(clip, stride=16, window=48, window_stride=24, mode="crop", k=5, precision="bf16")
    places = LocalizerOptions(scales=((40, 20),), fusion=.7, tau=.02, normal="extended", method="pixels",
                              mode="crop", spread="cover", threshold=.6, min_area=.01, max_boxes=3, chunk=7,
                              phrases="predicted", background=.5, gate=.5, smooth=2)
    write_settings(tmp_path, .25, made, places, {"Normal": "normal", "fall": "a person falling"},
                   ScoreOptions(evidence=.25, smooth=3))
    found, words = read_settings(tmp_path), {"fall": "a person falling"}
    assert found == DetectorSettings(.25, 16, 48, 24, "crop", 5, "bf16", words, places, .25, 3)
    assert all(getattr(LocalizerOptions(), name) != value for name, value in asdict(places).items())


# ---- the detector is what was evaluated -----------------------------------------------------------
@pytest.fixture(scope="module")
def small():
    "MiniStreet with four normal training videos and one abnormal test video."
    known = ministreet(None, "small")
    normal = tuple(item for item in known.train if not item.is_abnormal)[:4]
    shown = next(item for item in known.test if item.labels[0] == "Fire")
    return replace(known, train=normal, validation=(), test=(shown,))


@pytest.fixture
def evaluated(small, tmp_path, monkeypatch):
    "A job's values by its parameters and the benchmark's name, with the detector that it saves."
    from stprompt import experiments

    def run(name="ministreet", **parameters):
        benchmark = replace(small, name=name)
        if name == "ubnormal":          # one class for the model, 22 kinds for the localizer
            (shown,) = small.test
            benchmark = replace(benchmark, classes={"Normal": "normal", "Abnormal": "abnormal event"},
                                test=(replace(shown, labels=("Abnormal",)),))
        monkeypatch.setattr(experiments, "open_benchmark", lambda *_, **__: benchmark)
        monkeypatch.setattr(experiments, "check_splits", lambda _: None)      # nothing is trained here
        job = experiments.TrainJob(device="cpu", **parameters)
        data = experiments.prepare(job)
        torch.manual_seed(1)
        model = experiments.new_model(job, data).eval().store_text(data.clip)
        fitted = experiments.Fitted(model, None)
        scored, found = experiments.score(fitted, data), experiments.locate(job, data)
        report = experiments.evaluate(scored, found, data)
        experiments.save_detector(tmp_path / "out" / "model", job, data, fitted, scored, report)
        return data, scored, found, Detector.load(tmp_path / "out" / "model", device="cpu")

    return run


@pytest.mark.parametrize("name, parameters", [
    ("ministreet", {}),
    ("ministreet", {"localizer": "motion", "spatial": "average"}),
    ("ministreet", {"localizer": "pixels", "fusion": .3}),
    ("ministreet", {"queries": "extended", "fusion": .7, "k": 5, "stride": 6}),
    ("ubnormal", {}),
], ids=str)
def test_the_detector_is_what_was_evaluated(evaluated, name, parameters):
    "Scores of every frame, heat maps and boxes of one video: those of `score` and `locate`."
    data, scored, found, detector = evaluated(name, **parameters)
    (item,), words = data.benchmark.test, detector.settings.words
    assert detector.threshold == scored.gate
    assert (len(words), len(detector.scorer.labels)) == ((22, 2) if name == "ubnormal" else (6, 7))
    detection = detector(item.source)
    if "fusion" in parameters: assert detector.localizer.options.fusion == parameters["fusion"]
    differ = np.abs(detection.to_frames() - scored.frames[item.id]).max()
    assert differ < 1e-4                # 4e-5 found: features are stored in half precision
    both = [int(frame) for frame in found.frames[item.id] if frame in detection.index]
    assert len(both) > 3
    looks = detector.look(item.source, both, detection.n_frames)
    looked = {frame: (image, heat) for frame, image, heat in looks}
    frame, image, heat = found.heats[item.id]
    assert frame in both and (looked[frame][0] == image).all() and heat.max() > 0
    assert np.abs(looked[frame][1] - heat).max() < 1e-5
    for frame in both:
        mine, theirs = detector.localizer.boxes(looked[frame][1]), found.boxes[item.id][frame]
        assert mine.shape == theirs.shape and np.allclose(mine, theirs, atol=1e-4)


def test_another_fusion_or_threshold_would_show(evaluated):
    "The bound of the test above is one that a detector with other settings does not pass."
    data, scored, found, detector = evaluated("ministreet", queries="extended")
    (item,) = data.benchmark.test
    frame, _, heat = found.heats[item.id]
    for change in ({"normal": "paper"}, {"fusion": .9}, {"spread": "cover"}):
        other = replace(detector.settings, localizer=replace(detector.settings.localizer, **change))
        detector = Detector(Learned(detector.scorer.model, detector.clip, other))
        ((_, _, looked),) = detector.look(item.source, [frame], 10**6)
        assert np.abs(looked - heat).max() > 1e-2


@pytest.mark.parametrize("wrong, words", [
    ({"threshold": -1.}, "threshold=-1"),
    ({"gap": "long"}, "gap='long': expected a number"),
    ({"chunk": 0}, "chunk=0: expected a whole number from 1"),
    ({"pictures": True}, "pictures=True"),
    ({"shortst": 1.}, "did you mean shortest"),
])
def test_a_wrong_option_is_named(wrong, words):
    with pytest.raises(DetectorError, match=words): DetectorOptions(**wrong)


def test_a_device_that_is_none_is_named(folder):
    with pytest.raises(BackboneError, match="tpu"): Detector.load(folder / "model", device="tpu")


@pytest.mark.parametrize("seed", range(20))
def test_spans_are_ordered_apart_and_long_enough(seed):
    rng = np.random.default_rng(seed)
    scores, edges = rng.random(50), np.append(0, np.cumsum(rng.uniform(.02, .5, 50)))
    options = DetectorOptions(gap=float(rng.uniform(0, 1)), shortest=float(rng.uniform(0, 1)))
    found = find_spans(scores, edges, .6, options)
    hot = {i for a, b in found for i in range(a, b)}
    assert all(edges[b] - edges[a] >= options.shortest for a, b in found)
    assert all(scores[a] >= .6 and scores[b - 1] >= .6 for a, b in found)
    assert all(edges[c] - edges[b] >= options.gap for (_, b), (c, _) in zip(found, found[1:]))
    if options.shortest < .02: assert {i for i in range(50) if scores[i] >= .6} <= hot


# ---- words alone ----------------------------------------------------------------------------------
WORDS = {"fire": "a building on fire", "fight": "two people fighting"}


@pytest.mark.parametrize("queries", ["paper", "extended"])
def test_words_alone_score_as_the_sweep_s_row_does(small, monkeypatch, queries):
    "`zero_shot` and `untrained_scores`: one number."
    from stprompt import experiments
    from stprompt.sweeps import untrained_scores
    monkeypatch.setattr(experiments, "open_benchmark", lambda *_, **__: small)
    monkeypatch.setattr(experiments, "check_splits", lambda _: None)      # nothing is trained here
    job = experiments.TrainJob(device="cpu")
    data = experiments.prepare(job)
    words = {label: text for label, text in small.classes.items() if label != "Normal"}
    detector = Detector.zero_shot(words, threshold=.5, stride=4, localizer=LocalizerOptions(normal=queries))
    (item,) = small.test
    theirs, found = untrained_scores(job, data, queries)[item.id], detector(item.source)
    assert np.abs(found.to_frames() - theirs).max() < 2e-5      # float32 cosines over tau = 0.01 there
    assert detector.scorer.labels == ("Normal", *words)
    parts = list(detector.stream(item.source))
    assert all(np.allclose(part.classes.sum(1), 1) for part in parts)
    assert all(np.allclose(part.classes[:, 0], 1 - part.scores) for part in parts)


def test_a_normal_video_sets_the_threshold(film, tmp_path):
    "One of twenty of its sampled frames reaches it; of several videos, of all their frames."
    given = Detector.zero_shot(WORDS, threshold=.5, stride=1)
    scores = given(film).scores
    detector = Detector.zero_shot(WORDS, normal=film, stride=1)
    assert len(scores) == 60 and (scores >= detector.threshold).sum() == 3 == .05 * 60
    assert detector(film).made_with["threshold_from"] == "normal video film.mp4"
    assert given(film).made_with["threshold_from"] == "given"
    other = write_video(tmp_path / "other.mp4", pictures(40, seed=3), 25)
    both = np.concatenate([scores, given(other).scores])
    found = Detector.zero_shot(WORDS, normal=[film, other], stride=1)
    assert (both >= found.threshold).sum() == 5 and found.threshold == np.sort(both)[-5]


def test_words_alone_give_events_with_pictures(small):
    from stprompt.report import report_html
    (item,) = small.test
    normal = [one.source for one in small.train[:2]]
    detector = Detector.zero_shot({"Fire": "fire", "Fighting": "people fighting"}, normal=normal, stride=4)
    found = detector(item.source)
    assert found.events and found.keys and found.events[0].label in ("Fire", "Fighting")
    assert all(key.heat.shape == key.image.shape[:2] and len(key.boxes) for key in found.keys)
    page = report_html(found)
    assert "<td>no training</td>" in page and "from normal video Normal_" in page


def test_words_alone_with_a_large_backbone(tmp_path):
    "ViT-B-16 with random weights: the sizes of the real one."
    film = write_video(tmp_path / "tiny.mp4", pictures(4), 25)
    detector = Detector.zero_shot(WORDS, "ViT-B-16", "random", threshold=1e-6, stride=2,
                                  options=DetectorOptions(shortest=0.))
    found = detector(film)
    assert len(found.scores) == 2 and ((found.scores > 0) & (found.scores < 1)).all()
    assert found.made_with["backbone"] == "ViT-B-16 / random" and found.keys[0].heat.max() > 0


@pytest.mark.parametrize("wrong, words", [
    ({}, "an event needs one of the two"),
    ({"threshold": 0.}, "an event needs one of the two"),
    ({"threshold": .5, "normal": "a.mp4"}, "an event needs one of the two"),
    ({"threshold": 2.}, "threshold=2.0: expected a number from 0 to 1"),
    ({"threshold": True}, "threshold=True"),
    ({"threshold": .5, "stride": 0}, "stride=0"),
    ({"threshold": .5, "classes": {}}, "classes={}: expected {label: words}"),
    ({"threshold": .5, "classes": {"normal": "a street"}}, "what is normal needs no words"),
    ({"threshold": .5, "classes": {"fire": " "}}, "classes={'fire': ' '}"),
    ({"threshold": .5, "classes": ["fire"]}, "classes=['fire']"),
    ({"threshold": .5, "localizer": LocalizerOptions(method="pixels")}, "reads no words"),
    ({"threshold": .5, "backbone": "ViT-Z-1"}, "ViT-Z-1"),
    ({"normal": "nowhere.mp4"}, "nowhere.mp4"),
    ({"normal": ["nowhere.mp4"]}, "nowhere.mp4"),
])
def test_what_words_alone_need_is_said(wrong, words):
    with pytest.raises((DetectorError, BackboneError, VideoError)) as error:
        Detector.zero_shot(**{"classes": WORDS, **wrong})
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["results/ministreet-smal/train/model", "my_model", "./x", "results/none"])
def test_a_mistyped_checkpoint_is_named_before_any_hub_is_asked(name, monkeypatch):
    asked = []
    monkeypatch.setattr("stprompt.model.hf_hub_download", lambda *a, **k: asked.append(a))
    with pytest.raises(ModelError, match="there is no such folder"): Detector.load(name)
    with pytest.raises(ModelError, match="there is no such folder"): read_settings(name)
    assert not asked


def test_a_repository_of_the_hub_is_a_detector(folder, monkeypatch):
    "All three files come from there."
    asked = []

    def download(repository, name, **_):
        asked.append((repository, name))
        return str(folder / "model" / name)

    monkeypatch.setattr("stprompt.model.hf_hub_download", download)
    assert Detector.load("owner/name").threshold == .4
    assert sorted(asked) == [("owner/name", name) for name in ("config.json", "detector.json",
                                                               "model.safetensors")]
