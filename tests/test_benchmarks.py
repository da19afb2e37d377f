"""The official annotation files give the official counts; anything else is a sentence with file and line."""
import pickle
import re
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stprompt.annotations import (
    parse_boxes,
    parse_classes,
    parse_ped2,
    parse_temporal,
    parse_tracks,
    parse_xd,
    plain_pickle,
    xd_labels,
)
from stprompt.benchmarks import (
    BOXED,
    PAGES,
    check,
    fitted_truth,
    shanghaitech,
    ubnormal,
    ucf_crime,
    ucsd_ped2,
    xd_violence,
)
from stprompt.datasets import NORMAL, DatasetError
from stprompt.video import VideoWarning, write_video

SHARED = Path(__file__).resolve().parents[2]/"shared"
NOTES, DATA = SHARED/"annotations", SHARED/"data"
official = pytest.mark.skipif(not NOTES.is_dir(),
                              reason="the official annotation files are not here (../shared/annotations)")
any_file = settings(max_examples=150, deadline=None,
                    suppress_health_check=[HealthCheck.function_scoped_fixture])


# ---- the official files -------------------------------------------------------------------------------
@official
def test_ucf_counts(tmp_path):
    b = ucf_crime(tmp_path, NOTES/"ucf_crime")
    labels = parse_temporal(NOTES/"ucf_crime"/"Temporal_Anomaly_Annotation.txt")
    assert b.notes == () and [i.id for i in b.test if labels[i.id.split("/")[1]][0] != i.labels[0]] == []
    assert (len(b.train) + len(b.validation), len(b.test)) == (1610, 290) and len(b.classes) == 14
    assert (sum(i.is_abnormal for i in b.test), sum(i.is_abnormal for i in b.train + b.validation)) == (140,
                                                                                                        810)
    assert {l for i in b.validation for l in i.labels} == set(b.classes)
    temporal = parse_temporal(NOTES/"ucf_crime"/"Temporal_Anomaly_Annotation.txt")
    assert len(temporal) == 290 and temporal["Abuse028_x264"] == ("Abuse", [(164, 240)])
    assert all(("Normal" in name) == (not ranges) for name, (_, ranges) in temporal.items())


@official
@pytest.mark.parametrize("file, videos, boxes", [("Test_annotation.pkl", 140, 3102),
                                                 ("Train_annotation.pkl", 810, 25483)])
def test_ucf_boxes(file, videos, boxes):
    found = parse_boxes(NOTES/"ucf_crime"/file)
    assert (len(found), sum(len(b) for frames in found.values() for b in frames.values())) == (videos, boxes)


@official
def test_every_ucf_test_box_is_evaluated():
    "All 3102, although few lie on a multiple of the stride; of dense boxes one of `stride`."
    from types import SimpleNamespace

    from stprompt.experiments import evaluated_frames
    found = parse_boxes(NOTES/"ucf_crime"/"Test_annotation.pkl")
    truths = {video: SimpleNamespace(boxes=frames) for video, frames in found.items()}
    assert sum(map(len, evaluated_frames(truths, 16).values())) == 3102
    dense = {"dense": SimpleNamespace(boxes={f: [[0, 0, 1, 1]] for f in range(9)})}
    assert evaluated_frames(dense, 4)["dense"].tolist() == [0, 4, 8]


@official
@pytest.mark.parametrize("inclusive, whole, centred", [(False, 23.07, 35.31), (True, 23.40, 35.52)])
def test_ucf_trivial_floors(inclusive, whole, centred):
    "The whole frame and a centred box of 0.6 of each side; corners as others count, and as we do."
    found = parse_boxes(NOTES/"ucf_crime"/"Test_annotation.pkl", inclusive)
    boxes = np.concatenate([b for frames in found.values() for b in frames.values()])
    def floor(share):
        x1, y1, x2, y2 = 160 - 160*share, 120 - 120*share, 160 + 160*share, 120 + 120*share
        width = (np.minimum(boxes[:, 2], x2) - np.maximum(boxes[:, 0], x1)).clip(0)
        inter = width * (np.minimum(boxes[:, 3], y2) - np.maximum(boxes[:, 1], y1)).clip(0)
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        return 100 * (inter / (area + (x2 - x1) * (y2 - y1) - inter)).mean()
    assert (floor(1), floor(.6)) == pytest.approx((whole, centred), abs=.005)


@official
def test_shanghaitech_counts(tmp_path):
    b = shanghaitech(tmp_path, NOTES/"shanghaitech")
    learn = b.train + b.validation
    assert (len(learn), len(b.test)) == (238, 199)
    assert (sum(i.is_abnormal for i in learn), sum(i.is_abnormal for i in b.test)) == (63, 44)
    assert b.notes == () and len(b.classes) == 18 and any(len(i.labels) == 4 for i in b.items())
    assert all((i.source.suffix == ".avi") == (len(i.id.split("_")[1]) == 3) for i in b.items())


@official
def test_ubnormal_counts(tmp_path):
    b = ubnormal(tmp_path, NOTES/"ubnormal")
    assert [(sum(i.is_abnormal for i in s), sum(not i.is_abnormal for i in s))
            for s in (b.train, b.validation, b.test)] == [(82, 186), (38, 26), (158, 53)]
    name = "abnormal_scene_27_scenario_8"
    assert b.item(name).source == tmp_path/"Scene27"/f"{name}.mp4"


