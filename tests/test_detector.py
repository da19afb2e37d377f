"The detector: whole equals stream, times, faults."
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import pictures

import stprompt
from stprompt.clip import BackboneError, FrozenCLIP, mini_config
from stprompt.detector import Detector, DetectorError, DetectorOptions, find_spans, write_settings
from stprompt.features import FeatureSettings, extract_video
from stprompt.learner import score_video
from stprompt.model import ModelError, STPrompt, STPromptOptions
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
    write_settings(path / "model", .4, FeatureSettings(clip.identity, stride=4))
    return path


@pytest.fixture(scope="module")
def film(folder): return write_video(folder / "film.mp4", pictures(60), 25)


def test_it_loads_from_the_package_root():
    assert stprompt.Detector is Detector and not hasattr(stprompt, "Detectr")


def test_the_package_brings_a_checkpoint_that_fits_its_backbone():
    detector = Detector.load()
    assert 0 < detector.threshold < 1
    assert detector.model.options.clip["sha256"] == detector.clip.identity["sha256"]
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
    assert np.allclose(scores, score_video(detector.model, features, chunk=4), atol=1e-5)
    assert np.concatenate([part.index for part in parts]).tolist() == features.frame_index.tolist()


def test_memory_is_bounded_by_what_waits(folder, monkeypatch):
    import stprompt.detector as module
    detector, most = Detector.load(folder / "model"), 0
    monkeypatch.setattr(module, "LENGTH", 8)
    frames = (part for _ in range(10) for part in read_frames(folder / "film.mp4", stride=4, chunk=4))
    rolling = module.Rolling(detector.clip, detector.model, detector.settings)
    monkeypatch.setattr(module, "Rolling", lambda *a: rolling)
    for _ in detector.stream(frames): most = max(most, len(rolling.stamps), len(rolling.queue))
    assert 0 < most <= 8 + 4 + 1 and not rolling.queue and not rolling.stamps


@pytest.mark.parametrize("spatial", ["none", "average"])
def test_every_kind_of_window_aggregate(folder, film, spatial):
    clip = FrozenCLIP.load("mini")
    model = a_model(clip, spatial=spatial)
    settings = {"threshold": .5, "queries": "paper", "stride": 4, "window": 32, "window_stride": 32,
                "mode": "token", "k": 12}
    features = extract_video(film, clip, FeatureSettings(clip.identity, stride=4))
    assert np.allclose(Detector(model, clip, settings)(film).scores, score_video(model, features), atol=1e-5)


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
        Detector(STPrompt.from_pretrained(folder / "model"), other, {})
    assert clip.identity["sha256"] != other.identity["sha256"]


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"threshold": 2}', '{"threshold": "high"}'])
def test_settings_that_are_none_are_refused(folder, tmp_path, text):
    shutil.copytree(folder / "model", tmp_path / "model")
    (tmp_path / "model" / "detector.json").write_text(text)
    with pytest.raises(DetectorError, match="detector.json.*train.ipynb"): Detector.load(tmp_path / "model")


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
