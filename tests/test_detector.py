"The detector: whole equals stream, times, faults, and a report that a real browser shows without a network."
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import papermill
import pytest
import torch

import stprompt
from stprompt.clip import FrozenCLIP
from stprompt.detector import LENGTH, DetectJob, Detection, Detector, DetectorError, DetectorOptions, Event, KeyFrame, find_spans, report_html, write_settings
from stprompt.features import FeatureSettings, extract_video
from stprompt.learner import score_video
from stprompt.model import ModelError, STPrompt, STPromptOptions
from stprompt.video import VideoError, probe, read_frames, write_video

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A checkpoint with random weights."
    path, clip = tmp_path_factory.mktemp("detector"), FrozenCLIP.load("mini")
    torch.manual_seed(0)
    model = STPrompt(STPromptOptions(dim=clip.dim, token_width=clip.token_width, classes={"Normal": "normal", "Fire": "fire", "Fighting": "fighting"})).eval()
    model.store_text(clip).save_pretrained(path / "model")
    write_settings(path / "model", .4, FeatureSettings(clip.identity, stride=4))
    return path


def pictures(n, seed=0, size=(48, 64)):
    rng = np.random.default_rng(seed)
    for i in range(n):
        image = rng.integers(0, 60, (*size, 3), np.uint8); image[10:30, i % 40:i % 40 + 12] = (240, 140, 20)
        yield image


@pytest.fixture(scope="module")
def film(folder): return write_video(folder / "film.mp4", pictures(60), 25)


def test_it_loads_from_the_package_root(): assert stprompt.Detector is Detector and not hasattr(stprompt, "Detectr")


def test_the_package_brings_a_checkpoint_that_fits_its_backbone():
    detector = Detector.load()
    assert 0 < detector.threshold < 1 and detector.model.options.clip["sha256"] == detector.clip.identity["sha256"]
    assert sum(p.stat().st_size for p in (ROOT / "stprompt" / "assets" / "detector").iterdir()) < 1.5e6


def test_a_stream_scores_like_the_whole_video(folder, monkeypatch, film):
    import stprompt.detector as module
    monkeypatch.setattr(module, "LENGTH", 4)                          # several stretches from 15 samples
    detector = Detector.load(folder / "model", options=DetectorOptions(chunk=3))
    parts = list(detector.stream(film))
    assert [len(p.scores) for p in parts] == [4, 4, 4, 3] and [p.seen for p in parts] == sorted(p.seen for p in parts) and parts[-1].seen == 60
    features = extract_video(film, detector.clip, FeatureSettings(detector.clip.identity, stride=4))
    assert np.allclose(np.concatenate([p.scores for p in parts]), score_video(detector.model, features, chunk=4), atol=1e-5)
    assert np.concatenate([p.index for p in parts]).tolist() == features.frame_index.tolist()


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
    model = STPrompt(STPromptOptions(dim=clip.dim, token_width=clip.token_width, classes={"Normal": "normal", "Fire": "fire"}, spatial=spatial)).eval().store_text(clip)
    settings = {"threshold": .5, "queries": "paper", "stride": 4, "window": 32, "window_stride": 32, "mode": "token", "k": 12}
    assert np.allclose(Detector(model, clip, settings)(film).scores, score_video(model, extract_video(film, clip, FeatureSettings(clip.identity, stride=4))), atol=1e-5)


def test_times_follow_a_varying_frame_rate(folder, tmp_path):
    times = np.cumsum([0.] + [.04] * 20 + [.4] * 19)
    video = write_video(tmp_path / "vfr.mp4", pictures(40), 25, times=times)
    detection = Detector.load(folder / "model", options=DetectorOptions(threshold=1e-9))(video)
    assert np.allclose(detection.time, times[detection.index], atol=.01)
    assert len(detection.events) == 1 and detection.events[0].stop == pytest.approx(detection.duration) and detection.duration > times[-1]


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
    from stprompt.clip import mini_config
    other = FrozenCLIP.from_config(mini_config(), seed=7)
    with pytest.raises(ModelError, match="belongs to"): Detector(STPrompt.from_pretrained(folder / "model"), other, {})
    assert clip.identity["sha256"] != other.identity["sha256"]


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"threshold": 2}', '{"threshold": "high"}'])
def test_settings_that_are_none_are_refused(folder, tmp_path, text):
    shutil.copytree(folder / "model", tmp_path / "model")
    (tmp_path / "model" / "detector.json").write_text(text)
    with pytest.raises(DetectorError, match="detector.json.*train.ipynb"): Detector.load(tmp_path / "model")


@pytest.mark.parametrize("wrong, words", [({"video": "nowhere.mp4"}, "video='nowhere.mp4'"), ({"threshold": -1.}, "threshold=-1"), ({"device": "tpu"}, "device='tpu'")])
def test_a_wrong_parameter_is_named(wrong, words):
    with pytest.raises(DetectorError, match=words): DetectJob(**wrong)