@official
def test_check_reports_what_is_missing(tmp_path, capsys):
    problems = check(ucf_crime(tmp_path, NOTES/"ucf_crime"))
    assert sum(p.startswith("missing") for p in problems) == 1900
    assert "1900 videos missing" in capsys.readouterr().out


@pytest.mark.skipif(not DATA.is_dir(), reason="real frames are not here (../shared/data)")
def test_ped2():
    ranges = parse_ped2(DATA/"ucsd_ped2"/"UCSDped2.m")
    assert len(ranges) == 12 and ranges[0] == [(60, 180)] and ranges[2] == [(0, 146)]
    b = ucsd_ped2(DATA/"ucsd_ped2")
    assert check(b) == [] and len(b.train) + len(b.validation) == 19 and len(b.test) == 3
    assert b.sha256 == ucsd_ped2(DATA/"ucsd_ped2").sha256
    for item in b.test:
        truth = b.ground_truth(item.id)
        assert truth.size == (240, 360) and truth.pixel_masks(int(np.flatnonzero(truth.mask)[0])).any()
        with_boxes = np.isin(np.arange(truth.n_frames), list(truth.boxes))
        # masks and ranges are separate annotations
        assert (with_boxes == truth.mask).mean() > .95


# ---- text files of any content ------------------------------------------------------------------------
PARSERS = [parse_temporal, parse_classes, parse_tracks, parse_xd, parse_boxes, parse_ped2]


@pytest.mark.parametrize("parser", PARSERS)
@any_file
@given(data=st.binary(max_size=80))
def test_arbitrary_bytes(tmp_path, parser, data):
    path = tmp_path/"file.txt"
    path.write_bytes(data)
    try: parser(path)
    except DatasetError as error: assert "file.txt" in str(error)

word = st.sampled_from(["Abuse001_x264.mp4", "a_label_B1-0-0", "../b_label_G", "Abuse", "Normal", "-1", "1",
                        "5", "9", "-3", "9999999", "2.0", "x", "", "\t"])


@pytest.mark.parametrize("parser", [parse_temporal, parse_tracks, parse_xd])
@any_file
@given(lines=st.lists(st.lists(word, max_size=7).map(" ".join), max_size=4),
       end=st.sampled_from(["\n", "\r\n"]))
def test_arbitrary_lines(tmp_path, parser, lines, end):
    "Whatever is accepted has ranges that lie the right way round and begin at zero or later."
    path = tmp_path/"file.txt"
    path.write_bytes(end.join(lines).encode())
    try: found = parser(path)
    except DatasetError as error:
        assert "file.txt, line" in str(error) or "holds no track" in str(error)
        return
    if parser is parse_tracks: ranges = [track[1:] for track in found]
    else: ranges = [r for v in found.values() for r in (v[1] if parser is parse_temporal else v)]
    assert all(0 <= s < e for s, e in ranges)


@pytest.mark.parametrize("text", ["a Abuse 1 5\r\n\r\nb Abuse 2 6", "\ufeffa Abuse 1 5\nb Abuse 2 6\n\n",
                                  "a.mp4  Abuse  1  5  -1  -1  \nx/b.mp4 900 Abuse 2 6 -1 -1"])
def test_harmless_forms(tmp_path, text):
    path = tmp_path/"file.txt"
    path.write_bytes(text.encode())
    assert parse_temporal(path) == {"a": ("Abuse", [(0, 5)]), "b": ("Abuse", [(1, 6)])}


def test_missing_and_incomplete_files(tmp_path):
    with pytest.raises(DatasetError, match="Temporal_Anomaly_Annotation.txt: this official file is missing"):
        ucf_crime(tmp_path)
    (tmp_path/"Temporal_Anomaly_Annotation.txt").write_text("")
    (tmp_path/"Anomaly_Test.txt").write_text("Abuse/a.mp4")
    (tmp_path/"Anomaly_Train.txt").write_text("")
    with pytest.raises(DatasetError, match="no line for the test video 'Abuse/a'"): ucf_crime(tmp_path)

ESCAPES = ["../../etc/passwd", "..\\x.mp4", "a/../../b.mp4", "/etc/passwd", "\\\\server\\x.mp4", "C:\\x.mp4",
           "c:x.mp4", "a\0b.mp4"]


@pytest.mark.parametrize("name", ESCAPES)
@pytest.mark.parametrize("file, line", [("Temporal_Anomaly_Annotation.txt", "{} Abuse 1 5"),
                                        ("Anomaly_Test.txt", "{}"), ("Anomaly_Train.txt", "{}"),
                                        ("video_classes_train.txt", "{} normal"),
                                        ("SH_Train.txt", "{}"), ("SH_Test.txt", "{}"),
                                        ("abnormal_test_video_names.txt", "{}"),
                                        ("normal_training_video_names.txt", "{}"),
                                        ("annotations.txt", "{}_label_B1 1 5")])
