"""Benchmarks and own folders: faults, and a split that any machine repeats."""
import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stprompt.datasets import (
    HYPER,
    NORMAL,
    SPLITS,
    DatasetError,
    GroundTruth,
    VideoItem,
    csv_benchmark,
    folder_benchmark,
    has_word,
    hyper,
    is_normal_name,
    mask_of_ranges,
    split_items,
    text_of,
)

SHARED = Path(__file__).resolve().parents[2]/"shared"/"data"


def make(root, **classes):
    "Class folders with so many files that are never opened."
    for name, n in classes.items():
        (root/name).mkdir(parents=True)
        for i in range(n): (root/name/f"{name}{i}.mp4").write_bytes(b"x" * i)
    return root


# ---- folders ------------------------------------------------------------------------------------------
def test_missing_root(tmp_path):
    with pytest.raises(DatasetError, match="gone.*no such folder"): folder_benchmark(tmp_path/"gone")


def test_class_folder_without_videos(tmp_path):
    make(tmp_path, fight=3, normal=3)
    (tmp_path/"fire").mkdir()
    (tmp_path/"fire"/"readme.txt").write_text("soon")
    with pytest.raises(DatasetError, match="fire: this class folder holds no videos"):
        folder_benchmark(tmp_path)


def test_no_normal_folder(tmp_path):
    make(tmp_path, fight=3, calm=3)
    with pytest.raises(DatasetError,
                       match="no folder looks like the normal one among calm, fight; name it with normal="):
        folder_benchmark(tmp_path)
    assert folder_benchmark(tmp_path, normal="calm").classes == {NORMAL: "normal", "fight": "fight"}
    with pytest.raises(DatasetError, match="normal='peace'"): folder_benchmark(tmp_path, normal="peace")


def test_two_normal_folders(tmp_path):
    make(tmp_path, fight=3, noFight=3, Normal=3)
    with pytest.raises(DatasetError, match="several folders look"): folder_benchmark(tmp_path)
    with pytest.raises(DatasetError, match="rename one"): folder_benchmark(tmp_path, normal="noFight")


def test_unknown_class_in_texts(tmp_path):
    make(tmp_path, fight=3, normal=3)
    with pytest.raises(DatasetError, match="no class 'riot'"):
        folder_benchmark(tmp_path, texts=dict(riot="a riot"))
    assert folder_benchmark(tmp_path, texts=dict(normal="a calm street")).classes[NORMAL] == "a calm street"


def test_same_name_twice(tmp_path):
    make(tmp_path, fight=3, normal=3)
    (tmp_path/"fight"/"fight0.avi").write_bytes(b"")
    with pytest.raises(DatasetError, match="'fight/fight0' is listed twice"): folder_benchmark(tmp_path)


def test_strays_and_hidden_are_passed_over(tmp_path):
    make(tmp_path, fight=3, normal=3)
    (tmp_path/"LICENSE").write_text("MIT")
    (tmp_path/".git").mkdir()
    (tmp_path/"fight"/"._fight0.mp4").write_bytes(b"")
    (tmp_path/"fight"/"notes.md").write_text("")
    (tmp_path/"fight"/"empty").mkdir()
    (tmp_path/"fight"/"stills").mkdir()
    (tmp_path/"fight"/"stills"/"0.JPG").write_bytes(b"")
    ids = {i.id for i in folder_benchmark(tmp_path).items() if i.is_abnormal}
    assert ids == {"fight/fight0", "fight/fight1", "fight/fight2", "fight/stills"}


@pytest.mark.parametrize("options", [dict(test_fraction=-.1), dict(test_fraction=1),
                                     dict(validation_fraction=2),
                                     dict(test_fraction=.5, validation_fraction=.5)])
def test_impossible_shares(tmp_path, options):
    with pytest.raises(DatasetError, match="fraction"):
        folder_benchmark(make(tmp_path, fight=3, normal=3), **options)


def test_normal_names():
    names = ["fight", "noFight", "no_fight", "Normal", "normal_videos", "NonViolence", "nose", "abnormal",
             "nofire", "notes"]
    normal = ["noFight", "no_fight", "Normal", "normal_videos", "NonViolence"]
    assert [n for n in names if is_normal_name(n, names)] == normal