@pytest.mark.parametrize("seed", range(20))
def test_spans_are_ordered_apart_and_long_enough(seed):
    rng = np.random.default_rng(seed)
    scores, edges = rng.random(50), np.append(0, np.cumsum(rng.uniform(.02, .5, 50)))
    o = DetectorOptions(gap=float(rng.uniform(0, 1)), shortest=float(rng.uniform(0, 1)))
    found = find_spans(scores, edges, .6, o)
    hot = {i for a, b in found for i in range(a, b)}
    assert all(edges[b] - edges[a] >= o.shortest and scores[a] >= .6 and scores[b - 1] >= .6 for a, b in found)
    assert all(edges[c] - edges[b] >= o.gap for (_, b), (c, _) in zip(found, found[1:]))
    if o.shortest < .02: assert {i for i in range(50) if scores[i] >= .6} <= hot


def made_up():
    image = np.full((48, 64, 3), 90, np.uint8)
    event = Event("<i>Fire</i>", 1., 2., 1, 2, .9, 4, 1., {"Fire": .8})
    return Detection("<script>alert(1)</script> & co.mp4", 16, 4., (48, 64), 4., np.array([0, 4, 8, 12]), np.arange(4.), np.array([.1, .9, .2, .1]), .5, [event],
                     [KeyFrame(0, 4, 1., image, np.linspace(0, 1, 48 * 64).reshape(48, 64), np.array([[5, 5, 30, 30, .9]]))], {"backbone": "mini"})


def test_nothing_from_outside_becomes_markup_and_nothing_is_fetched():
    page = report_html(made_up())
    assert "<script" not in page and "<i>" not in page and "&lt;script&gt;" in page
    assert "http:" not in page and "https:" not in page and "url(" not in page and "src=\"data:image/jpeg;base64," in page


def test_json_says_what_was_detected(tmp_path):
    detection = made_up()
    saved = json.loads(detection.to_json(tmp_path / "d.json").read_text())
    assert saved["curve"] == {"frame": [0, 4, 8, 12], "time": [0., 1., 2., 3.], "score": [.1, .9, .2, .1]} and saved["events"][0]["label"] == "<i>Fire</i>"
    assert saved["key_frames"][0]["boxes"] == [[5, 5, 30, 30, .9]] and saved["n_frames"] == 16
    assert detection.to_frames().tolist() == [.1] * 4 + [.9] * 4 + [.2] * 4 + [.1] * 4


def test_the_film_has_every_frame(folder, film, tmp_path):
    detector = Detector.load(folder / "model", options=DetectorOptions(threshold=1e-9))
    info = probe(detector.film(detector(film), film, tmp_path / "found.mp4"))
    assert info.n_frames == 60 and info.size == (48 + 40, 64) and info.fps == pytest.approx(25, abs=.1)


def test_the_job_writes_report_json_and_film(tmp_path):
    papermill.execute_notebook(str(ROOT / "nbs" / "detect.ipynb"), str(tmp_path / "executed.ipynb"), {"video": str(write_video(tmp_path / "clip.mp4", pictures(30), 25)), "out": str(tmp_path / "out")}, progress_bar=False, cwd=str(tmp_path))
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"report.html", "detection.json", "annotated.mp4"}
    assert len(json.loads((tmp_path / "out" / "detection.json").read_text())["curve"]["score"]) >= 2


BROWSER = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)

@pytest.mark.skipif(BROWSER is None, reason="no Chromium here: chromium, chromium-browser and google-chrome are not on the path")
def test_a_browser_shows_the_report_offline(tmp_path):
    "The pictures decode, the curve has a size, nothing is fetched: said by the browser itself, through a probe that the test adds."
    page = made_up().to_html(tmp_path / "report.html").read_text()
    probe_ = """<script>addEventListener('load',()=>{const s=document.querySelector('polyline').getBoundingClientRect();document.body.setAttribute('data-found',JSON.stringify({
images:[...document.images].map(i=>i.complete&&i.naturalWidth),curve:s.width>100&&s.height>20,rows:document.querySelectorAll('tbody tr').length,
fetched:performance.getEntriesByType('resource').filter(r=>!r.name.startsWith('data:')).length,title:document.title,wide:document.documentElement.scrollWidth<=innerWidth}))})</script>"""
    probed = tmp_path / "probed.html"
    probed.write_text(page.replace("</body>", probe_ + "</body>"))
    flags = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}", "--window-size=400,900", "--virtual-time-budget=5000"]
    dom = subprocess.run([*flags, "--dump-dom", probed.as_uri()], capture_output=True, text=True, timeout=120).stdout
    assert 'data-found="' in dom, dom[-500:]
    import html
    found = json.loads(html.unescape(dom.split('data-found="')[1].split('"')[0]))
    assert found == {"images": [64, 64], "curve": True, "rows": 1, "fetched": 0, "title": "<script>alert(1)</script> & co.mp4: anomalies", "wide": True}