def test_lists_cannot_leave_the_root(tmp_path, name, file, line):
    "No list, of whichever benchmark, names a place outside its root; the error has file and line."
    lists = ["Temporal_Anomaly_Annotation", "Anomaly_Test", "Anomaly_Train", "annotations"]
    lists += ["SH_Train", "SH_Test"]
    lists += [f"video_classes_{split}" for split in ("train", "test")]
    lists += [f"{kind}_{split}_video_names" for kind in ("normal", "abnormal")
              for split in ("training", "validation", "test")]
    for other in lists: (tmp_path/f"{other}.txt").write_text("")
    (tmp_path/file).write_text("\n" + line.format(name))
    opener = {"T": ucf_crime, "A": ucf_crime, "v": shanghaitech, "S": shanghaitech, "n": ubnormal,
              "a": xd_violence if file == "annotations.txt" else ubnormal}[file[0]]
    with pytest.raises(DatasetError, match=f"{re.escape(file)}, line 2: .* cannot leave the folder"):
        opener(tmp_path)


@pytest.mark.parametrize("key", ESCAPES)
def test_boxes_cannot_leave_the_root(tmp_path, key):
    (tmp_path/"b.pkl").write_bytes(pickle.dumps({key: []}, protocol=2))
    with pytest.raises(DatasetError, match="b.pkl.*cannot leave"): parse_boxes(tmp_path/"b.pkl")


def test_malicious_pickle(tmp_path):
    class Evil:
        def __reduce__(self): return (Path.touch, (tmp_path/"owned",))
    (tmp_path/"evil.pkl").write_bytes(pickle.dumps({"a": Evil()}))
    with pytest.raises(DatasetError, match="evil.pkl: not a plain pickle"): plain_pickle(tmp_path/"evil.pkl")
    assert not (tmp_path/"owned").exists()


@pytest.mark.parametrize("name, labels", [("v=S-7__#1_label_B4-0-0", ("Riot",)),
                                          ("x_label_B2-G-0.mp4", ("Shooting", "Explosion")),
                                          ("x_label_A.mp4", (NORMAL,))])
def test_xd_codes(name, labels): assert xd_labels(name) == labels


@pytest.mark.parametrize("name", ["x.mp4", "x_label_", "x_label_0-0-0", "x_label_B3-0-0", "x_label_b1"])
def test_xd_unknown_codes(name):
    with pytest.raises(DatasetError, match="codes of"): xd_labels(name)


# ---- what once slipped through ------------------------------------------------------------------------
@pytest.mark.parametrize("parser, text, why", [
    (parse_tracks, "1,2.7,4", "line 1: expected whole numbers"),
    (parse_tracks, "1,2,4\n0,2,4", "line 2: object 0"), (parse_tracks, "1,2", "line 1: expected"),
    (parse_tracks, "1,1e3,2000", "line 1: expected"),
    (parse_tracks, "1,nan,4", "line 1"), (parse_tracks, "1,4,2", "line 1: frames 4 to 2"),
    (parse_tracks, "\n", "no track"),
    (parse_ped2, "x\nT{1}.gt_frame = [9:3];", "line 2: range 9:3 is reversed"),
    (parse_ped2, "T.gt_frame = [0:3];", "line 1.*count from 1"),
    (parse_ped2, "T.gt_frame = [1:x];", "line 1: expected ranges"),
    (parse_ped2, "T.gt_frame = 1:3;", "line 1: expected 'gt_frame"),
    (parse_ped2, "nothing", "no line 'gt_frame"),
    (parse_ped2, "T.gt_frame = [1:3 5];", "line 1: expected ranges"),
    (parse_classes, "01_0014 car\n01_0014 car", "line 2: .* listed twice, first in .*line 1"),
    (parse_classes, "01_0014 card", "line 1: 'card' is no class"),
    (parse_classes, "01_0014 car__", "line 1: '' is no class"),
    (parse_classes, "01_0014 car__normal", "line 1: .* contradict"),
    (parse_classes, "01_0014 car__car", "line 1: .* repeat"),
    (parse_xd, "a_label_A 1 5", "line 1: .*normal"),
    (parse_xd, "a_label_B1 1 5\nb_label_B1.mp4 1 5\na_label_B1.mp4 1 5", "line 3: .*twice"),
    (parse_xd, "a_label_B3 1 5", "line 1: .*codes of"), (parse_xd, "a_label_B1", "line 1: no range"),
    (parse_temporal, "a Abuse 1_0 50", "line 1: expected frame numbers"),
    (parse_temporal, "a.mp4 Abuse 1 5\nx/a Abuse 1 5", "line 2: .*twice"),
])


def test_refused_with_file_and_line(tmp_path, parser, text, why):
    (tmp_path/"file.txt").write_text(text)
    with pytest.raises(DatasetError, match=f"file.txt.*{why}"): parser(tmp_path/"file.txt")


def test_accepted_forms(tmp_path):
    path = tmp_path/"file.txt"
    path.write_text("7.0, 2.0, 4.0\n8,0,0")
    assert parse_tracks(path) == [(7, 2, 5), (8, 0, 1)]
    path.write_text("% T.gt_frame = [9:1];\r\nT.gt_frame = [5:90, 140:200]; % "
                    "two\nT.gt_frame=[ 1 : 3 ];\nT.gt_frame = [];")
    assert parse_ped2(path) == [[(4, 90), (139, 200)], [(0, 3)], []]


@any_file
@given(rows=st.lists(st.lists(st.sampled_from(["1:5", "5:1", "0:3", "7", "x", ":", "9999999:99999999",
                                               "1:99999999999", ","]), max_size=3).map(" ".join),
                     max_size=3), junk=st.text(max_size=8))
