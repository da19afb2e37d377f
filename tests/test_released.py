"VadCLIP's released features: damaged files, pickles, lists of any content, paths that lead out."
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as options
from hypothesis import strategies as st

from stprompt.datasets import VideoItem
from stprompt.features import FeatureError, load_all
from stprompt.released import VadCLIPStore, vadclip_features


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
