"""The official annotation files give the official counts; anything else is a sentence with file and line."""
import pickle
from pathlib import Path

import numpy as np, pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from stprompt.benchmarks import (check, parse_boxes, parse_classes, parse_ped2, parse_temporal, parse_tracks, parse_xd, plain_pickle, shanghaitech, ubnormal,
                                 ucf_crime, ucsd_ped2, xd_labels)
from stprompt.datasets import NORMAL, DatasetError

SHARED = Path(__file__).resolve().parents[2]/"shared"
NOTES, DATA = SHARED/"annotations", SHARED/"data"
official = pytest.mark.skipif(not NOTES.is_dir(), reason="the official annotation files are not here (../shared/annotations)")
any_file = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


# ---- the official files ----------------------------------------------------------------------------------------
@official
def test_ucf_counts(tmp_path):
    b = ucf_crime(tmp_path, NOTES/"ucf_crime")
    assert (len(b.train) + len(b.validation), len(b.test)) == (1610, 290) and len(b.classes) == 14
    assert (sum(i.is_abnormal for i in b.test), sum(i.is_abnormal for i in b.train + b.validation)) == (140, 810)
    assert {l for i in b.validation for l in i.labels} == set(b.classes)
    temporal = parse_temporal(NOTES/"ucf_crime"/"Temporal_Anomaly_Annotation.txt")
    assert len(temporal) == 290 and temporal["Abuse028_x264"] == ("Abuse", [(164, 240)])
    assert all(("Normal" in name) == (not ranges) for name, (_, ranges) in temporal.items())

@official
@pytest.mark.parametrize("file, videos, boxes", [("Test_annotation.pkl", 140, 3102), ("Train_annotation.pkl", 810, 25483)])
def test_ucf_boxes(file, videos, boxes):
    found = parse_boxes(NOTES/"ucf_crime"/file)
    assert (len(found), sum(len(b) for frames in found.values() for b in frames.values())) == (videos, boxes)

@official
def test_every_ucf_test_box_is_judged():
    "All 3102, although few lie on a multiple of the stride; dense boxes are still judged one of `stride`."
    from types import SimpleNamespace
    from stprompt.jobs import judged_frames
    truths = {v: SimpleNamespace(boxes=frames) for v, frames in parse_boxes(NOTES/"ucf_crime"/"Test_annotation.pkl").items()}
    assert sum(map(len, judged_frames(truths, 16).values())) == 3102
    assert judged_frames({"dense": SimpleNamespace(boxes={f: [[0, 0, 1, 1]] for f in range(9)})}, 4)["dense"].tolist() == [0, 4, 8]

@official
@pytest.mark.parametrize("inclusive, whole, centred", [(False, 23.07, 35.31), (True, 23.40, 35.52)])
def test_ucf_trivial_floors(inclusive, whole, centred):
    "The whole frame and a centred box of 0.6 of each side on the test boxes: corners as they stand, as others count, and 1-based inclusive, as we do."
    boxes = np.concatenate([b for frames in parse_boxes(NOTES/"ucf_crime"/"Test_annotation.pkl", inclusive).values() for b in frames.values()])
    def floor(share):
        x1, y1, x2, y2 = 160 - 160*share, 120 - 120*share, 160 + 160*share, 120 + 120*share
        inter = (np.minimum(boxes[:, 2], x2) - np.maximum(boxes[:, 0], x1)).clip(0) * (np.minimum(boxes[:, 3], y2) - np.maximum(boxes[:, 1], y1)).clip(0)
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        return 100 * (inter / (area + (x2 - x1) * (y2 - y1) - inter)).mean()
    assert (floor(1), floor(.6)) == pytest.approx((whole, centred), abs=.005)

@official
def test_shanghaitech_counts(tmp_path):
    b = shanghaitech(tmp_path, NOTES/"shanghaitech")
    learn = b.train + b.validation
    assert (len(learn), len(b.test)) == (238, 199) and (sum(i.is_abnormal for i in learn), sum(i.is_abnormal for i in b.test)) == (63, 44)
    assert len(b.classes) == 18 and any(len(i.labels) == 4 for i in b.items())
    assert all((i.source.suffix == ".avi") == (len(i.id.split("_")[1]) == 3) for i in b.items())

@official
def test_ubnormal_counts(tmp_path):
    b = ubnormal(tmp_path, NOTES/"ubnormal")
    assert [(sum(i.is_abnormal for i in s), sum(not i.is_abnormal for i in s)) for s in (b.train, b.validation, b.test)] == [(82, 186), (38, 26), (158, 53)]
    assert b.item("abnormal_scene_27_scenario_8").source == tmp_path/"Scene27"/"abnormal_scene_27_scenario_8.mp4"