def test_arbitrary_ped2_lines(tmp_path, rows, junk):
    path = tmp_path/"file.txt"
    path.write_bytes("\n".join([*(f"T{{end+1}}.gt_frame = [{row}];" for row in rows),
                                junk]).encode(errors="replace"))
    try: found = parse_ped2(path)
    except DatasetError as error:
        assert "file.txt" in str(error)
        return
    assert len(found) == len(rows) and all(0 <= s < e for row in found for s, e in row)

corner = st.one_of(st.integers(-5, 400), st.floats(), st.sampled_from([None, "1", True, 10**400, []]))
row = st.one_of(st.tuples(st.sampled_from(["a/image_0007.jpg", "image_0000.jpg", "image.jpg", "", 3, None]),
                          corner, corner, corner, corner).map(list), st.lists(corner, max_size=6), corner)


@any_file
@given(data=st.dictionaries(st.sampled_from(["A", "A.mp4", "x/B", 3]),
                            st.one_of(st.lists(row, max_size=3), corner), max_size=3))
def test_arbitrary_boxes(tmp_path, data):
    "Accepted boxes are finite, the right way round; else file, video and row are named."
    path = tmp_path/"b.pkl"
    path.write_bytes(pickle.dumps(data, protocol=2))
    try: found = parse_boxes(path)
    except DatasetError as error:
        assert "b.pkl" in str(error)
        return
    boxes = [b for frames in found.values() for f, some in frames.items() for b in some if f >= 0]
    assert all(np.isfinite(b).all() and b[0] < b[2] and b[1] < b[3] for b in boxes)
    assert len(boxes) == sum(map(len, data.values()))


@pytest.mark.parametrize("bad", [["i_1.jpg", 1, 1, float("nan"), 9], ["i_1.jpg", 9, 1, 3, 9],
                                 ["i_1.jpg", 1, 9, 3, 3], ["i_1.jpg", 1, 1, float("inf"), 9],
                                 ["i_0.jpg", 1, 1, 5, 5], ["i_1.jpg", 1, 1, 5], ["i_1.jpg", "1", 1, 5, 5]])
def test_a_bad_box_names_file_video_and_row(tmp_path, bad):
    (tmp_path/"b.pkl").write_bytes(pickle.dumps({"Abuse028_x264": [["i_1.jpg", 1, 1, 5, 5], bad]},
                                                protocol=2))
    with pytest.raises(DatasetError, match="b.pkl: video 'Abuse028_x264', row 1 "):
        parse_boxes(tmp_path/"b.pkl")


