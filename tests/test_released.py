"VadCLIP's released features: damaged files, pickles, lists of any content, paths that lead out."
import io
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as options
from hypothesis import strategies as st

from stprompt.benchmarks import ucf_crime
from stprompt.datasets import VideoItem
from stprompt.features import FeatureError, load_all
from stprompt.released import (
    ReleasedFeatures,
    VadCLIPStore,
    check_released,
    frame_counts,
    released_benchmark,
    released_rows,
    released_samples,
    vadclip_features,
)


def test_released_features(tmp_path):
    path = tmp_path / "Abuse001_x264__0.npy"
    np.save(path, np.random.default_rng(0).random((7, 512)).astype(np.float16))
    f = vadclip_features(path)
    assert f.frame.shape == (7, 512) and f.frame.dtype == torch.float32 and f.n_frames == 112
    assert f.to_frames(np.arange(7)).tolist() == [i // 16 for i in range(112)]
    with pytest.raises(FeatureError, match="no window aggregates"): f.spatial("sa2")
    data = path.read_bytes()
    for wrong in (data[:200], b"", b"text"):
        path.write_bytes(wrong)
        with pytest.raises(FeatureError, match="Abuse001"): vadclip_features(path)
    for wrong in (np.zeros(7), np.zeros((2, 3, 4)), np.array([["a", "b"]]), np.full((2, 4), np.nan),
                  np.array([[1, 2]])):
        np.save(path, wrong)
        with pytest.raises(FeatureError, match=r"expected finite features \[T, D\]"): vadclip_features(path)
    np.save(path, np.array([{"a": print}], object), allow_pickle=True)
    with pytest.raises(FeatureError, match="plain numbers"): vadclip_features(path)


def released(
    folder,
    names=("Abuse/Abuse001_x264", "Testing_Normal_Videos_Anomaly/Normal_Videos_003_x264"),
    labels=("Abuse", "Normal"),
    crops=10,
):
    "A download in the authors' layout with their list."
    lines = ["path,label"]
    for v, (name, label) in enumerate(zip(names, labels)):
        for c in range(crops):
            path = folder / "UCFClipFeatures" / f"{name}__{c}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, np.full((4 + v, 8), 10 * v + c, np.float16))
            lines.append(f"/home/somebody/Desktop/UCFClipFeatures/{name}__{c}.npy,{label}")
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
    return folder / "UCFClipFeatures", folder / "list.csv"

def test_a_released_download_is_a_store(tmp_path):
    root, listing = released(tmp_path)
    store = VadCLIPStore(root, listing)
    assert [(i.id, i.labels, i.is_abnormal) for i in store.items] == [
        ("Abuse001_x264", ("Abuse",), True),
        ("Normal_Videos_003_x264", ("Normal",), False),
    ]
    loaded = load_all(store.items, store, crop=7)
    abuse, normal = loaded["Abuse001_x264"], loaded["Normal_Videos_003_x264"]
    assert abuse.frame.unique().tolist() == [7] and normal.frame.unique().tolist() == [17]
    assert normal.n_frames == 80 and abuse.spatial("none") is None
    assert abuse.frame_index.tolist() == [0, 16, 32, 48] and abuse.time[2] == pytest.approx(32 / 30)
    ucf = [VideoItem("Abuse/Abuse001_x264", "anywhere.mp4", "Abuse")]  # a benchmark's own items
    assert load_all(ucf, store)["Abuse/Abuse001_x264"].frame.unique().tolist() == [0]
    assert store.has("Abuse/Abuse001_x264.mp4") and not store.has("Abuse002")
    known = VadCLIPStore(root, listing, n_frames={"Abuse/Abuse001_x264": 75})
    assert len(known.load("Abuse/Abuse001_x264").to_frames([1, 2, 3, 4])) == 75
    with pytest.raises(FeatureError, match="4 vectors.*has 500 frames"):
        VadCLIPStore(root, listing, n_frames={"Abuse001_x264": 500}).load("Abuse001_x264")
    store.path("Abuse001_x264").unlink()
    with pytest.raises(FeatureError, match="no features of 1 of 2 videos .first 'Abuse001_x264'"):
        load_all(store.items, store)


def test_xd_labels_of_a_released_list(tmp_path):
    names = "Bad.Boys__#00-26_label_B2-G-0", "v=x__#1_label_A"
    root, listing = released(tmp_path, names, ("B2-G-0", "A"), crops=1)
    items = VadCLIPStore(root, listing).items
    assert [(i.id, i.labels) for i in items] == [
        ("Bad.Boys__#00-26_label_B2-G-0", ("Shooting", "Explosion")),
        ("v=x__#1_label_A", ("Normal",)),
    ]


@pytest.mark.parametrize(
    "line, said",
    [
        ("../../etc/x__0.npy,Abuse", "use the released list"),
        ("a.npy,Abuse", "crop 0 to 9"),
        ("a__0.npz,Abuse", "crop 0 to 9"),
        ("a__12.npy,Abuse", "crop 0 to 9"),
        ("a__0.npy", "expected path,label"),
        ("a__0.npy,", "expected path,label"),
        ("a__0.npy,Abuse,1", "expected path,label"),
        ("UCFClipFeatures/Abuse/Abuse001_x264__3.npy,Arson", "is 'Arson' here and Abuse above"),
        ("__0.npy,Abuse", "crop 0 to 9"),
    ],
)
def test_a_wrong_line_of_a_released_list(tmp_path, line, said):
    root, listing = released(tmp_path, crops=2)
    n = len(listing.read_text().splitlines()) + 1
    crlf = listing.read_bytes().replace(b"\n", b"\r\n")
    listing.write_bytes(crlf + b"\r\n" + line.encode())              # a blank line, no final newline
    with pytest.raises(FeatureError, match=f"list.csv, line {n + 1}: .*{said}"): VadCLIPStore(root, listing)

@pytest.mark.parametrize("data", [b"", b"\xff\xfe\0", b"video,label\nx__0.npy,a\n", None])
def test_no_released_list(tmp_path, data):
    root, listing = released(tmp_path, crops=1)
    listing.unlink() if data is None else listing.write_bytes(data)
    with pytest.raises(FeatureError, match="list.csv.*VadCLIP's repository"): VadCLIPStore(root, listing)

@options(max_examples=60, deadline=None)
@given(st.binary(max_size=200))
def test_any_list_is_a_sentence_or_a_store(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("any")
    (folder / "list.csv").write_bytes(b"path,label\n" + data)
    try: store = VadCLIPStore(folder, folder / "list.csv")
    except FeatureError as error: assert "list.csv" in str(error)
    else: assert all(folder in store.path(i.id).parents and not store.has(i.id) for i in store.items)

def test_released_pickles_are_refused(tmp_path):
    root, listing = released(tmp_path, crops=1)
    store = VadCLIPStore(root, listing)
    ran = tmp_path / "ran"

    class Bomb:
        def __reduce__(self): return (Path.touch, (ran,))
    np.save(store.path("Abuse001_x264"), np.array([Bomb()], object), allow_pickle=True)
    with pytest.raises(FeatureError, match="plain numbers"): store.load("Abuse001_x264")
    assert not ran.exists()


# ---- a benchmark of released features -----------------------------------------------------------------
TRAIN = ("Abuse/Abuse001_x264", "Abuse/Abuse002_x264",
         "Training_Normal_Videos_Anomaly/Normal_Videos001_x264",
         "Training_Normal_Videos_Anomaly/Normal_Videos002_x264")
TEST = "Abuse/Abuse028_x264", "Testing_Normal_Videos_Anomaly/Normal_Videos_003_x264"
TIMES = "Abuse028_x264.mp4  Abuse  165  240  -1  -1\nNormal_Videos_003_x264.mp4  Normal  -1  -1  -1  -1\n"
LISTS = Path(__file__).resolve().parents[1].parent / "shared" / "annotations"
REFERENCE = LISTS.with_name("data") / "clip_reference"


def download(folder, dim=8, T=16):
    "Four training videos of ten crops, two test videos of crop 5, their lists, and the frame labels."
    root, lists = folder / "UCFClipFeatures", folder / "lists"
    lists.mkdir()
    for videos, crops, part in ((TRAIN, range(10), ""), (TEST, [5], "test")):
        names = [f"{video}__{crop}.npy" for video in videos for crop in crops]
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            np.save(root / name, np.random.default_rng(len(name)).random((T, dim)).astype(np.float16))
        lines = [f"/desk/Features/{name},{'Normal' if 'Normal' in name else 'Abuse'}" for name in names]
        (lists / f"ucf_CLIP_rgb{part}.csv").write_text("\n".join(["path,label", *lines]))
    (lists / "Temporal_Anomaly_Annotation.txt").write_text(TIMES)
    return root, lists


def test_a_benchmark_without_videos(tmp_path):
    root, lists = download(tmp_path)
    benchmark, features = released_benchmark(root, lists, dim=8, validation=.5, n_frames="")
    assert [len(getattr(benchmark, split)) for split in ("train", "validation", "test")] == [20, 2, 2]
    videos = {split: {features.samples[item.id].video for item in getattr(benchmark, split)}
              for split in ("train", "validation")}
    assert not videos["train"] & videos["validation"] and len(videos["train"]) == 2
    assert all(features.samples[item.id].crop == 0 for item in benchmark.validation)
    one, truth = features["Abuse/Abuse028_x264__5"], benchmark.ground_truth("Abuse/Abuse028_x264__5")
    assert one.n_frames == truth.n_frames == 256
    assert np.flatnonzero(truth.mask).tolist() == [*range(164, 240)]
    assert one.frame.dtype == torch.float16 and not benchmark.notes and benchmark.stride == 16
    benchmark, features = released_benchmark(root, lists, dim=8, validation=0, crops=1)
    assert [item.id for item in benchmark.train] == [f"{video}__0" for video in TRAIN]
    assert not benchmark.validation and set(features) == {item.id for item in benchmark.items()}


def test_lengths_of_a_list(tmp_path):
    root, lists = download(tmp_path)
    counts = tmp_path / "counts.csv"
    counts.write_text("video,n_frames\nAbuse028_x264.mp4,200\n")
    with pytest.raises(FeatureError, match="holds 16 vectors.*has 200 frames"):
        released_benchmark(root, lists, dim=8, n_frames=counts)
    counts.write_text("Abuse/Abuse028_x264 245\n")
    benchmark, features = released_benchmark(root, lists, dim=8, n_frames=counts)
    assert features["Abuse/Abuse028_x264__5"].n_frames == 245
    assert "lacks 1 videos, Normal_Videos_003_x264" in benchmark.notes[0]
    (lists / "Temporal_Anomaly_Annotation.txt").write_text(TIMES.replace("240", "900"))
    benchmark, _ = released_benchmark(root, lists, dim=8)
    assert "Abuse028_x264 (to 900, has 256)" in benchmark.notes[0]
    assert benchmark.ground_truth("Abuse/Abuse028_x264__5").mask.sum() == 256 - 164
    for wrong, said in (("a b c", "expected a video and its"), ("a 5\na 6", "has 6 frames here and 5")):
        counts.write_text("head line\n" + wrong)
        with pytest.raises(FeatureError, match=f"counts.csv, line .*{said}"): frame_counts(counts)
    with pytest.raises(FeatureError, match="there is no such list"): frame_counts(tmp_path / "none.csv")


def spoiled(kind):
    "A way to spoil a download, given its root and its lists."
    crop = lambda root: root / "Abuse" / "Abuse002_x264__7.npy"
    listing = lambda lists: lists / "ucf_CLIP_rgb.csv"
    add = lambda lists, line: listing(lists).write_text(f"{listing(lists).read_text()}\n{line}")
    return {
        "missing": lambda root, lists: crop(root).unlink(),
        "cut": lambda root, lists: crop(root).write_bytes(crop(root).read_bytes()[:-9]),
        "empty": lambda root, lists: crop(root).write_bytes(b""),
        "text": lambda root, lists: crop(root).write_text("<html>not found</html>"),
        "pickle": lambda root, lists: np.save(crop(root), np.array([{}]), allow_pickle=True),
        "width": lambda root, lists: np.save(crop(root), np.ones((16, 9), np.float16)),
        "flat": lambda root, lists: np.save(crop(root), np.ones(16)),
        "none": lambda root, lists: np.save(crop(root), np.ones((0, 8))),
        "lengths": lambda root, lists: np.save(crop(root), np.ones((17, 8), np.float16)),
        "strange": lambda root, lists: add(lists, "/x/Abuse/Abuse999_x264__0.npy,Abuse"),
        "twice": lambda root, lists: add(lists, "/y/Abuse/Abuse001_x264__0.npy,Abuse"),
        "leak": lambda root, lists: add(lists, "/x/Abuse/Abuse028_x264__5.npy,Abuse"),
        "rows": lambda root, lists: listing(lists).write_text("path,label\n"),
        "list": lambda root, lists: listing(lists).unlink(),
        "labels": lambda root, lists: (lists / "Temporal_Anomaly_Annotation.txt").write_text("x Abuse 1 2"),
    }[kind]


@pytest.mark.parametrize("kind, said", [
    ("missing", r"1 of 42 listed files are not there, the first one .*Abuse002_x264__7.npy; name the"),
    ("cut", r"__7.npy: is cut short, 247 of 256 bytes"), ("empty", "__7.npy: not a readable .npy"),
    ("text", "__7.npy: not a readable .npy"), ("pickle", "__7.npy: holds pickled objects"),
    ("width", "__7.npy: holds vectors of 9 numbers, the backbone's have 8"),
    ("flat", r"__7.npy: expected features \[T, D\], found float64 \[16\]"),
    ("none", r"__7.npy: expected features \[T, D\], found float64 \[0, 8\]"),
    ("lengths", "__7.npy: holds 17 vectors, Abuse002_x264__0.npy of the same video 16"),
    ("strange", "1 of 43 listed files are not there, the first one .*Abuse999"),
    ("twice", "line 42: crop 0 of Abuse001_x264 is in line 2, too"),
    ("leak", "1 of its videos, Abuse/Abuse028_x264 first, are in the training list, too"),
    ("rows", "ucf_CLIP_rgb.csv: lists no features"), ("list", "ucf_CLIP_rgb.csv: is not in .*VadCLIP's"),
    ("labels", "has no line for the test video 'Abuse/Abuse028_x264'")])
def test_a_spoiled_download_is_a_sentence(tmp_path, kind, said):
    root, lists = download(tmp_path)
    spoiled(kind)(root, lists)
    with pytest.raises(FeatureError, match=said) as error: released_benchmark(root, lists, dim=8)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("changes, said", [
    ({"crops": 5}, "crops=5: choose 10"), ({"validation": 1}, "validation=1: expected a share"),
    ({"name": "ubnormal"}, "dataset='ubnormal'"), ({"name": "xd_violence"}, "annotations.txt"),
    ({"dim": 512}, "the backbone's have 512")])
def test_impossible_parameters_of_a_release(tmp_path, changes, said):
    root, lists = download(tmp_path)
    with pytest.raises(ValueError, match=said): released_benchmark(root, lists, **{"dim": 8} | changes)


def test_a_file_that_changes_while_it_is_read(tmp_path):
    root, lists = download(tmp_path)
    _, features = released_benchmark(root, lists, dim=8)
    np.save(root / "Abuse" / "Abuse001_x264__3.npy", np.ones((4, 8)))
    with pytest.raises(FeatureError, match="held 16 vectors before and 4 now"):
        features["Abuse/Abuse001_x264__3"]


needs_lists = pytest.mark.skipif(not LISTS.is_dir(), reason="../shared")


@needs_lists
def test_the_whole_list_in_seconds(tmp_path):
    "Files of the lists' shape, sparse, and the split that the video files have."
    header, places = io.BytesIO(), set()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f2", "fortran_order": False, "shape": (9, 512)})
    for part in ("", "test"):
        for _, text, _ in released_rows(LISTS / "vadclip" / f"ucf_CLIP_rgb{part}.csv"):
            path = tmp_path / "/".join(text.split("/")[-2:])
            if path.parent not in places: path.parent.mkdir()
            places.add(path.parent)
            with open(path, "wb") as file:
                file.write(header.getvalue())
                file.truncate(len(header.getvalue()) + 9 * 1024)
    start = time.perf_counter()
    benchmark, features = released_benchmark(tmp_path, LISTS)
    assert time.perf_counter() - start < 60                        # 5 s on a free core
    assert len(features) == len(benchmark.items()) and len(benchmark.test) == 290
    assert len(benchmark.train) % 10 == 0 and {features.vectors[id] for id in features} == {9}
    assert len(benchmark.train) // 10 + len(benchmark.validation) == 1_610
    official = ucf_crime(tmp_path, LISTS / "ucf_crime")
    names = lambda items: {features.samples[item.id].video for item in items}
    assert names(benchmark.train) == {item.id for item in official.train}
    assert names(benchmark.validation) == {item.id for item in official.validation}
    assert names(benchmark.test) == {item.id for item in official.test}


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="../shared")
def test_real_features_are_samples(tmp_path):
    rows = [f"/desk/UCFClipFeatures/{name[:-3]}/{name}_x264__0.npy,{name[:-3]}"
            for name in ("Abuse001", "Abuse023", "Arrest002", "Arson005", "Arson029")]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows]))
    samples = released_samples(tmp_path / "list.csv", REFERENCE, crops=1)
    features = ReleasedFeatures(samples, check_released(samples))
    assert [sample.video for sample in samples][:2] == ["Abuse/Abuse001_x264", "Abuse/Abuse023_x264"]
    one = features["Abuse/Abuse001_x264__0"]
    assert one.frame.dtype == torch.float32
    assert torch.allclose(one.frame.norm(dim=1), torch.ones(1), atol=1e-3)
    assert one.n_frames == 16 * features.vectors["Abuse/Abuse001_x264__0"] == 16 * len(one.frame)