@official
def test_check_reports_what_is_missing(tmp_path, capsys):
    problems = check(ucf_crime(tmp_path, NOTES/"ucf_crime"))
    assert sum(p.startswith("missing") for p in problems) == 1900 and "1900 videos missing" in capsys.readouterr().out

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
        assert (with_boxes == truth.mask).mean() > .95                              # masks and ranges are separate annotations


# ---- text files of any content ----------------------------------------------------------------------------------
PARSERS = [parse_temporal, parse_classes, parse_tracks, parse_xd, parse_boxes]

@pytest.mark.parametrize("parser", PARSERS)
@any_file
@given(data=st.binary(max_size=80))
def test_arbitrary_bytes(tmp_path, parser, data):
    path = tmp_path/"file.txt"; path.write_bytes(data)
    try: parser(path)
    except DatasetError as error: assert "file.txt" in str(error)

word = st.sampled_from(["Abuse001_x264.mp4", "Abuse", "Normal", "-1", "1", "5", "9", "-3", "9999999", "2.0", "x", "", "\t"])

@pytest.mark.parametrize("parser", [parse_temporal, parse_tracks, parse_xd])
@any_file
@given(lines=st.lists(st.lists(word, max_size=7).map(" ".join), max_size=4), end=st.sampled_from(["\n", "\r\n"]))
def test_arbitrary_lines(tmp_path, parser, lines, end):
    "Whatever is accepted has ranges that lie the right way round and begin at zero or later."
    path = tmp_path/"file.txt"; path.write_bytes(end.join(lines).encode())
    try: found = parser(path)
    except DatasetError as error: assert "file.txt, line" in str(error); return
    ranges = [r[1:] for r in found] if parser is parse_tracks else [r for v in found.values() for r in (v[1] if parser is parse_temporal else v)]
    assert all(0 <= s < e for s, e in ranges)

@pytest.mark.parametrize("text", ["a Abuse 1 5\r\n\r\nb Abuse 2 6", "\ufeffa Abuse 1 5\nb Abuse 2 6\n\n", "a.mp4  Abuse  1  5  -1  -1  \nx/b.mp4 900 Abuse 2 6 -1 -1"])
def test_harmless_forms(tmp_path, text):
    path = tmp_path/"file.txt"; path.write_bytes(text.encode())
    assert parse_temporal(path) == {"a": ("Abuse", [(0, 5)]), "b": ("Abuse", [(1, 6)])}

def test_missing_and_incomplete_files(tmp_path):
    with pytest.raises(DatasetError, match="Temporal_Anomaly_Annotation.txt: this official file is missing"): ucf_crime(tmp_path)
    (tmp_path/"Temporal_Anomaly_Annotation.txt").write_text(""); (tmp_path/"Anomaly_Test.txt").write_text("Abuse/a.mp4")
    with pytest.raises(DatasetError, match="no line for the test video 'Abuse/a'"): ucf_crime(tmp_path)

@pytest.mark.parametrize("name", ["../../etc/passwd", "a.mp4", "..\\x/y.mp4", "a/b/c.mp4"])
def test_lists_cannot_leave_the_root(tmp_path, name):
    (tmp_path/"Temporal_Anomaly_Annotation.txt").write_text(""); (tmp_path/"Anomaly_Test.txt").write_text(name)
    with pytest.raises(DatasetError, match="Class/Name.mp4|cannot leave|no line"): ucf_crime(tmp_path)
    (tmp_path/"Anomaly_Test.txt").write_text("../x.mp4")
    with pytest.raises(DatasetError, match="cannot leave"): ucf_crime(tmp_path)

def test_malicious_pickle(tmp_path):
    class Evil:
        def __reduce__(self): return (Path.touch, (tmp_path/"owned",))
    (tmp_path/"evil.pkl").write_bytes(pickle.dumps({"a": Evil()}))
    with pytest.raises(DatasetError, match="evil.pkl: not a plain pickle"): plain_pickle(tmp_path/"evil.pkl")
    assert not (tmp_path/"owned").exists()

@pytest.mark.parametrize("name, labels", [("v=S-7__#1_label_B4-0-0", ("Riot",)), ("x_label_B2-G-0.mp4", ("Shooting", "Explosion")), ("x_label_A.mp4", (NORMAL,))])
def test_xd_codes(name, labels): assert xd_labels(name) == labels

@pytest.mark.parametrize("name", ["x.mp4", "x_label_", "x_label_0-0-0", "x_label_B3-0-0", "x_label_b1"])
def test_xd_unknown_codes(name):
    with pytest.raises(DatasetError, match="codes of"): xd_labels(name)