# ---- toys in the official layouts ---------------------------------------------------------------------
def film(path, n, seed, size=(48, 64)):
    "n noisy frames; a film, or a folder of pictures where the name has no suffix."
    small = np.random.default_rng(seed).integers(0, 255, (n, size[0]//8, size[1]//8, 3), np.uint8)
    images = small.repeat(8, 1).repeat(8, 2)
    if path.suffix: return write_video(path, images)
    path.mkdir(parents=True)
    for k, image in enumerate(images): cv2.imwrite(str(path/f"{k:03d}.jpg"), image)


def put(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text) if isinstance(text, str) else path.write_bytes(text)


def toy_ucf(root):
    "As downloaded: parts of class folders, training normals loose in a part."
    loose = [f"Normal_Videos{k:03d}_x264.mp4" for k in (1, 2, 3)]
    names = {"Train": [f"{c}/{c}{k:03d}_x264.mp4" for c in ("Abuse", "Fighting") for k in (1, 2)]
                      + [f"Training_Normal_Videos_Anomaly/{name}" for name in loose],
             "Test": ["Abuse/Abuse028_x264.mp4", "Fighting/Fighting003_x264.mp4",
                      "Testing_Normal_Videos_Anomaly/Normal_Videos_003_x264.mp4"]}
    for k, name in enumerate(names["Train"] + names["Test"]):
        folder, file = name.split("/")
        places = {"Training_Normal_Videos_Anomaly": "Training-Normal-Videos-Part-1",
                  "Testing_Normal_Videos_Anomaly": folder}
        film(root/places.get(folder, f"Anomaly-Videos-Part-1/{folder}")/file, 36, k, (120, 160))
    for part, some in names.items(): put(root/f"Anomaly_{part}.txt", "\n".join(some))
    put(root/"Temporal_Anomaly_Annotation.txt", "Abuse028_x264.mp4  Abuse  11  30  -1  -1  \n"
                                                "Fighting003_x264.mp4  Fighting  1  10  20  36  \n"
                                                "Normal_Videos_003_x264.mp4  Normal  -1  -1  -1  -1  \n")
    frames = {"Abuse028_x264": (12, 28), "Fighting003_x264": (4, 20, 36)}
    boxes = {name: [[f"d/image_{f:04d}.jpg", 11, 21, 110, 120] for f in some]
             for name, some in frames.items()}
    put(root/"Test_annotation.pkl", pickle.dumps(boxes, protocol=2))
    return ucf_crime(root)


def toy_sh(root, n=12, size=(48, 64)):
    abnormal = {"train": ["01_0014", "01_0016", "02_0128"], "test": ["01_0015", "01_0025"]}
    normal = {"train": ["01_001", "01_002", "01_003"], "test": ["01_004"]}
    for split in ("train", "test"):
        put(root/f"SH_{split.title()}.txt", "\n".join(abnormal[split] + normal[split]))
        classes = [f"{v} {c}" for v, c in zip(abnormal[split], ("car", "car", "chasing__fall"))]
        put(root/f"video_classes_{split}.txt", "\n".join(classes + [f"{v} normal" for v in normal[split]]))
        for k, v in enumerate(abnormal[split]): film(root/"testing"/"frames"/v, 12, k)
        for k, v in enumerate(normal[split]): film(root/"training"/"videos"/f"{v}.avi", 12, k)
    for v in abnormal["test"]:
        pixels = np.zeros((n, *size), np.uint8)
        pixels[4:9, 10:20, 20:50] = 1
        for kind, array in (("frame", pixels.any((1, 2)).astype(np.uint8)), ("pixel", pixels)):
            (root/"testing"/f"test_{kind}_mask").mkdir(exist_ok=True)
            np.save(root/"testing"/f"test_{kind}_mask"/f"{v}.npy", array)
    return shanghaitech(root)


def toy_ub(root):
    count = {"training": 3, "validation": 1, "test": 2}
    for s, (split, k) in enumerate(count.items()):
        for kind in ("normal", "abnormal"):
            names = [f"{kind}_scene_{s+1}_scenario_{n}" for n in range(k)]
            put(root/f"{kind}_{split}_video_names.txt", "\n".join(names))
            for n, name in enumerate(names):
                film(root/f"Scene{s+1}"/f"{name}.mp4", 12, n + 10 * s)
                if kind == "normal": continue
                put(root/f"Scene{s+1}"/f"{name}_annotations"/f"{name}_tracks.txt", "3,2,7\n5,6.0,9.0")
                for f in range(12):
                    objects = np.zeros((48, 64), np.uint8)
                    objects[5:20, 10:30], objects[25:40, 30:60], objects[0:4, 0:4] = 3, 5, 9
                    cv2.imwrite(str(root/f"Scene{s+1}"/f"{name}_annotations"/f"{name}_{f:04d}_gt.png"),
                                objects)
    return ubnormal(root)


def toy_xd(root, train=("1-1004", "1005-2004"), test="videos"):
    learn = [f"v=a{k}__#1_label_{c}" for k, c in enumerate(("B1-0-0", "B1-0-0", "B2-G-0", "A", "A", "A"))]
    held = ["v=S-7__#1_label_B4-0-0", "Bad.Boys__#00-26-51_00-27-53_label_B2-0-0", "v=n__#0_label_A"]
    for k, name in enumerate(learn): film(root/train[k % len(train)]/f"{name}.mp4", 36, k)
    for k, name in enumerate(held): film(root/test/f"{name}.mp4", 36, k)
    put(root/"annotations.txt", f"{held[0]} 3 10 20 30\n{held[1]}.mp4 0 36")
    return xd_violence(root)

TOYS = {"ucf_crime": (toy_ucf, ucf_crime), "shanghaitech": (toy_sh, shanghaitech),
        "ubnormal": (toy_ub, ubnormal), "xd_violence": (toy_xd, xd_violence)}
NOBODY = "no video carries it"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "A function name -> folder of a toy, encoded once."
    room = tmp_path_factory.mktemp("toys")
    def make(name):
        if not (room/name).exists(): TOYS[name][0](room/name)
        return room/name
    return make


@pytest.fixture
def toy(request, tmp_path, made):
    "The benchmark of a fresh copy of a toy, in tmp_path/name."
    shutil.copytree(made(request.param), tmp_path/request.param)
    return TOYS[request.param][1](tmp_path/request.param)


def reported(benchmark, id):
    "The truth of one video, and what was said about it."
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        truth = benchmark.ground_truth(id)
    return truth, " | ".join(str(w.message) for w in seen)


def findings(benchmark): return [line for line in check(benchmark) if NOBODY not in line]


@pytest.mark.parametrize("toy", TOYS, indirect=True)
def test_toys_are_sound(toy, capsys):
    assert findings(toy) == []
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith(f"{toy.name}: {len(toy.train)} train") and "0 videos missing" in first
    for item in toy.test:
        assert reported(toy, item.id)[0].n_frames == (12 if toy.stride == 4 else 36)
        assert reported(toy, item.id)[1] == ""

# ---- what differs between annotation and video is said, and cut or padded to the video ----------------
def test_shanghaitech_masks_of_another_length(tmp_path):
    long = toy_sh(tmp_path/"long", n=15)
    truth, said = reported(long, "01_0015")
    assert truth.n_frames == 12
    assert truth.mask.sum() == 5
    assert "01_0015.npy has 15 frames" in said
    assert "12; cut" in said
    # frame and pixel masks of two videos, reported again by check()
    assert sum("has 15 frames" in p for p in findings(long)) == 4
    short = toy_sh(tmp_path/"short", n=9)
    truth, said = reported(short, "01_0025")
    assert truth.n_frames == 12
    assert truth.mask.tolist() == [4 <= f < 9 for f in range(12)]
    assert "the rest counts as normal" in said
    assert not truth.pixel_masks(11).any()


def test_masks_are_never_resized(tmp_path):
    sh = toy_sh(tmp_path/"sh", size=(96, 128))
    with pytest.raises(DatasetError, match="test_pixel_mask.01_0015.npy: this mask is 128 x 96 "
                       "pixels, its video .*01_0015 is 64 x 48"):
        sh.ground_truth("01_0015")
    assert sum("this mask is 128 x 96" in p for p in findings(sh)) == 2
    ub, name = toy_ub(tmp_path/"ub"), "abnormal_scene_3_scenario_0"
    cv2.imwrite(str(tmp_path/"ub"/"Scene3"/f"{name}_annotations"/f"{name}_0004_gt.png"),
                np.ones((24, 32), np.uint8))
    with pytest.raises(DatasetError,
                       match=f"{name}_0004_gt.png: this mask is 32 x 24 pixels, its video .* is 64 x 48"):
        ub.ground_truth(name)


@pytest.mark.parametrize("kind, content, why", [("frame", None, "missing"),
                                                ("frame", b"junk", "cannot be read"),
                                                ("frame", np.full(12, .5), "one 0 or 1"),
                                                ("frame", np.array([None] * 12), "cannot be read"),
                                                ("pixel", np.zeros((12, 4)), "3 axes"),
                                                ("pixel", b"", "cannot be read"),
                                                ("frame", np.full(12, np.nan), "one 0 or 1")])
def test_bad_shanghaitech_masks(tmp_path, kind, content, why):
    sh, path = toy_sh(tmp_path), tmp_path/"testing"/f"test_{kind}_mask"/"01_0015.npy"
    path.unlink()
    if isinstance(content, bytes): path.write_bytes(content)
    elif content is not None: np.save(path, content, allow_pickle=True)
    with pytest.raises(DatasetError, match=f"01_0015.npy: .*{why}"): sh.ground_truth("01_0015")


def test_a_mask_that_is_a_pickle_does_not_run(tmp_path):
    class Evil:
        def __reduce__(self): return (Path.touch, (tmp_path/"owned",))
    sh, path = toy_sh(tmp_path), tmp_path/"testing"/"test_frame_mask"/"01_0015.npy"
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(DatasetError, match="01_0015.npy: cannot be read"): sh.ground_truth("01_0015")
    assert not (tmp_path/"owned").exists()


def test_ubnormal_masks_are_the_tracked_objects(tmp_path):
    ub, name = toy_ub(tmp_path), "abnormal_scene_3_scenario_1"
    truth, said = reported(ub, name)
    assert np.flatnonzero(truth.mask).tolist() == list(range(2, 10)) and said == ""
    assert truth.boxes[3].tolist() == [[10, 5, 30, 20]]
    assert len(truth.boxes[6]) == 2
    assert truth.boxes[9].tolist() == [[30, 25, 60, 40]]
    # the untracked object 9 is not abnormal
    assert [int(truth.pixel_masks(f).sum()) for f in (1, 3, 6, 9, 10)] == [0, 300, 750, 450, 0]


@pytest.mark.parametrize("change, why", [("colour", "found colours"), ("junk", "cannot be read"),
                                         ("empty", "cannot be read")])
def test_bad_ubnormal_masks(tmp_path, change, why):
    ub, name = toy_ub(tmp_path), "abnormal_scene_3_scenario_1"
    path = tmp_path/"Scene3"/f"{name}_annotations"/f"{name}_0004_gt.png"
    if change == "colour": cv2.imwrite(str(path), np.full((48, 64, 3), (1, 2, 3), np.uint8))
    else: path.write_bytes(b"junk" if change == "junk" else b"")
    with pytest.raises(DatasetError, match=f"{name}_0004_gt.png: .*{why}"): ub.ground_truth(name)
    path.unlink()
    assert f"1 of 8 abnormal frames have no mask, the first is {name}_0004_gt.png" in reported(ub, name)[1]


def test_a_huge_range_ends_with_the_video(tmp_path):
    ub, name = toy_ub(tmp_path), "abnormal_scene_3_scenario_1"
    put(tmp_path/"Scene3"/f"{name}_annotations"/f"{name}_tracks.txt", "3,2,999999999")
    truth, said = reported(ub, name)
    assert truth.n_frames == 12
    assert truth.mask.sum() == 10
    assert "annotated up to frame 999999999" in said
    assert "12 frames" in said
    assert any("annotated up to" in p for p in findings(ub))


def test_ucf_and_xd_ranges_end_with_the_video(tmp_path):
    ucf = toy_ucf(tmp_path/"ucf")
    path = tmp_path/"ucf"/"Temporal_Anomaly_Annotation.txt"
    put(path, path.read_text().replace("11  30", "11  9999").replace("Fighting  1", "Arson  1"))
    found = findings(ucf_crime(tmp_path/"ucf"))
    assert len(found) == 2
    assert "annotated up to frame 9998" in found[0]
    assert re.search("class 'Fighting' in Anomaly_Test.txt, but 'Arson'", found[1])
    toy_xd(tmp_path/"xd")
    path = tmp_path/"xd"/"annotations.txt"
    put(path, path.read_text().replace("20 30", "40 50"))
    found = findings(xd_violence(tmp_path/"xd"))
    assert len(found) == 1
    assert "annotated up to frame 49" in found[0]
    assert reported(ucf, "Abuse/Abuse028_x264")[0].n_frames == 36


def test_ped2_masks_are_checked(tmp_path):
    for part, number in (("Train", 2), ("Test", 4)):                               # the official folders
        for k in range(1, number + 1): film(tmp_path/part/f"{part}{k:03d}", 6, k)
    put(tmp_path/"Test"/"UCSDped2.m", "".join("T{end+1}.gt_frame = [3:6];\n" for _ in range(4)))
    for k in range(1, 5):
        for f in range(1, 7):
            put(tmp_path/"Test"/f"Test{k:03d}_gt"/f"{f:03d}.bmp",
                cv2.imencode(".bmp", np.eye(48, 64, dtype=np.uint8) * 255 * (f > 2))[1].tobytes())
    b = ucsd_ped2(tmp_path)
    assert findings(b) == []
    assert [i.id for i in b.test] == [i.id for i in ucsd_ped2(tmp_path).test]
    assert len(b.test) == 2
    one, two = (i.id for i in b.test)
    (tmp_path/"Test"/f"Test{int(one[-2:]):03d}_gt"/"006.bmp").unlink()
    put(tmp_path/"Test"/f"Test{int(two[-2:]):03d}_gt"/"004.bmp",
        cv2.imencode(".bmp", np.ones((9, 9), np.uint8))[1].tobytes())
    found = findings(ucsd_ped2(tmp_path))
    assert len(found) == 2 and "has 5 masks" in found[0] and "004.bmp: this mask is 9 x 9 pixels" in found[1]
    put(tmp_path/"Test"/"UCSDped2.m", "T{end+1}.gt_frame = [3:6];\n")
    with pytest.raises(DatasetError, match="UCSDped2.m: has 1 test videos, but .*Test002"):
        ucsd_ped2(tmp_path)


def test_boxes_out_of_the_picture_are_reported(tmp_path):
    film(tmp_path/"a.mp4", 4, 0)
    with pytest.warns(VideoWarning, match="boxes of 2 frames, frame 1 first, reach out of the 64 x 48"):
        truth = fitted_truth(tmp_path/"a.mp4", [(0, 4)],
                             {1: [[0, 0, 90, 9]], 2: [[70, 0, 90, 9]], 3: [[0, 0, 64, 48]]}, "a")
    assert sorted(truth.boxes) == [1, 3]


# ---- lists --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("toy, file, line", [("ucf_crime", "Anomaly_Train.txt", "Abuse/Abuse001_x264.mp4"),
                                             ("ucf_crime", "Anomaly_Train.txt", "Abuse/Abuse028_x264.mp4"),
                                             ("ucf_crime", "Anomaly_Test.txt", "Abuse/Abuse028_x264"),
                                             ("shanghaitech", "SH_Train.txt", "01_0014"),
                                             ("shanghaitech", "SH_Test.txt", "01_0014"),
                                             ("ubnormal", "abnormal_test_video_names.txt",
                                              "abnormal_scene_1_scenario_0"),
                                             ("ubnormal", "normal_training_video_names.txt",
                                              "normal_scene_1_scenario_0"),
                                             ("xd_violence", "annotations.txt",
                                              "v=S-7__#1_label_B4-0-0.mp4 1 2")], indirect=["toy"])