# ---- the split ----------------------------------------------------------------------------------------
def test_split_is_the_same_everywhere(tmp_path):
    "A frozen digest: fails when the split of a given folder changes, on any machine or Python."
    b = folder_benchmark(make(tmp_path/"own", fight=20, noFight=20))
    listed = "\n".join(f"{s} {i.id}" for s in ("train", "validation", "test") for i in getattr(b, s))
    assert hashlib.sha256(listed.encode()).hexdigest()[:16] == "9a42863d1e003910"
    assert folder_benchmark(tmp_path/"own", seed=1).sha256 != b.sha256


@settings(max_examples=100, deadline=None)
@given(n=st.integers(1, 80), seed=st.integers(0, 9), test=st.floats(.01, .6), validation=st.floats(.01, .39))
def test_split_is_a_partition(n, seed, test, validation):
    items = [VideoItem(f"c/{i}", f"{i}.mp4", "c") for i in range(n)]
    train, val, tst = split_items(items, seed, test, validation)
    assert sorted(i.id for i in train + val + tst) == sorted(i.id for i in items)
    # the disk's order is no matter
    assert split_items(items[::-1], seed, test, validation) == [train, val, tst]
    if n >= 3: assert train and val and tst
    assert abs(len(tst) - n * test) <= 1 and abs(len(val) - n * validation) <= 1


# ---- the nouns ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["../up", "/etc/passwd", "a/../../b"])
def test_names_cannot_leave_their_root(name):
    with pytest.raises(DatasetError, match="cannot leave its root"): VideoItem(name, "x.mp4")


def test_item_without_label():
    with pytest.raises(DatasetError, match="has no label"): VideoItem("a", "a.mp4", ())


def test_ground_truth_shapes():
    with pytest.raises(DatasetError, match="expected bool"): GroundTruth(5, (10, 10), np.zeros(4, bool))
    with pytest.raises(DatasetError, match="expected bool"): GroundTruth(5, (10, 10), np.zeros(5))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(-5, 30), st.integers(-5, 30)), max_size=4), st.integers(0, 25))
def test_ranges_are_exact_or_refused(ranges, n):
    good = all(0 <= a < b <= n for a, b in ranges)
    if not good:
        with pytest.raises(DatasetError, match="range"): mask_of_ranges(ranges, n)
    else:
        covered = sorted({i for a, b in ranges for i in range(a, b)})
        assert np.flatnonzero(mask_of_ranges(ranges, n)).tolist() == covered


def test_unknown_benchmark():
    with pytest.raises(DatasetError, match="dataset='ucf' is unknown; choose one of"): hyper("ucf")


def test_table_is_rectangular_and_not_shared():
    assert len({tuple(sorted(row)) for row in HYPER.values()}) == 1
    hyper("folder")["stride"] = 99
    assert HYPER["folder"]["stride"] != 99


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=20))
def test_text_of_any_name(name): assert text_of(name) == text_of(name).lower().strip()


@pytest.mark.skipif(not SHARED.is_dir(), reason="real clips are not here (../shared/data)")
def test_real_folder():
    b = folder_benchmark(SHARED/"surv_fight")
    assert (len(b.train), len(b.validation), len(b.test)) == (110, 30, 60)
    assert b.classes == {NORMAL: "normal", "fight": "fight"}
    assert sum(i.is_abnormal for i in b.test) == 30 and all(i.source.is_file() for i in b.items())


# ---- one's own list -----------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def films(tmp_path_factory):
    "Ten one-second videos."
    from stprompt.video import write_video
    root = tmp_path_factory.mktemp("films")
    for i in range(10): write_video(root/f"v{i}.mp4", [np.full((32, 32, 3), 20 * i, np.uint8)] * 25, 25)
    return root


def listed(root, text, **options):
    path = root/"list.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return csv_benchmark(path, **options)

BASE = "v0.mp4,Normal,,\nv1.mp4,Normal,,\nv2.mp4,Fire,.2,.6\nv3.mp4,Fire,0,1\nv4.mp4,Brawl,.5,1\n"


