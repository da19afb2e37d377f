"The report: nothing from outside becomes markup, a browser shows it offline, JSON and film are whole."
import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import papermill
import pytest
from conftest import pictures

from stprompt import report
from stprompt.detector import Detection, Detector, DetectorOptions, Event, KeyFrame, Learned
from stprompt.experiments import JobError
from stprompt.other_jobs import DetectJob
from stprompt.video import probe, write_video

ROOT = Path(__file__).resolve().parent.parent


def made_up():
    image = np.full((48, 64, 3), 90, np.uint8)
    heat, boxes = np.linspace(0, 1, 48 * 64).reshape(48, 64), np.array([[5, 5, 30, 30, .9]])
    return Detection(
        "<script>alert(1)</script> & co.mp4", n_frames=16, fps=4., size=(48, 64), duration=4.,
        index=np.array([0, 4, 8, 12]), time=np.arange(4.), scores=np.array([.1, .9, .2, .1]), threshold=.5,
        events=[Event("<i>Fire</i>", 1., 2., 1, 2, .9, 4, 1., {"Fire": .8})],
        keys=[KeyFrame(0, 4, 1., image, heat, boxes)], made_with={"backbone": "mini"})


def test_nothing_from_outside_becomes_markup_and_nothing_is_fetched():
    page = report.report_html(made_up())
    assert "<script" not in page and "<i>" not in page and "&lt;script&gt;" in page
    for address in ("http:", "https:", "url(", "@import", "<link"): assert address not in page
    assert 'src="data:image/jpeg;base64,' in page


LABELS = ["<b>x</b>", '"><img src=x onerror=alert(1)>', "a'b", "{{ 7 * 7 }}", "&amp;"]


@pytest.mark.parametrize("label", LABELS)
def test_a_label_is_text_wherever_it_stands(label):
    found = made_up()
    nasty = replace(found, video=label, events=[replace(found.events[0], label=label)],
                    made_with={"backbone": label, "settings": {"mode": label}})
    page = report.report_html(nasty)
    assert html.unescape(re.search(r"<h1>(.*?)</h1>", page)[1]) == label
    assert html.unescape(re.search(r"<title>(.*?): anomalies</title>", page)[1]) == label
    assert f"<td>{html.escape(label, quote=False)}</td>" in page.replace("&#39;", "'").replace("&#34;", '"')
    tags = set(re.findall(r"<([a-z]\w*)", page))
    assert tags == set(re.findall(r"<([a-z]\w*)", report.report_html(made_up()))) and page.count("<img") == 2


def test_without_events_the_page_says_so():
    page = report.report_html(replace(made_up(), events=[], keys=[]))
    assert "No event: the score never reached 0.50" in page and "<img" not in page and "0 events." in page


def test_the_threshold_is_on_the_axis_and_says_where_it_comes_from():
    found = replace(made_up(), threshold=.73)
    for origin, words in (("the checkpoint", "0.730, from the checkpoint"), ("given", "0.730, given"),
                          ("normal video a.mp4", "0.730, from normal video a.mp4"), (None, "0.730")):
        made = {"backbone": "mini", "settings": {"threshold": .5, "localizer": {"threshold": .8}}}
        made |= {"threshold_from": origin} if origin else {}
        page = report.report_html(replace(found, made_with=made))
        assert f"<tr><td>threshold of an event</td><td>{words}</td></tr>" in page
        assert 'style="top: 27.0%">0.730</span>' in page
        assert "<td>localizer threshold</td><td>0.8</td>" in page and "<td>threshold</td>" not in page


def test_the_film_of_a_motion_detector_has_boxes_where_something_moves(tmp_path):
    "A frame alone does not move: the film looks at it between its neighbours."
    film = write_video(tmp_path / "film.mp4", pictures(60), 25)
    scorer = Detector.load().scorer
    known = replace(scorer.settings, localizer=replace(scorer.settings.localizer, method="pixels"))
    detector = Detector(Learned(scorer.model, scorer.clip, known), DetectorOptions(threshold=1e-9))
    found = detector(film)
    assert len(found.events) == 1 and len(found.keys[0].boxes) and found.keys[0].heat.max() > 0
    shown = list(report.annotated(detector, found, film))
    plain = list(report.annotated(detector, replace(found, events=[]), film))
    different = [bool((a[20:48] != b[20:48]).any()) for a, b in zip(shown, plain)]     # below the caption
    assert len(shown) == 60 and sum(different) > 50


def test_json_says_what_was_detected(tmp_path):
    saved = json.loads(report.to_json(made_up(), tmp_path / "d.json").read_text())
    assert list(saved) == ["video", "n_frames", "fps", "duration", "threshold", "made_with", "size", "curve",
                           "events", "key_frames"]
    curve = {"frame": [0, 4, 8, 12], "time": [0., 1., 2., 3.], "score": [.1, .9, .2, .1]}
    assert saved["curve"] == curve and saved["events"][0]["label"] == "<i>Fire</i>"
    assert list(saved["events"][0]) == ["label", "start", "stop", "first", "last", "confidence", "peak",
                                        "peak_time", "classes"]
    assert saved["key_frames"] == [{"event": 0, "frame": 4, "time": 1., "boxes": [[5, 5, 30, 30, .9]]}]
    assert saved["n_frames"] == 16 and saved["size"] == [48, 64]
    assert made_up().to_frames().tolist() == [.1] * 4 + [.9] * 4 + [.2] * 4 + [.1] * 4