def test_twice_in_a_list_or_in_two(tmp_path, toy, file, line):
    path = tmp_path/toy.name/file
    n = len(path.read_text().splitlines()) + 1
    put(path, path.read_text() + f"\n{line}\n")
    with pytest.raises(DatasetError, match=f"line {n}: .* is listed twice, first in .*line"):
        TOYS[toy.name][1](tmp_path/toy.name)


@pytest.mark.parametrize("toy, file, line, why", [
    ("ucf_crime", "Anomaly_Test.txt", "Abuses/x.mp4", "'Abuses' is no class"),
    ("ucf_crime", "Anomaly_Train.txt", "x.mp4", "expected 'Class/Name.mp4'"),
    ("ucf_crime", "Anomaly_Train.txt", "Abuse/a.mp4 Abuse", "expected 'Class"),
    ("shanghaitech", "SH_Test.txt", "01_15", "expected a name such as"),
    ("shanghaitech", "SH_Test.txt", "09_0001", "has no class for"),
    ("shanghaitech", "video_classes_test.txt", "09_0001 cars", "'cars' is no class"),
    ("ubnormal", "abnormal_test_video_names.txt", "normal_scene_1_scenario_7", "expected 'abnormal_scene_N"),
    ("ubnormal", "normal_test_video_names.txt", "normal_scene_x_scenario_7", "expected 'normal_scene_N")],
    indirect=["toy"])