@pytest.mark.parametrize("classes, words", [
    (dict(fight=3, Fight=3, normal=3), "the class folders .* differ in case or separators only"),
    ({"car_crash": 3, "car crash": 3, "normal": 3}, "differ in case or separators only; make them one"),
    ({"---": 3, "normal": 3}, "---: this class folder has no word in its name")])
def test_class_folders_are_told_apart_by_words(tmp_path, classes, words):
    with pytest.raises(DatasetError, match=words): folder_benchmark(make(tmp_path, **classes))


def test_a_class_folder_that_cannot_be_read(tmp_path, monkeypatch):
    root, before = make(tmp_path, fight=3, normal=3), Path.iterdir
    def refuse(path):
        if path.name == "fight": raise PermissionError(13, "Permission denied")
        return before(path)
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DatasetError, match="fight: this class folder cannot be read .Permission denied."):
        folder_benchmark(root)


def test_a_list_of_ones_own_names_absolute_paths(films, tmp_path):
    rows = "".join(f"{films}/v{n}.mp4,{'Fire' if n > 4 else 'Normal'}\n" for n in range(10))
    (tmp_path/"mine.csv").write_text("path,label\n" + rows)
    found = csv_benchmark(tmp_path/"mine.csv")
    assert {item.source for item in found.items()} == {films/f"v{n}.mp4" for n in range(10)}
    assert all(item.id == str(item.source.with_suffix("")).lstrip("/") for item in found.items())


@pytest.mark.parametrize("text, words", [
    ("", "line 1: expected the columns"), ("path\nv0.mp4\n", "line 1"),
    ("path,label,colour\n", "line 1.*colour"), ("path,label,start\n", "line 1"),
    ("path,path,label\n", "line 1"),
    ("path,label\nv0.mp4\n", "line 2: expected 2 cells, found 1"),
    ("path,label\nv0.mp4,Fire,1\n", "line 2: expected 2 cells, found 3"),
    ("path,label\nv0.mp4,\n", "line 2: has no label"),
    ("path,label\n,Fire\n", "line 2: path ''"), ("path,label\nv77.mp4,Fire\n", "line 2: there is no video"),
    ("path,label\n../v0.mp4,Fire\n", "line 2.*leads out"),
    ("path,label\n/etc/passwd,Fire\n", "line 2: there is no video /etc/passwd"),
    ("path,label\n..\\v0.mp4,Fire\n", "line 2.*leads out"),
    ("path,label\nC:\\v0.mp4,Fire\n", "line 2.*leads out"), ('path,label\n"v0.mp4,Fire\n', "no CSV"),
    ("path,label,start,end\n" + BASE + "v5.mp4,Fire,.5,\n", "line 7.*'0?.5' and ''"),
    ("path,label,start,end\n" + BASE + "v5.mp4,Fire,a,b\n", "line 7.*'a' and 'b'"),
    ("path,label,start,end\n" + BASE + "v5.mp4,Fire,-1,1\n", "line 7.*0 <= start"),
    ("path,label,start,end\n" + BASE + "v5.mp4,Fire,1,1\n", "line 7"),
    ("path,label,start,end\n" + BASE + "v5.mp4,Fire,nan,1\n", "line 7"),
    ("path,label,start,end\n" + BASE + "v5.mp4,Fire,0,inf\n", "line 7"),
    ("path,label,start,end\n" + BASE + "v2.mp4,Fire,.2,.6\n", "line 7: says the same"),
    ("path,label,start,end\n" + BASE + "v0.mp4,Fire,0,1\n", "line 7.*it can only be one"),
    ("path,label,start,end\n" + BASE + "v5.mp4,Normal,0,1\n", "line 7: a range of a Normal video"),
    ("path,label,split\nv0.mp4,Normal,train\nv1.mp4,Fire,dev\n", "line 3: split 'dev'"),
    ("path,label,split\nv0.mp4,Normal,train\nv1.mp4,Fire,\n", "line 3: split ''"),
    ("path,label,split\nv0.mp4,Normal,train\nv1.mp4,Fire,test\nv1.mp4,Brawl,train\n",
     "line 4: split 'train', but 'test'"),
    ("path,label\nv0.mp4,Fire\n", "lists no Normal video"),
    ("path,label\nv0.mp4,normal\n", "lists no abnormal video"), (b"path,label\nv0.mp4,\xff\xfe\n", "UTF-8"),
    ("path,label\n.,Fire\n", "line 2: there is no video"),
    ("path,label\n" + "a" * 300 + ".mp4,Fire\n", "line 2: there is no video"),
    ("path,label\nv0.mp4,Normal\nv1.mp4,---\n", "line 3: has no label"),
    ("path,label\nv0.mp4,Normal\u200b\n", "line 2: has no label"),
    ("path,label\nv0.mp4,normal_videos\n", "line 2.*looks like Normal"),
    ("path,label\nv0.mp4,RoadAccident\nv1.mp4,road accident\n", "line 3.*case or separators"),
    ("path,label,start,end\n" + BASE + "v5.mp4,Fire,0_0,0_1\n", "line 7"),
    ("path,label,start,end\n" + BASE + "v5.mp4,Fire,\u0660,\u0661\n", "line 7"),
    (b"path,label\nv0.mp4,Normal\nv1.mp4,\xff\n", "line 3.*UTF-8"),
    ("path,label,start,end,split\nv0.mp4,Normal,,,test\nv1.mp4,Fire,0,1,test\nv2.mp4,Fire,,,test\n",
     "line 4: an abnormal test video without start and end")])