def test_the_film_has_every_frame(tmp_path):
    film = write_video(tmp_path / "film.mp4", pictures(60), 25)
    detector = Detector.load(options=DetectorOptions(threshold=1e-9))
    info = probe(report.to_film(detector, detector(film), film, tmp_path / "found.mp4"))
    assert info.n_frames == 60 and info.size == (48 + 40, 64) and info.fps == pytest.approx(25, abs=.1)


@pytest.mark.parametrize("wrong, words", [
    ({"video": "nowhere.mp4"}, "video='nowhere.mp4'"),
    ({"threshold": -1.}, "threshold=-1"),
])
def test_a_wrong_parameter_is_named(wrong, words):
    with pytest.raises(JobError, match=words): DetectJob(**wrong)


def test_the_job_writes_report_json_and_film(tmp_path):
    video = write_video(tmp_path / "clip.mp4", pictures(30), 25)
    given = {"video": str(video), "out": str(tmp_path / "out")}
    papermill.execute_notebook(str(ROOT / "nbs" / "detect.ipynb"), str(tmp_path / "executed.ipynb"), given,
                               progress_bar=False, cwd=str(tmp_path))
    made = {"report.html", "detection.json", "annotated.mp4"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == made
    assert len(json.loads((tmp_path / "out" / "detection.json").read_text())["curve"]["score"]) >= 2


BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((path for name in BROWSERS if (path := shutil.which(name))), None)
PROBE = """<script>addEventListener('load', () => {
const curve = document.querySelector('polyline').getBoundingClientRect();
const fetched = performance.getEntriesByType('resource').filter(r => !r.name.startsWith('data:'));
document.body.setAttribute('data-found', JSON.stringify({
images: [...document.images].map(i => i.complete && i.naturalWidth),
curve: curve.width > 100 && curve.height > 20,
small: [...document.querySelectorAll('h1, p, td, span, footer')].filter(e => e.getClientRects().length
  && parseFloat(getComputedStyle(e).fontSize) < 13).length,
rows: document.querySelectorAll('.events tbody tr').length,
settings: document.querySelectorAll('.settings tbody tr').length, fetched: fetched.length,
title: document.title,
axis: [...document.querySelectorAll('.axis span')].map(e => e.innerText),
level: [...document.querySelectorAll('.axis span')].map(e => Math.round((e.getBoundingClientRect().top
  + e.getBoundingClientRect().bottom) / 2 - document.querySelector('svg').getBoundingClientRect().top)),
height: Math.round(document.querySelector('svg').getBoundingClientRect().height),
over: [...document.querySelectorAll('.times span, .axis span, td')].filter(e =>
  e.getBoundingClientRect().right > innerWidth || e.getBoundingClientRect().left < 0).length,
inner: innerWidth, wide: document.documentElement.scrollWidth <= innerWidth}))})</script>"""


@pytest.mark.skipif(
    BROWSER is None,
    reason="no Chromium here: chromium, chromium-browser and google-chrome are not on the path",
)
def test_a_browser_shows_the_report_offline(tmp_path):
    """The pictures decode, the curve has a size, words are large enough on a telephone, nothing is fetched:
    said by the browser itself, through a probe that the test adds. The page stands in a frame of 390
    pixels, because the browser's own window is no narrower than 500."""
    settings = {"mode": "token", "localizer": {"method": "text", "words": "x" * 90}}
    found = replace(made_up(), duration=7200., n_frames=28800, made_with={
        "backbone": "mini", "threshold_from": "normal video " + "n" * 60 + ".mp4", "settings": settings})
    page = report.to_html(found, tmp_path / "report.html").read_text()
    page, probed = html.escape(page.replace("</body>", PROBE + "</body>")), tmp_path / "probed.html"
    probed.write_text(f"""<iframe width=390 height=900 style="border:0" srcdoc="{page}"></iframe>
<script>addEventListener('load', () => document.body.setAttribute('data-found',
document.querySelector('iframe').contentDocument.body.getAttribute('data-found')))</script>""")
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND",
             f"--user-data-dir={tmp_path / 'profile'}", "--window-size=600,900",
             "--virtual-time-budget=5000"]
    command = [BROWSER, *flags, "--dump-dom", probed.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert 'data-found="' in done.stdout, done.stdout[-500:]
    found = json.loads(html.unescape(done.stdout.split('data-found="')[1].split('"')[0]))
    levels, height = found.pop("level"), found.pop("height")
    assert levels == pytest.approx([0, height / 2, height, height / 2], abs=2)     # 1, 0.5, 0, threshold
    assert found == {
        "images": [64, 64], "curve": True, "small": 0, "rows": 1, "settings": 5, "fetched": 0, "inner": 390,
        "title": "<script>alert(1)</script> & co.mp4: anomalies", "axis": ["1", "0.5", "0", "0.500"],
        "over": 0, "wide": True}