def test_bad_lines_of_lists(tmp_path, toy, file, line, why):
    path = tmp_path/toy.name/file
    n = len(path.read_text().splitlines()) + 1
    put(path, path.read_text() + f"\n{line}")
    with pytest.raises(DatasetError, match=f"{file}, line {n}: .*{why}|{file}, line {n}: {why}"):
        TOYS[toy.name][1](tmp_path/toy.name)


def test_shanghaitech_training_videos_are_normal(tmp_path):
    toy_sh(tmp_path)
    put(tmp_path/"video_classes_train.txt",
        (tmp_path/"video_classes_train.txt").read_text().replace("01_002 normal", "01_002 car"))
    with pytest.raises(DatasetError,
                       match="SH_Train.txt, line 5: '01_002' is an original training video .*'car'"):
        shanghaitech(tmp_path)


# ---- layouts ------------------------------------------------------------------------------------------
def test_ucf_videos_are_found_in_one_walk(tmp_path, monkeypatch):
    b, walks, walk = toy_ucf(tmp_path), [], __import__("os").walk
    assert all(i.source.exists() for i in b.items())
    loose = b.item("Training_Normal_Videos_Anomaly/Normal_Videos001_x264")
    assert loose.source.parent.name == "Training-Normal-Videos-Part-1"
    monkeypatch.setattr("os.walk", lambda *a, **k: walks.append(a) or walk(*a, **k))
    monkeypatch.setattr(Path, "glob", lambda *a: 1/0)
    assert ucf_crime(tmp_path).sha256 == b.sha256 and len(walks) == 1