def test_a_wrong_list_is_refused_with_its_line(films, text, words):
    with pytest.raises(DatasetError, match=words): listed(films, text)


def test_a_range_past_the_end_is_named(films):
    bench = listed(films, "path,label,start,end,split\nv0.mp4,Normal,,,train\nv1.mp4,Fire,0,9,test\n")
    with pytest.raises(DatasetError, match="line 3: v1.mp4 has a range up to 9 s, but lasts 1.00 s"):
        bench.ground_truth("v1")
    for late in ("0.1,9", "1.01,1.03"):
        bench = listed(films,
                       f"path,label,start,end\nv0.mp4,Normal,,\nv1.mp4,Fire,0,1\nv1.mp4,Fire,{late}\n")
        with pytest.raises(DatasetError, match="line 4: v1.mp4"): bench.ground_truth("v1")


@pytest.mark.parametrize("shares", [dict(test_fraction=1.5), dict(validation_fraction=-1),
                                    dict(test_fraction=.5, validation_fraction=.5)])
def test_impossible_shares_of_a_list(films, shares):
    with pytest.raises(DatasetError, match="fraction"):
        listed(films, "path,label,start,end\n" + BASE, **shares)


def test_normal_in_any_case(films):
    bench = listed(films, "path,label\nv0.mp4,normal\nv1.mp4,NorMal\nv2.mp4,norMal\nv3.mp4,Fire\n")
    assert sorted(i.id for i in bench.items() if not i.is_abnormal) == ["v0", "v1", "v2"]


def test_oddities_of_a_list_are_accepted(films):
    plain = listed(films, "path,label,start,end\n" + BASE)
    rows = BASE.replace("\n", "\r\n").replace("Normal", " NORMAL ").rstrip()
    odd = listed(films, b"\xef\xbb\xbfPath , Label,start,end\r\n\r\n" + rows.encode())
    assert odd.sha256 == plain.sha256
    assert odd.frame_labels
    assert (odd.ground_truth("v2").mask == plain.ground_truth("v2").mask).all()
    assert plain.ground_truth("v2").mask.nonzero()[0].tolist() == list(range(5, 15))
    assert plain.classes == {"Normal": "normal", "Brawl": "brawl", "Fire": "fire"}
    assert not listed(films, "path,label\nv0.mp4,Normal\nv1.mp4,Fire\n").frame_labels


