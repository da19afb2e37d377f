"Text goes out escaped, labels stay as they were given: a job, a detector, a record with hostile names."
import html
import json
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import mistune
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import pictures
from huggingface_hub import ModelCard

from stprompt import report
from stprompt import results as R
from stprompt.clip import BackboneError, FrozenCLIP
from stprompt.command import main
from stprompt.detector import Detector, DetectorOptions
from stprompt.localizer import Localizer
from stprompt.metrics import Report
from stprompt.model import STPrompt
from stprompt.text import code_span, escaped
from stprompt.video import probe, write_video

FOLDERS = ["a|b", "<script>alert(1)<script>", "new\nline", "semi;colon", "# head", "[link](x)", "$\\frac$",
           "q\"'`u: -"]
LABELS = [*FOLDERS, "/etc/passwd", "<script>alert(1)</script>", "&lt;b&gt;", "*x*", "__init__",
          "~~no~~", "\\|", "![i](http://x/y.png)", "- one", "1. one", "> quote", "```", "<!-- x",
          "https://x.y", "| --- |", "事故 🔥", "\u202egnp.exe"]


class Page(HTMLParser):
    "Tags, cells and headings of a page that somebody's Markdown program shows."
    def __init__(self, text):
        super().__init__()
        self.tags, self.cells, self.inside = set(), [], None
        plugins = ["table", "strikethrough", "url", "math", "footnotes", "task_lists"]
        self.feed(mistune.create_markdown(escape=False, plugins=plugins)(text))

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag in ("td", "th", "h1", "h2"): self.cells.append("")
        self.inside = tag

    def handle_data(self, data):
        if self.cells: self.cells[-1] += data


def seen(label):
    "A label as a page shows it: on one line, without characters that nobody sees."
    return " ".join(label.replace("\u202e", "\ufffd").split())


# ---- Markdown ------------------------------------------------------------------------------------
@pytest.mark.parametrize("label", LABELS)
def test_a_cell_shows_the_label_and_nothing_else(label):
    page = Page(R.markdown(pd.DataFrame({label: ["1", label], "n": [label, 2]})))
    assert [cell.strip() for cell in page.cells] == [seen(label), "n", "1", seen(label), seen(label), "2"]
    assert page.tags <= {"table", "thead", "tbody", "tr", "th", "td"}