def test_xd_layouts_are_one_benchmark(tmp_path):
    official, sorted_ = toy_xd(tmp_path/"a"), toy_xd(tmp_path/"b", train=("train/x", "train/y"), test="test")
    assert [i.id for i in official.items()] == [i.id for i in sorted_.items()]
    assert official.sha256 == sorted_.sha256
    assert (len(official.train) + len(official.validation), len(official.test)) == (6, 3)
    assert official.item("train/v=a2__#1_label_B2-G-0").labels == ("Shooting", "Explosion")
    mask = official.ground_truth("test/v=S-7__#1_label_B4-0-0").mask
    assert np.flatnonzero(mask).tolist() == [*range(3, 10), *range(20, 30)]


def test_xd_videos_that_are_not_there_or_twice(tmp_path):
    toy_xd(tmp_path)
    video = tmp_path/"videos"/"v=S-7__#1_label_B4-0-0.mp4"
    data = video.read_bytes()
    video.unlink()
    missing = [line for line in findings(xd_violence(tmp_path)) if line.startswith("missing")]
    assert missing == [f"missing: {video} (video 'test/{video.stem}')"]
    # annotated, so for testing wherever it lies
    put(tmp_path/"1005-2004"/"more"/video.name, data)
    assert findings(xd_violence(tmp_path)) == []
    assert xd_violence(tmp_path).test[-2].source == tmp_path/"1005-2004"/"more"/video.name
    (tmp_path/"1005-2004"/"more"/video.name).unlink()
    put(video, data)
    put(tmp_path/"1-1004"/video.name, data)
    with pytest.raises(DatasetError, match="is there twice"): xd_violence(tmp_path)
    (tmp_path/"1-1004"/video.name).unlink()
    put(tmp_path/"videos"/"holiday.mp4", data)
    with pytest.raises(DatasetError,
                       match="holiday.mp4: video 'holiday': expected a name ending in _label_"):
        xd_violence(tmp_path)
    (tmp_path/"videos"/"holiday.mp4").unlink()
    put(tmp_path/"videos"/"new_label_B5-0-0.mp4", data)
    with pytest.raises(DatasetError, match="annotations.txt: has no line for the abnormal test "
                       "video 'test/new_label_B5-0-0'"):
        xd_violence(tmp_path)


def test_check_says_where_to_get_it(tmp_path, capsys):
    b = toy_ucf(tmp_path)
    b.test[0].source.unlink()
    (tmp_path/"Test_annotation.pkl").unlink()
    put(tmp_path/"Temporal_Anomaly_Annotation.txt",
        (tmp_path/"Temporal_Anomaly_Annotation.txt").read_text() + "Nobody_x264.mp4 Abuse 1 5\n")
    b = replace(ucf_crime(tmp_path), classes={**b.classes, "Arson": " "}, sha256="")
    found, said = check(b, most=1), capsys.readouterr().out
    b = ucf_crime(tmp_path)
    assert sum("'Nobody_x264' is in no list of videos" in p for p in check(b)) == 1
    assert "the official release has 1610 to learn from and 290 to test on" in said
    assert "class 'Arson': has no text; CLIP needs words for it" in found
    assert any("has no boxes; it cannot count for TIoU" in p for p in found)
    assert f"get it at: {PAGES['ucf_crime']}" in said
    assert "more in the returned list" in said
    assert "1 videos missing" in said
    assert set(BOXED) < set(PAGES)


# ---- from the official files to the table -------------------------------------------------------------
BOX_METRICS = {"tiou", "tiou_oracle", "mean_iou", "patch_auc", "patch_ap"}


@pytest.mark.parametrize("name", TOYS)
def test_through_the_stages(made, tmp_path, monkeypatch, name):
    "Encoded, fitted, scored, reported: all metrics where there are boxes; XD-Violence says why fewer."
    from stprompt.experiments import TrainJob, evaluate, fit, locate, prepare, score
    from stprompt.sweeps import localizer_table
    monkeypatch.setenv("STPROMPT_CACHE", str(tmp_path/"cache"))
    job = TrainJob(dataset=name, root=str(made(name)), epochs=1, out=str(tmp_path/"out"), device="cpu",
                   backbone="mini", mode="token")
    data = prepare(job)
    assert data.summary.failed == []
    scored = score(fit(job, data), data)
    found = evaluate(scored, locate(job, data), data)
    assert {"frame_auc", "ano_auc", "frame_ap"} <= set(found.metrics)
    assert all(0 <= m["mean"] <= 100 for m in found.metrics.values())
    if name == "xd_violence":
        assert not BOX_METRICS & set(found.metrics)
        assert found.skipped["mean_iou"] == found.skipped["patch_auc"] == "the ground truth has no boxes"
        assert localizer_table(job, data, scored).empty
    else: assert BOX_METRICS <= set(found.metrics) and not {"mean_iou", "patch_auc"} & set(found.skipped)
    if name == "ubnormal": assert len(localizer_table(job, data, scored)) == 4