@pytest.mark.parametrize("label", ["NonViolence", "normal_videos", "background", "noFire"])
def test_a_label_that_reads_as_normal_is_never_an_anomaly_in_silence(films, label):
    with pytest.raises(DatasetError, match="list.csv, line 3.*Normal"):
        listed(films, f"path,label\nv0.mp4,Fire\nv1.mp4,{label}\nv2.mp4,Normal\n")


def test_a_doubtful_label_is_named_with_its_own_line(films):
    with pytest.raises(DatasetError, match="list.csv, line 4: label 'noFire'"):
        listed(films, "path,label\nv0.mp4,Normal\nv1.mp4,Fire\nv1.mp4,noFire\n")


def test_a_word_that_begins_with_no_is_a_label(films):
    assert listed(films, "path,label\nv0.mp4,Normal\nv1.mp4,nosebleed\n").item("v1").is_abnormal

line = st.tuples(st.sampled_from(["v0.mp4", "v1.mp4", "./v2.mp4", "v3", ".", "",
                                  "a" * 300 + ".mp4"]) | st.text(max_size=6),
                 st.sampled_from(["Normal", "Fire", "fire", ""]) | st.text(max_size=4),
                 st.sampled_from(["", "0", ".5", "1_0", "-1"]) | st.text(max_size=3),
                 st.sampled_from(["", "1", "1e0", "nan"]) | st.text(max_size=3)).map(",".join)


@given(st.lists(line, max_size=4))
@settings(max_examples=150, deadline=None)
def test_any_lines_are_a_list_or_an_error(films, lines):
    try:
        bench = listed(films, "\n".join(["path,label,start,end", "v0.mp4,Normal,,", "v1.mp4,Fire,0,1",
                                         *lines]))
    except DatasetError as error: assert "list.csv" in str(error)
    else: assert bench.item("v0").labels == (NORMAL,) and "Fire" in bench.item("v1").labels


@given(st.binary(max_size=120))
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_a_list_or_an_error(films, data):
    for content in (data, b"path,label,start,end\n" + data,
                    b"path,label,split\nv0.mp4,Normal,train\n" + data):
        try: bench = listed(films, content)
        except DatasetError as error: assert "list.csv" in str(error)
        else: assert bench.items()

words = (st.text("abcdé,'0", min_size=1, max_size=8).filter(has_word)
         | st.sampled_from(["RoadAccident", "road-rage", "Überfall", "no entry"]))


@given(st.lists(st.tuples(st.sampled_from(SPLITS), st.lists(words, max_size=2, unique=True),
                          st.integers(0, 20), st.integers(1, 5)), min_size=2, max_size=10))
@settings(max_examples=60, deadline=None)
def test_a_valid_list_says_exactly_what_was_written(films, videos):
    videos[0], videos[1] = ("train", [], 0, 1), ("train", ["Fire"], 2, 3)
    rows = ["path,label,start,end,split"]
    for i, (split, labels, start, length) in enumerate(videos):
        rows += [f'v{i}.mp4,"{label}",{start / 25},{(start + length) / 25},{split}'
                 for label in labels] or [f"v{i}.mp4,Normal,,,{split}"]
    bench = listed(films, "\n".join(rows))
    for i, (split, labels, start, length) in enumerate(videos):
        item = bench.item(f"v{i}")
        assert item in getattr(bench, split) and item.labels == (tuple(labels) or (NORMAL,))
        abnormal = list(range(start, start + length)) if labels else []
        assert bench.ground_truth(item.id).mask.nonzero()[0].tolist() == abnormal


def test_the_own_data_notebook_runs(tmp_path):
    import json

    import papermill
    root = Path(__file__).resolve().parent.parent
    papermill.execute_notebook(str(root/"nbs"/"own_data.ipynb"), str(tmp_path/"executed.ipynb"),
                               {"epochs": 2, "out": str(tmp_path/"out")}, progress_bar=False,
                               cwd=str(tmp_path))
    found = json.loads((tmp_path/"out"/"metrics.json").read_text())
    assert {"frame_auc", "ano_auc", "frame_ap"} <= set(found["metrics"])
    assert "no boxes" in found["skipped"]["mean_iou"]
    assert len(json.loads((tmp_path/"out"/"split.json").read_text())["test"]) == 12