@pytest.mark.parametrize("label", LABELS)
def test_table_and_index_show_a_benchmark_s_name(label, tmp_path):
    scored = {0: Report({"video_auc": {"mean": 50., "ci95": None}}, skipped={"frame_auc": f"no {label}"})}
    record = R.make_record(f"STPrompt on {label}", scored, started=0., benchmark={"name": label},
                           clip={"name": "mini", "weights": label},
                           more={"departures": [f"weights: {label}"]})
    R.write_record(tmp_path/"r"/"x", record)
    page = Page((tmp_path/"r"/"x"/"table.md").read_text())
    assert page.cells[0].startswith(f"STPrompt on {seen(label)}\n")
    assert f"ours ({seen(label)})" in map(str.strip, page.cells)
    (tmp_path/"r"/"x"/"[a](b) c.png").touch()
    index = Page(R.write_index(tmp_path/"r").read_text())
    assert f"STPrompt on {seen(label)}" in index.cells[1]
    assert f"ours ({seen(label)})" in map(str.strip, index.cells)
    plain = {"h1", "h2", "p", "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "code", "a"}
    assert page.tags | index.tags <= plain


@pytest.mark.parametrize("text", ["ls", "echo `date`", "`", "``a`", "a\nb", "<b>|"])
def test_a_command_is_code(text):
    shown = mistune.create_markdown(escape=False)(f"Again: {code_span(text)}")
    assert html.unescape(re.fullmatch(r"<p>Again: <code>(.*)</code></p>\n", shown)[1]) == seen(text)


def test_the_escape_test_can_fail():
    assert "script" in Page(f"| {LABELS[1]} |\n| --- |\n").tags
    assert escaped("frame_auc >= 0.5") == "frame_auc >= 0.5"


# ---- a whole job ---------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "A job on tiny clips in class folders with such names, through the command line."
    folder, noise = tmp_path_factory.mktemp("hostile"), np.random.default_rng(0)
    root, out = folder/"# [my](x) <clips>|", folder/"out"
    for label in ("normal", *FOLDERS):
        for n in range(3):
            images = noise.integers(0, 120, (6, 48, 64, 3), np.uint8)
            write_video(root/label/f"<b>{n}|*_`$.mp4", images, 25)
    assert main(["train", "--dataset", "folder", "--root", str(root), "--epochs", "1", "--device", "cpu",
                 "--out", str(out)]) == 0
    return out


def test_a_job_keeps_every_label_as_it_was_given(trained):
    "One spelling in every file: the folder's name."
    record, config, detector, split = (json.loads((trained/name).read_text()) for name in (
        "metrics.json", "model/config.json", "model/detector.json", "split.json"))
    given = {"Normal", *FOLDERS}
    assert set(record["benchmark"]["classes"]) == set(dict(config["options"]["classes"])) == given
    assert set(detector["words"]) == set(FOLDERS) and record["benchmark"]["name"] == "# [my](x) <clips>|"
    assert {name.rpartition("/")[0] for part in split.values() for name in part} == {"normal", *FOLDERS}
    assert set(STPrompt.from_pretrained(trained/"model").options.labels) == given
    assert (trained/"curves.png").stat().st_size > 1000


def test_a_job_s_pages_show_every_name(trained):
    table, card = (trained/"table.md").read_text(), ModelCard.load(trained/"model"/"README.md")
    assert "ours (# [my](x) <clips>|)" in map(str.strip, Page(table).cells)
    assert "script" not in Page(table).tags
    assert card.data.to_dict()["library_name"] == "stprompt"
    page = Page(card.text)
    (labels,) = [cell for cell in page.cells if cell.startswith("Normal")]
    assert sorted(labels.strip().split(", ")) == sorted(map(seen, ["Normal", *FOLDERS]))
    assert "script" not in page.tags


def test_a_job_s_labels_reach_report_json_and_film(trained, tmp_path):
    "And a video's name that is no UTF-8 has a replacement character there."
    film = write_video(tmp_path/"plain.mp4", pictures(12), 25)
    source = Path(os.fsdecode(os.fsencode(tmp_path) + b"/<i>|b\xff.mp4"))
    film.rename(source)
    detector = Detector.load(trained/"model", options=DetectorOptions(threshold=1e-9, shortest=0.))
    found = detector(source)
    assert found.video == "<i>|b\ufffd.mp4" and found.events[0].label in FOLDERS
    page = report.to_html(found, tmp_path/"report.html").read_text(encoding="utf-8")
    assert html.unescape(re.search(r"<h1>(.*?)</h1>", page)[1]) == "<i>|b\ufffd.mp4"
    assert "<script" not in page and "<i>" not in page
    saved = json.loads(report.to_json(found, tmp_path/"found.json").read_text())
    assert saved["video"] == found.video and saved["events"][0]["label"] == found.events[0].label
    assert set(saved["events"][0]["classes"]) == set(saved["made_with"]["settings"]["words"]) == set(FOLDERS)
    assert probe(report.to_film(detector, found, source, tmp_path/"film.mp4")).n_frames == 12


def test_labels_in_words_are_kept_too(tmp_path):
    "A label that looks like a path, in the detector's settings and in an event."
    film, words = write_video(tmp_path/"a.mp4", pictures(8), 25), {label: "a fire" for label in LABELS}
    del words["```"], words["| --- |"]           # these have no word in them
    del words["\\|"]
    found = Detector.zero_shot(words, threshold=1e-9, options=DetectorOptions(shortest=0.))(film)
    saved = json.loads(report.to_json(found, tmp_path/"found.json").read_text())
    shown = saved["events"][0]["classes"], saved["made_with"]["settings"]["words"]
    assert [list(one) for one in shown] == [list(words)] * 2
    event = replace(found.events[0], label="/etc/passwd")
    odd = report.to_json(replace(found, events=[event]), tmp_path/"odd.json")
    assert json.loads(odd.read_text())["events"][0]["label"] == "/etc/passwd"


# ---- what CLIP cannot read -----------------------------------------------------------------------
LONG = "people " * 80          # 82 tokens with start and end, of 77


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    "Four tiny clips of each of two classes."
    root = tmp_path_factory.mktemp("long")/"clips"
    for label in ("normal", "fight"):
        for n in range(4): write_video(root/label/f"{n}.mp4", pictures(4, n), 25)
    return root


@pytest.mark.parametrize("words, said", [
    (("--texts", f"fight: {LONG}"), "'fight' is 82 tokens long with its start and end behind 8 learnable"),
    (("--texts", f"normal: {LONG}"), "label 'Normal' is 82 tokens long"),
    (("--texts", "fight: a fight", "--prompt_length", "60"), None),
    (("--texts", f"fight: {'people ' * 16}", "--prompt_length", "60"), "18 tokens long with its start and"),
    (("--texts", "fight: -"), "there is no word in '-', given for 'fight'"),
    (("--texts", "fight: a; fight: b"), "'fight' is given twice")])
def test_a_text_that_does_not_fit_is_refused_first(clips, tmp_path, capsys, monkeypatch, words, said):
    monkeypatch.setenv("STPROMPT_CACHE", str(tmp_path/"cache"))
    code = main(["train", "--dataset", "folder", "--root", str(clips), "--epochs", "1", "--device", "cpu",
                 "--out", str(tmp_path/"out"), *words])
    printed = capsys.readouterr().err
    assert code == (2 if said else 0) and (said or "") in printed
    assert (tmp_path/"cache").exists() == (not said)           # no feature was made
    if "tokens" in (said or ""): assert "of mini reads 77; give the label a shorter text" in printed


def test_a_class_folder_with_a_long_name(clips, tmp_path, capsys):
    for name, label in (("normal", "normal"), ("fight", "1 " * 90)):
        (tmp_path/"clips"/label).parent.mkdir(exist_ok=True)
        (tmp_path/"clips"/label).symlink_to(clips/name)
    assert main(["train", "--dataset", "folder", "--root", str(tmp_path/"clips"), "--device", "cpu", "--out",
                 str(tmp_path/"out")]) == 2
    assert "'1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 '... is 92 tokens long" in capsys.readouterr().err


@pytest.mark.parametrize("classes, said", [
    (f"fire: {LONG}", "classes: the text of the label 'fire' is 82 tokens long with its start and end, the"),
    ("fire: a; Fire: b", "classes: the labels 'fire' and 'Fire' differ in case or separators only"),
    ("car_crash: a; car crash: b", "'car_crash' and 'car crash' differ in case or separators only"),
    ("fire: a; fire: b", "'fire' is given twice"), ("---: a", "expected {label: words}"),
    ("fire: ...", "expected {label: words}")])
def test_words_that_do_not_fit_are_refused(clips, tmp_path, capsys, classes, said):
    words = ["--classes", classes, "--threshold", "0.5", "--device", "cpu", "--out", str(tmp_path/"out")]
    assert main(["detect", str(clips/"fight"/"0.mp4"), *words]) == 2
    assert said in capsys.readouterr().err and not (tmp_path/"out"/"report.html").exists()


def test_a_sentence_that_would_be_cut_is_refused_wherever_it_comes_from():
    "Of the localizer, of a phrase file, of a checkpoint's settings: nothing is read in part."
    clip = FrozenCLIP.load("mini", device="cpu")
    with pytest.raises(BackboneError, match="is 82 tokens long with its start and end, the .* reads 77"):
        Localizer(clip, {"fire": "fire", "fight": LONG})
    with pytest.raises(BackboneError, match="shorten it"): clip.text(["fire", LONG])
    whole = clip.text(["people " * 75, "fire"])          # 77 tokens
    assert torch.allclose(whole[1], clip.text(["fire"])[0], atol=1e-5)
