"""Extraction and the feature store: chunks, kills, bad videos, damaged files, mixed settings, new rows,
names that leave the root, many processes."""

import dataclasses
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as options
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from stprompt import decoding, files
from stprompt import features as module
from stprompt.clip import FrozenCLIP, mini_config
from stprompt.datasets import Benchmark, DatasetError, VideoItem
from stprompt.decoding import ahead, decoded, prepared, ten_crops
from stprompt.features import (
    FeatureError,
    FeatureSettings,
    FeatureStore,
    Summary,
    VideoFeatures,
    extract,
    extract_video,
    failures,
    gather,
    load_all,
    pick_workers,
    shard,
    store_folder,
    together,
)
from stprompt.motion import AGGREGATES, aggregate, motion_prior
from stprompt.video import VideoError, VideoWarning, probe, read_all, write_video

torch.set_num_threads(1)
SHARED = Path(__file__).parents[2] / "shared" / "data"

def film(path, n=22, size=(64, 96), **more):
    noise = np.random.default_rng(n).integers(60, 110, (*size, 3), np.uint8)

    def paint(t):
        image = noise.copy()
        image[20:40, (3 * t) % 60 : (3 * t) % 60 + 20] = (230, 120, 40)
        return image

    return write_video(path, (paint(t) for t in range(n)), 25, **more)

@pytest.fixture(scope="module")
def clip(): return FrozenCLIP.from_config(mini_config())

@pytest.fixture(scope="module")
def settings(clip): return FeatureSettings(clip.identity, stride=4)

@pytest.fixture(scope="module")
def video(tmp_path_factory): return film(tmp_path_factory.mktemp("films") / "a.mp4", 42)

def some(T=3, D=4, seed=0, **more):
    "Features of a video that never was."
    r = lambda *shape: torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    parts = dict(frame=r(T, D), frame_index=np.arange(T) * 4, time=np.arange(T) * .16, n_frames=4 * T - 1,
                 fps=25., size=(48, 64), aggregates={row: r(T, D) for row in AGGREGATES},
                 motion=r(T, 2, 2).abs())
    return VideoFeatures(**{**parts, **more})


def same(a, b, atol=2e-3):
    "Two VideoFeatures hold the same."
    tensors = lambda f: {"frame": f.frame, "motion": f.motion, **f.aggregates}
    assert tensors(a).keys() == tensors(b).keys()
    assert (a.n_frames, a.fps, a.size) == (b.n_frames, b.fps, b.size)
    assert np.array_equal(a.frame_index, b.frame_index) and np.array_equal(a.time, b.time)
    for name, tensor in tensors(a).items(): assert torch.allclose(tensor, tensors(b)[name], atol=atol), name
    return True


# ---- extraction ----------------------------------------------------------------------------------
@pytest.mark.parametrize("mode, window, step", [("token", 32, 32), ("token", 80, 48), ("crop", 112, 112)])
def test_extraction_is_the_definition(clip, video, mode, window, step):
    "All frames at once through the rooms 03 and 04, against the chunked, threaded, streamed way."
    chosen = FeatureSettings(clip.identity, 5, window, step, mode, 4, keep_windows=True)
    all_at_once = read_all(video, stride=5)
    windows = clip.windows(all_at_once.images, window, step, mode)
    mo = motion_prior(windows)
    for chunk in (2, 64):
        f = extract_video(video, clip, chosen, chunk)
        assert torch.allclose(f.frame, clip.frames(all_at_once.images), atol=1e-4)
        assert torch.allclose(f.windows, windows, atol=1e-4) and torch.allclose(f.motion, mo, atol=1e-3)
        assert f.aggregates.keys() == {"average", "attention", "selection_average", "sa2", "sa2_motion"}
        for row, got in f.aggregates.items():
            assert torch.allclose(got, aggregate(windows, mo, 4, row), atol=1e-3, rtol=1e-3), row
        assert f.frame_index.tolist() == list(range(0, 42, 5))
        assert np.allclose(f.time, f.frame_index / 25, atol=1e-6)
        assert f.n_frames == 42 and f.size == (64, 96) and f.fps == pytest.approx(25)


def test_every_frame_gets_a_score(clip, tmp_path):
    for n in (1, 2, 4, 5, 9):
        f = extract_video(film(tmp_path / f"{n}.mp4", n), clip, FeatureSettings(clip.identity, stride=4))
        scores = f.to_frames(np.arange(len(f.frame)) * 1.)
        assert f.n_frames == n and scores.tolist() == [i // 4 for i in range(n)]

@options(max_examples=60, deadline=None)
@given(n=st.integers(1, 200), stride=st.integers(1, 20), classes=st.integers(0, 3))
def test_back_to_frames(n, stride, classes):
    index = np.arange(0, n, stride)
    T = len(index)
    f = VideoFeatures(torch.zeros(T, 2), index, index / 25, n, 25., (4, 4))
    scores = np.random.default_rng(n).random((T, classes) if classes else T)
    assert np.array_equal(f.to_frames(scores), scores[np.arange(n) // stride])
    with pytest.raises(FeatureError, match="score every feature once"): f.to_frames(scores[:-1])

def test_an_image_folder_and_odd_sizes(clip, settings, tmp_path):
    (tmp_path / "frames").mkdir()
    for n in range(6):
        cv2.imwrite(str(tmp_path / "frames" / f"{n:03d}.png"), np.full((31, 47, 3), 40 * n, np.uint8))
    f = extract_video(tmp_path / "frames", clip, settings)
    assert f.n_frames == 6 and f.size == (31, 47) and f.frame.shape == (2, 192)
    assert extract_video(film(tmp_path / "odd.mp4", 5, (33, 47)), clip, settings).n_frames == 5

def test_a_variable_frame_rate_keeps_its_times(clip, settings, tmp_path):
    times = np.cumsum([0, *([.04] * 7), *([.2] * 4)])
    f = extract_video(film(tmp_path / "v.mkv", 12, times=times), clip, settings)
    assert f.fps == pytest.approx(11 / times[-1], rel=1e-3) and np.allclose(f.time, times[::4], atol=2e-3)
    assert f.to_frames([1, 2, 3]).tolist() == [1] * 4 + [2] * 4 + [3] * 4


def test_the_backbone_may_fail_without_hanging(clip, settings, video, monkeypatch):
    "An error while encoding ends the decoding thread too."
    started = threading.active_count()
    for room in (decoding, module): monkeypatch.setattr(room, "overlapped", lambda parts, clip: ahead(parts))
    broken = lambda *a, **k: (_ for _ in ()).throw(RuntimeError("no memory"))
    monkeypatch.setattr(FrozenCLIP, "encode", broken)
    with pytest.raises(RuntimeError, match="no memory"): extract_video(video, clip, settings, chunk=1)
    assert threading.active_count() <= started

def test_threads_change_nothing(clip, settings, tmp_path, monkeypatch):
    "Decoding ahead over several videos, a bad one among them, or in turn: the same store, the same reasons."
    (tmp_path / "films").mkdir()
    items = [VideoItem(f"{n}", film(tmp_path / "films" / f"{n}.mp4", n)) for n in (3, 70, 9)]
    items.insert(1, VideoItem("bad", film(tmp_path / "films" / "bad.mp4", 70)))
    items[1].source.write_bytes(items[1].source.read_bytes()[:-2000])
    inline = extract(items, clip, FeatureStore(tmp_path / "inline", settings), progress=False)
    for room in (decoding, module): monkeypatch.setattr(room, "overlapped", lambda parts, clip: ahead(parts))
    started = threading.active_count()
    threads = extract(items, clip, FeatureStore(tmp_path / "threads", settings), progress=False)
    assert threading.active_count() <= started                      # nothing runs on
    assert inline.done == threads.done == ["3", "70", "9"] and inline.frames == threads.frames == 1 + 18 + 3
    assert inline.failed == threads.failed and inline.failed[0][0] == "bad"
    contents = lambda root: {p.name: p.read_bytes() for p in (tmp_path / root).iterdir()}
    assert contents("inline") == contents("threads") and len(contents("inline")) == 5

def test_one_thread_means_one(clip, monkeypatch):
    parts = iter([1])
    assert decoding.overlapped(parts, clip) is parts
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert decoding.overlapped(parts, clip) is not parts

@pytest.mark.parametrize("shape", [(64, 96), (96, 64), (300, 500)])
def test_ten_crops(clip, tmp_path, shape):
    "Each view against one cut by hand; the file of a crop holds the features of that view."
    s = FeatureSettings(clip.identity, stride=4, crops=10)
    path = film(tmp_path / "a.mp4", 6, shape)
    frames = read_all(path, stride=4).images
    crops = ten_crops(frames, 224)
    assert len(crops) == 10 and {c.shape for c in crops} == {(2, 224, 224, 3)}
    how = cv2.INTER_AREA if shape[0] * shape[1] > 340 * 256 else cv2.INTER_LINEAR
    big = cv2.resize(frames[1], (340, 256), interpolation=how)
    for c, (y, x) in enumerate([(16, 58), (0, 0), (0, 116), (32, 0), (32, 116)]):
        cut = big[y:y + 224, x:x + 224]
        assert np.array_equal(crops[c][1], cut) and np.array_equal(crops[c + 5][1], cut[:, ::-1])
    if shape != (64, 96): return
    store = FeatureStore(tmp_path / "store", s)
    item = VideoItem("x/a", path)
    assert extract([item], clip, store, progress=False).done == ["x/a"]
    names = sorted(p.name for p in (tmp_path / "store" / "x").iterdir())
    assert names == [f"a__{c}.safetensors" for c in range(10)]
    for c in (0, 3, 9):
        assert torch.allclose(load_all([item], store, crop=c)["x/a"].frame, clip.frames(crops[c]), atol=2e-3)
        assert same(gather(prepared(path, s, clip.resolution), clip, s)[c], store.load("x/a", c), atol=2e-2)
    store.path("x/a", 7).unlink()
    assert not store.has("x/a")
    assert extract([item], clip, store, progress=False).done == ["x/a"] and store.has("x/a")
    with pytest.raises(FeatureError, match="crops 0 to 9"): store.load("x/a", 10)
    with pytest.raises(FeatureError, match="crops 0 to 0"):
        FeatureStore(tmp_path / "one", FeatureSettings(clip.identity)).load("a", 1)


def test_ahead_is_bounded_and_stops():
    made = []
    running = ahead((made.append(n) or n for n in range(1000)), 2)
    assert next(running) == 0
    time.sleep(.3)
    assert len(made) <= 3                       # 1 taken, 2 waiting
    running.close()
    time.sleep(.3)
    assert len(made) <= 3                       # nobody listens: no more is made
    assert list(ahead(iter(range(50)))) == list(range(50))

    def broken():
        yield 1
        raise VideoError("damaged here")

    with pytest.raises(VideoError, match="damaged here"): list(ahead(broken()))


# ---- several processes that decode ---------------------------------------------------------------
def awkward(folder):
    "Videos of several lengths; a damaged one and one whose header claims too much are among them."
    items = [VideoItem(f"{n}", film(folder / f"{n}.mp4", n)) for n in (3, 70, 9, 30)]
    bad, lie = VideoItem("bad", film(folder / "bad.mp4", 70)), VideoItem("lie", film(folder / "lie.avi", 40))
    bad.source.write_bytes(bad.source.read_bytes()[:-2000])
    lie.source.write_bytes(overclaimed(lie.source.read_bytes(), 40))
    return [items[0], bad, *items[1:], lie]

def overclaimed(data, count):
    "An AVI whose header claims 200 frames."
    for tag, offset in ((b"avih", 24), (b"strh", 40)):
        at = data.index(tag) + offset
        assert int.from_bytes(data[at : at + 4], "little") == count
        data = data[:at] + (200).to_bytes(4, "little") + data[at + 4:]
    return data

def files_of(store): return {p.name: p.read_bytes() for p in store.root.iterdir()}

@pytest.mark.parametrize("crops", [1, 10])
def test_workers_change_nothing(clip, tmp_path, crops):
    "Two decoding processes, ten views too: the bytes, the notes, the order and the warning of one thread."
    (tmp_path / "films").mkdir()
    items = awkward(tmp_path / "films")[:None if crops == 1 else 2]
    chosen = FeatureSettings(clip.identity, stride=4 if crops == 1 else 16, crops=crops)
    summaries, stores = [], [FeatureStore(tmp_path / f"{n}", chosen) for n in (0, 2)]
    for store in stores:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            workers = int(store.root.name)
            summaries.append(extract(items, clip, store, progress=False, workers=workers))
        heard = [str(w.message)[-50:] for w in said if issubclass(w.category, VideoWarning)]
        if crops == 1: assert heard == ["the header claims 200 frames, 40 are there; the 40 are used"[-50:]]
    one, two = summaries
    assert (one.done, one.failed, one.frames) == (two.done, two.failed, two.frames)
    assert one.done == [item.id for item in items if item.id != "bad"] and one.failed[0][0] == "bad"
    assert files_of(stores[0]) == files_of(stores[1]) and "bad.failed.json" in files_of(stores[1])
    again = extract(items, clip, stores[1], progress=False, workers=2)
    assert again.skipped == one.done and [id for id, _ in again.failed] == ["bad"]
    assert multiprocessing.active_children() == []

@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
def test_workers_decode_at_once_and_not_far_ahead(clip, settings, monkeypatch):
    """While nobody asks, every worker fills its two places and stops: all decode at the same time, and the
    memory is that of a few parts."""
    made = multiprocessing.Array("i", 3)

    def endless(source, settings, side):
        while True:
            made[int(source)] += 1
            yield decoding.Part(np.zeros(1, np.int64), np.zeros(1), [np.zeros((1, side, side, 3), np.uint8)])

    monkeypatch.setattr(decoding, "prepared", endless)
    with closing(decoded("012", clip, settings, 3)) as parts:
        assert next(parts)[0] == 0
        until = time.time() + 30
        while sum(made) < 7 and time.time() < until: time.sleep(.1)
        time.sleep(.3)
        assert list(made) == [3, 2, 2]               # one was taken from worker 0; two wait in each
        assert [next(parts)[0] for _ in range(5)] == [1, 2, 0, 1, 2]
    assert multiprocessing.active_children() == []

def test_a_worker_that_dies_is_one_sentence(clip, settings, tmp_path, monkeypatch):
    "SIGKILL, as the system does it when memory is short: what was finished stays, the next run goes on."
    (tmp_path / "films").mkdir()
    items = [VideoItem(f"{n}", film(tmp_path / "films" / f"{n}.mp4", n)) for n in (3, 120, 5, 130)]
    store, right, calls = FeatureStore(tmp_path / "store", settings), FrozenCLIP.encode, []

    def encode(*a, **k):
        calls.append(1)
        if len(calls) == 3: os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        return right(*a, **k)

    monkeypatch.setattr(FrozenCLIP, "encode", encode)
    with pytest.raises(FeatureError, match="a process that decodes died .*: run again to go on") as caught:
        extract(items, clip, store, progress=False, workers=2)
    assert "\n" not in str(caught.value) and multiprocessing.active_children() == []
    assert files_of(store).keys() >= {"settings.json", "3.safetensors"} and len(files_of(store)) < 5
    assert not [name for name in files_of(store) if name.startswith(".")]
    monkeypatch.setattr(FrozenCLIP, "encode", right)
    again = extract(items, clip, store, progress=False, workers=2)
    assert "3" in again.skipped and set(again.done + again.skipped) == {"3", "120", "5", "130"}
    extract(items, clip, other := FeatureStore(tmp_path / "other", settings), progress=False)
    assert files_of(store) == files_of(other)

def test_control_c_ends_the_workers_too(clip, settings, tmp_path, monkeypatch):
    (tmp_path / "films").mkdir()
    items = [VideoItem(f"{n}", film(tmp_path / "films" / f"{n}.mp4", n)) for n in (3, 120, 130)]
    store, right, calls = FeatureStore(tmp_path / "store", settings), FrozenCLIP.encode, []

    def encode(*a, **k):
        calls.append(1)
        if len(calls) == 3: raise KeyboardInterrupt
        return right(*a, **k)

    monkeypatch.setattr(FrozenCLIP, "encode", encode)
    with pytest.raises(KeyboardInterrupt): extract(items, clip, store, progress=False, workers=2)
    assert multiprocessing.active_children() == []
    assert sorted(files_of(store)) == ["3.safetensors", "settings.json"]

@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_is_fed_by_several_processes(tmp_path):
    "The default workers make the store of none, beside a CUDA context; its settings name the precision."
    clip = FrozenCLIP.load("mini", device="cuda")
    chosen = FeatureSettings(clip.identity, stride=4, precision=clip.precision)
    items = [VideoItem(f"{n}", film(tmp_path / "films" / f"{n}.mp4", n)) for n in (3, 70, 9, 30)]
    one, many = (FeatureStore(tmp_path / name, chosen) for name in ("one", "many"))
    for store, workers in ((one, 0), (many, None)):
        assert len(extract(items, clip, store, progress=False, workers=workers).done) == 4
    assert files_of(one) == files_of(many)

def test_how_many_workers(clip, monkeypatch):
    gpu = SimpleNamespace(device=torch.device("cuda:0"))
    for cores, want in ((2, 2), (64, 4), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        assert pick_workers(None, gpu) == want
    assert [pick_workers(n, clip) for n in (None, 3)] == [0, 3] and pick_workers(0, gpu) == 0
    for wrong in (-1, True, 1.5, "2"):
        with pytest.raises(FeatureError, match="workers=.*: expected a whole number of at least 0, or None"):
            pick_workers(wrong, clip)


# ---- the store -----------------------------------------------------------------------------------
def test_what_is_saved_comes_back(settings, tmp_path):
    store, f = FeatureStore(tmp_path, settings), some(5, windows=torch.ones(5, 2, 2, 4))
    store.save("Fighting/a b.c-é", f)
    back = store.load("Fighting/a b.c-é")
    assert same(f, back) and torch.equal(back.windows, f.windows) and back.frame.dtype == torch.float32
    assert store.has("Fighting/a b.c-é") and not store.has("b")
    on_disk = load_file(store.path("Fighting/a b.c-é"))
    kinds = [on_disk[name].dtype for name in ("frame", "patches", "frame_index", "time")]
    assert kinds == [torch.float16, torch.float16, torch.int64, torch.float64]
    assert torch.equal(back.spatial("sa2"), back.aggregates["sa2"]) and back.spatial("none") is None
    with pytest.raises(FeatureError, match="these features hold .*extract again"): back.spatial("mine")

@options(max_examples=30, deadline=None)
@given(part=st.floats(0, 1, exclude_max=True), flip=st.booleans())
def test_a_damaged_file_is_said_so_and_made_again(part, flip, tmp_path_factory):
    store = FeatureStore(tmp_path_factory.mktemp("store"), FeatureSettings({"name": "x"}))
    store.save("a", some())
    path = store.path("a")
    data = path.read_bytes()
    cut = min(int(part * len(data)), 60 if flip else len(data))
    rest = b"\xff" + data[cut + 1:] if flip else b""                    # a byte of the header, or cut short
    path.write_bytes(data[:cut] + rest)
    assert not store.has("a")
    with pytest.raises(FeatureError, match="a.safetensors: cut short or not a feature file .*extract again"):
        store.load("a")
    store.save("a", some())
    assert store.has("a")


def test_tensors_that_do_not_belong_together(settings, tmp_path):
    store = FeatureStore(tmp_path, settings)
    store.save("a", some())
    tensors = load_file(store.path("a"))
    with safe_open(store.path("a"), "pt") as file: meta = file.metadata()
    save_file({**tensors, "frame": tensors["frame"][:-1].contiguous()}, store.path("a"), meta)
    assert not store.has("a")
    save_file(tensors, store.path("a"))  # another tool's file: no header
    with pytest.raises(FeatureError, match="not a feature file"): store.load("a")
    with pytest.raises(FeatureError, match="3 sampled frames, but time holds 2"): some(time=np.arange(2.))

@pytest.mark.parametrize("change", [
    dict(stride=8), dict(window=48, window_stride=48), dict(mode="crop"), dict(k=3),
    dict(clip={"name": "other"}), dict(keep_windows=True), dict(crops=10), dict(precision="bf16")], ids=str)
def test_settings_do_not_mix(settings, tmp_path, change):
    store, other = FeatureStore(tmp_path / "s", settings), dataclasses.replace(settings, **change)
    store.save("a", some())
    assert other.hash != settings.hash
    with pytest.raises(FeatureError, match=f"made with {next(iter(change))}="):
        FeatureStore(tmp_path / "s", other)
    elsewhere = FeatureStore(tmp_path / "t", other)
    for crop in range(other.crops):
        shutil.copy(store.path("a"), elsewhere.path("a", crop))  # a file carried over by hand
    assert not elsewhere.has("a")
    with pytest.raises(FeatureError, match="other settings"): elsewhere.load("a")
    assert FeatureStore(tmp_path / "s", settings).has("a")

def test_the_wrong_backbone_writes_nothing(clip, settings, tmp_path, video):
    store = FeatureStore(tmp_path, settings)
    with pytest.raises(FeatureError, match="not of this backbone"):
        extract([VideoItem("a", video)], FrozenCLIP.from_config(mini_config(), 1), store, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["settings.json"]

def test_another_precision_is_another_store(clip, settings, tmp_path, video):
    "fp32 features and bf16 features never share a folder; a store of before is one of fp32."
    half = FrozenCLIP.load("mini", None, "cpu", "bf16")
    chosen = FeatureSettings(half.identity, stride=16, precision=half.precision)
    assert chosen.hash != dataclasses.replace(chosen, precision="fp32").hash
    assert "precision" not in settings.as_json() and '"precision": "bf16"' in chosen.as_json()
    store = FeatureStore(tmp_path / "half", chosen)
    assert extract([VideoItem("a", video)], half, store, progress=False).done == ["a"]
    assert store.load("a").frame.dtype == torch.float32
    full = FrozenCLIP.load("mini", None, "cpu")
    with pytest.raises(FeatureError, match="in bf16, not of this backbone, .* in fp32"):
        extract([VideoItem("a", video)], full, store, progress=False)
    with pytest.raises(FeatureError, match="made with precision='bf16', not 'fp32'"):
        FeatureStore(tmp_path / "half", dataclasses.replace(chosen, precision="fp32"))
    near = extract_video(video, full, dataclasses.replace(chosen, precision="fp32"))
    for row, x in (("frame", near.frame), *near.aggregates.items()):
        other = store.load("a").frame if row == "frame" else store.load("a").aggregates[row]
        assert torch.cosine_similarity(x, other).min() > .999, row

@pytest.mark.parametrize("id", ["../a", "a/../../b", "/etc/passwd", "x\0y"])
def test_names_that_leave_the_store(settings, tmp_path, id):
    store = FeatureStore(tmp_path / "store", settings)
    for call in (lambda: store.path(id), lambda: store.save(id, some()), lambda: store.load(id)):
        with pytest.raises(FeatureError, match="would lie outside"): call()
    assert not store.has(id) and sorted(p.name for p in tmp_path.rglob("*")) == ["settings.json", "store"]
    if id != "x\0y":
        with pytest.raises(DatasetError, match="cannot leave its root"): VideoItem(id, "a.mp4")

def test_a_link_out_of_the_store_is_not_followed(settings, tmp_path):
    store = FeatureStore(tmp_path / "store", settings)
    (tmp_path / "out").mkdir()
    (tmp_path / "store" / "door").symlink_to(tmp_path / "out")
    with pytest.raises(FeatureError, match="would lie outside"): store.save("door/a", some())
    assert not list((tmp_path / "out").iterdir())

@pytest.mark.parametrize("what", ["frame", "motion", "sa2"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e6])  # 1e6 is infinite in half precision
def test_numbers_that_are_none_are_not_stored(settings, tmp_path, what, value):
    f, store = some(), FeatureStore(tmp_path, settings)
    (f.aggregates["sa2"] if what == "sa2" else getattr(f, what))[1, 0] = value
    with pytest.raises(FeatureError, match=f"{what} holds NaN or infinity, nothing was stored"):
        store.save("a", f)
    assert [p.name for p in tmp_path.rglob("*")] == ["settings.json"]

def test_a_store_without_its_note_or_place(settings, tmp_path):
    store = FeatureStore(tmp_path / "s", settings)
    note = tmp_path / "s" / "settings.json"
    for text in ("", '{"stride": 4', "[1]", "7"):
        note.write_text(text)
        with pytest.raises(FeatureError, match="settings.json: cut short"):
            FeatureStore(tmp_path / "s", settings)
    note.unlink()
    assert FeatureStore(tmp_path / "s", settings).root == store.root
    (tmp_path / "file").write_text("")
    with pytest.raises(FeatureError, match="no folder for features"):
        FeatureStore(tmp_path / "file", settings)


@pytest.mark.parametrize("wrong", [
    dict(stride=0), dict(stride=2.5), dict(stride="4"), dict(k=True), dict(k=0), dict(window=-3),
    dict(window_stride=0), dict(mode="dense"), dict(crops=5),
    dict(keep_windows=1)], ids=str)
def test_settings_out_of_range(wrong):
    name = next(iter(wrong))
    with pytest.raises(FeatureError, match=f"^{name}="): FeatureSettings({"name": "x"}, **wrong)

def test_a_failed_write_leaves_the_old_file(settings, tmp_path, monkeypatch):
    store = FeatureStore(tmp_path, settings)
    store.save("a", some(seed=1))
    old = store.path("a").read_bytes()

    def full(path, data):
        path.open("wb").write(data[:99])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError): store.save("a", some(seed=2))
    assert store.path("a").read_bytes() == old and not list(tmp_path.glob(".*"))


# ---- many videos ---------------------------------------------------------------------------------
def bad_videos(folder):
    "One of each kind of bad video, by name."
    whole = film(folder / "whole.mp4").read_bytes()
    sound = (b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0\x40\x1f\0\0\x80\x3e\0\0\x02\0\x10\0"
             b"data\0\0\0\0")
    contents = {"empty.mp4": b"", "text.mp4": b"this is not a video", "cut.mp4": whole[:len(whole) // 2],
                "sound.wav": sound}
    for name, data in contents.items(): (folder / name).write_bytes(data)
    (folder / "nothing").mkdir()
    return [VideoItem(name, folder / name) for name in (*contents, "nothing", "missing.mp4")]

def test_bad_videos_are_written_down_and_the_rest_goes_on(clip, settings, tmp_path):
    (tmp_path / "films").mkdir()
    bad = bad_videos(tmp_path / "films")
    lengths = {"good": 22, "one": 1}
    good = [VideoItem(name, film(tmp_path / "films" / f"{name}.mp4", n)) for name, n in lengths.items()]
    store = FeatureStore(tmp_path / "store", settings)
    summary = extract([bad[0], good[0], *bad[1:], good[1]], clip, store, progress=False)
    assert summary.done == ["good", "one"] and [id for id, _ in summary.failed] == [i.id for i in bad]
    for item, (_, reason) in zip(bad, summary.failed):
        assert item.source.name in reason and len(reason.splitlines()) == 1 and reason in repr(summary)
    assert sorted(p.name for p in (tmp_path / "store").rglob("*")) == sorted(
        ["good.safetensors", "one.safetensors", "settings.json", *(f"{i.id}.failed.json" for i in bad)]
    )
    note = json.loads((tmp_path / "store" / "cut.mp4.failed.json").read_text())
    assert failures(store) == dict(summary.failed) and note["file"] == str(tmp_path / "films" / "cut.mp4")
    assert store.load("one").motion.max() == 0 and store.load("one").n_frames == 1
    film(tmp_path / "films" / "cut.mp4")                                              # copied again
    again = extract([*bad, *good], clip, store, progress=False)
    assert again.done == ["cut.mp4"] and again.skipped == ["good", "one"]
    assert len(again.failed) == len(bad) - 1 and "cut.mp4" not in failures(store)


def test_videos_that_lie(clip, settings, tmp_path):
    """A header with too many frames: said, and every frame that is there counts. A size that changes
    midway: written down."""
    parts = [
        film(tmp_path / f"{n}.h264", 8, size).read_bytes() for n, size in enumerate([(48, 64), (64, 96)])
    ]
    (tmp_path / "change.h264").write_bytes(b"".join(parts))
    lie = film(tmp_path / "lie.avi", 40)
    lie.write_bytes(overclaimed(lie.read_bytes(), 40))
    store = FeatureStore(tmp_path / "store", settings)
    items = [VideoItem("change", tmp_path / "change.h264"), VideoItem("lie", tmp_path / "lie.avi")]
    with pytest.warns(UserWarning, match="claims 200 frames, 40 are there"):
        summary = extract(items, clip, store, progress=False)
    assert summary.done == ["lie"] and store.load("lie").n_frames == 40
    assert "picture size changes from 48 x 64 to 64 x 96" in failures(store)["change"]


def test_a_note_left_beside_a_whole_file_goes(clip, settings, tmp_path, video):
    "Killed between the features' and the note's end."
    item, store = VideoItem("a", video), FeatureStore(tmp_path, settings)
    extract([item], clip, store, progress=False)
    module.note_failure(store, item, "an older run's")
    assert failures(store) and extract([item], clip, store, progress=False).skipped == ["a"]
    assert failures(store) == {}


def test_one_file_cut_short_is_made_again(clip, settings, tmp_path, video):
    items, store = [VideoItem(n, video) for n in "abc"], FeatureStore(tmp_path, settings)
    extract(items, clip, store, progress=False)
    first = store.path("b").read_bytes()
    store.path("b").write_bytes(first[:100])
    again = extract(items, clip, store, progress=False)
    assert again.done == ["b"] and again.skipped == ["a", "c"] and store.path("b").read_bytes() == first

JOB = """
import sys, torch; torch.set_num_threads(1)
from pathlib import Path
from stprompt import features, files
from stprompt.clip import FrozenCLIP, mini_config
from stprompt.datasets import VideoItem
films, root = Path(sys.argv[1]), sys.argv[2]
clip = FrozenCLIP.from_config(mini_config())
store = features.FeatureStore(root, features.FeatureSettings(clip.identity, stride=4))
right = files.os.replace
def wait(part, path):                               # stop for ever between a written file and its place
    if path.name == "c.safetensors":
        print("here", flush=True)
        sys.stdin.read()
    right(part, path)
files.os.replace = wait
items = [VideoItem(p.stem, p) for p in sorted(films.glob("*.mp4"))]
features.extract(items, clip, store, progress=False, workers=int(sys.argv[3]))
"""

def stats():
    "{number of a process: number of its parent}, zombies left out."
    texts = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try: texts[int(path.parent.name)] = path.read_text().rpartition(")")[2].split()
        except OSError: pass                                            # it has just ended
    return {pid: int(words[1]) for pid, words in texts.items() if words[0] != "Z"}

def gone(pids, seconds=30):
    "Have these processes ended, within so many seconds?"
    until = time.time() + seconds
    while (left := set(pids) & set(stats())) and time.time() < until: time.sleep(.2)
    return not left

@pytest.mark.parametrize("workers", [0, 2])
def test_killed_in_the_middle_and_resumed(clip, settings, tmp_path, workers):
    """kill -9 at the worst moment; the next run finishes, and every file is the one an undisturbed run
    makes. Decoding processes do not outlive the killed one."""
    (tmp_path / "films").mkdir()
    for n, name in enumerate("abcde"): film(tmp_path / "films" / f"{name}.mp4", 12 + n)
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    words = str(tmp_path / "films"), str(tmp_path / "store"), str(workers)
    killed = subprocess.Popen([sys.executable, "-c", JOB, *words], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, env=env)
    assert killed.stdout.readline() == b"here\n"
    orphans = [pid for pid, parent in stats().items() if parent == killed.pid]
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert len(orphans) == workers and gone(orphans)
    names = lambda root: sorted(p.name for p in (tmp_path / root).glob("*.safetensors"))
    assert names("store") == ["a.safetensors", "b.safetensors"]
    halves = list((tmp_path / "store").glob(".*.part"))
    assert len(halves) == 1
    os.utime(halves[0], (time.time() - 7200,) * 2)                                     # two hours later
    items = [VideoItem(p.stem, p) for p in sorted((tmp_path / "films").glob("*.mp4"))]
    resumed, undisturbed = (extract(items, clip, FeatureStore(tmp_path / root, settings), progress=False)
                            for root in ("store", "undisturbed"))
    assert resumed.skipped == ["a", "b"] and resumed.done == ["c", "d", "e"] and len(undisturbed.done) == 5
    assert names("store") == names("undisturbed") == [f"{n}.safetensors" for n in "abcde"]
    for name in (*names("store"), "settings.json"):
        assert (tmp_path / "store" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()
    assert not list((tmp_path / "store").glob(".*"))                                   # the half is gone too

def test_shards_fill_one_store(clip, settings, tmp_path):
    "Two halves of the work make the bytes of the whole."
    (tmp_path / "films").mkdir()
    items = [VideoItem(n, film(tmp_path / "films" / f"{n}.mp4", 5 + k)) for k, n in enumerate("abcde")]
    parts = FeatureStore(tmp_path / "parts", settings)
    halves = [extract(shard(items, f"{i}/2"), clip, parts, progress=False) for i in range(2)]
    assert [s.done for s in halves] == [["a", "c", "e"], ["b", "d"]]
    extract(items, clip, FeatureStore(tmp_path / "whole", settings), progress=False)
    contents = lambda root: {p.name: p.read_bytes() for p in (tmp_path / root).iterdir()}
    assert contents("parts") == contents("whole") and len(contents("whole")) == 6
    for wrong in ("2/2", "-1/2", "1", "a/b", "1/0", "0/1/2", ""):
        with pytest.raises(FeatureError, match="expected i/n"): shard(items, wrong)

@pytest.mark.parametrize("where", ["while encoding", "while writing"])
def test_control_c_leaves_a_usable_store(clip, settings, tmp_path, monkeypatch, where):
    (tmp_path / "films").mkdir()
    items = [VideoItem(n, film(tmp_path / "films" / f"{n}.mp4", 5)) for n in "abc"]
    store, calls = FeatureStore(tmp_path / "store", settings), []
    encode, place = FrozenCLIP.encode, os.replace

    def second(right):
        def run(*a, **k):
            calls.append(1)
            if len(calls) == 2: raise KeyboardInterrupt
            return right(*a, **k)
        return run

    if where == "while encoding": monkeypatch.setattr(FrozenCLIP, "encode", second(encode))
    else: monkeypatch.setattr(files.os, "replace", second(place))
    with pytest.raises(KeyboardInterrupt): extract(items, clip, store, progress=False)
    assert sorted(p.name for p in store.root.iterdir()) == ["a.safetensors", "settings.json"]  # no half of b
    again = extract(items, clip, FeatureStore(tmp_path / "store", settings), progress=False)
    assert again.skipped == ["a"] and again.done == ["b", "c"]

def test_all_or_a_word_about_the_missing(settings, tmp_path):
    store = FeatureStore(tmp_path, settings)
    items = [VideoItem(n, f"{n}.mp4") for n in ("x/a", "b", "c")]
    store.save("x/a", some(seed=1))
    store.save("c", some(seed=2))
    loaded = load_all(iter([items[0], items[2]]), store)
    assert list(loaded) == ["x/a", "c"] and same(loaded["c"], some(seed=2))
    assert not torch.equal(loaded["x/a"].frame, loaded["c"].frame)
    with pytest.raises(FeatureError, match="no features of 1 of 3 videos .first 'b'.*run extract"):
        load_all(items, store)
    store.path("c").write_bytes(store.path("c").read_bytes()[:50])
    with pytest.raises(FeatureError, match="c.safetensors: cut short .*delete it and extract again"):
        load_all([items[2]], store)


def test_has_reads_no_tensors(settings, tmp_path, monkeypatch):
    store = FeatureStore(tmp_path, settings)
    store.save("a", some())
    monkeypatch.setattr(module, "unpack", None)
    assert store.has("a")
    data = store.path("a").read_bytes()
    for wrong in (data[:-1], data + b"x", data[:9], b""):
        store.path("a").write_bytes(wrong)
        assert not store.has("a")


# ---- the rows of Table 5 -------------------------------------------------------------------------
def largest(windows, motion, k):
    "A reader's own row."
    return windows.flatten(1, 2).amax(1)


@pytest.mark.parametrize("keep", [True, False], ids=["windows kept", "windows not kept"])
@pytest.mark.parametrize("crops", [1, 10])
def test_a_new_row_is_made_and_a_removed_one_does_no_harm(clip, tmp_path, monkeypatch, video, keep, crops):
    "A fifth row: from the stored windows where they are kept, the rest of the file as it was; else anew."
    item, calls = VideoItem("a", video), []
    chosen = FeatureSettings(clip.identity, stride=16, keep_windows=keep, crops=crops)
    store = FeatureStore(tmp_path, chosen)
    assert extract([item], clip, store, progress=False).done == ["a"] and store.has("a")
    before, four = load_file(store.path("a", crops - 1)), store.path("a").read_bytes()
    right = FrozenCLIP.encode
    monkeypatch.setattr(FrozenCLIP, "encode", lambda *a, **k: calls.append(1) or right(*a, **k))
    with monkeypatch.context() as row:
        row.setitem(AGGREGATES, "largest", largest)
        assert not store.has("a") and store.load("a").spatial("sa2") is not None
        with pytest.raises(FeatureError, match="spatial='largest': these features hold"):
            store.load("a").spatial("largest")
        module.note_failure(store, item, "an older run's")
        again = extract([item], clip, store, progress=False)
        assert again.done == ["a"] and bool(calls) != keep and (again.frames == 0) == keep
        assert failures(store) == {}
        assert store.has("a") and extract([item], clip, store, progress=False).skipped == ["a"]
        after = load_file(store.path("a", crops - 1))
        assert set(after) - set(before) == {"aggregate.largest"}
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
        if keep: assert torch.equal(after["aggregate.largest"], after["patches"].flatten(1, 2).amax(1))
    assert store.has("a") and "largest" in load_all([item], store)["a"].aggregates
    five = store.path("a").read_bytes()
    assert extract([item], clip, store, progress=False).skipped == ["a"]
    assert store.path("a").read_bytes() == five
    store.path("a").write_bytes(four)
    assert store.has("a")


def test_a_row_without_a_number_is_a_failure_of_that_video(clip, tmp_path, monkeypatch, video):
    store = FeatureStore(tmp_path, FeatureSettings(clip.identity, stride=16, keep_windows=True))
    extract([VideoItem("a", video)], clip, store, progress=False)
    old = store.path("a").read_bytes()
    monkeypatch.setitem(AGGREGATES, "bad", lambda *windows: largest(*windows) * torch.nan)
    (id, reason), = extract([VideoItem("a", video)], clip, store, progress=False).failed
    assert id == "a" and "aggregate.bad holds NaN" in reason
    assert store.path("a").read_bytes() == old


# ---- old stores, and many processes --------------------------------------------------------------
@pytest.mark.parametrize("values, name", [
    (dict(stride=4), "d365da32f5"),
    (dict(stride=16), "13bb7073a7"),
    (dict(window=80, window_stride=48), "ef01e5d31a"),
    (dict(mode="crop", k=3), "599e2e038d"),
    (dict(keep_windows=True), "3fb2dc6c06"),
    (dict(crops=10), "adce51cde4"),
])
def test_settings_are_written_as_ever(values, name):
    "Users' stores stay valid: the JSON and its name are those of the first release."
    chosen = FeatureSettings({"name": "none", "weights": "none", "sha256": ""}, **values)
    assert chosen.hash == name
    assert json.loads(chosen.as_json())["patches"] is values.get("keep_windows", False)


def test_one_folder_a_benchmark_place_and_setting(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("STPROMPT_CACHE", str(tmp_path))
    benchmark = Benchmark("clips", {"Normal": "normal", "Fight": "fight"}, (), (), ())
    assert store_folder(benchmark, settings) == tmp_path / "features" / f"clips-{settings.hash}"
    assert len({store_folder(benchmark, settings, root) for root in ("", "a", "b", tmp_path / "a")}) == 4


def test_one_process_is_together_with_itself():
    summary = Summary(["a"], ["b"], [("c", "no video")], 5, 1.)
    assert module.process() == (0, 1) and together(summary) == summary


EXTRACT = """
import sys
from stprompt.catalog import Source, open_benchmark
from stprompt.clip import FrozenCLIP
from stprompt.features import FeatureSettings, FeatureStore, extract, process, together
index, n = process()
benchmark = open_benchmark(Source(dataset="folder", root=sys.argv[1]))
clip = FrozenCLIP.load("mini", device="cpu")
store = FeatureStore(sys.argv[2], FeatureSettings(clip.identity, benchmark.stride))
summary = together(extract(benchmark.items()[index::n], clip, store, progress=False))
if index == 0: print(f"{n} processes: {summary}")
sys.exit(1 if summary.failed else 0)
"""
PROCESSES = ("--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no "
             "--main_process_port 0").split()


def test_accelerate_launch_makes_the_store_of_one_process(tmp_path):
    "Two processes, a bad video among theirs: the bytes of one process, one summary, exit code 1."
    for n, name in enumerate(("fight/a", "fight/b", "fight/c", "normal/a", "normal/b")):
        film(tmp_path / "root" / f"{name}.mp4", 5 + n)
    (tmp_path / "root" / "fight" / "bad.mp4").write_bytes(b"no video")
    (tmp_path / "extract.py").write_text(EXTRACT)
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    env |= {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}

    def call(store, *launcher):
        command = [sys.executable, *launcher, *(tmp_path / name for name in ("extract.py", "root", store))]
        return subprocess.run(command, capture_output=True, text=True, env=env)

    one, two = call("one"), call("two", "-m", "accelerate.commands.launch", *PROCESSES)
    assert one.returncode == 1 and two.returncode == 1, two.stderr[-3000:]
    for done in (one, two):
        assert done.stdout.count("5 videos extracted, 0 found, 1 failed") == 1 and "fight/bad" in done.stdout
    assert "1 processes" in one.stdout and "2 processes" in two.stdout
    files_of = lambda root: {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two") and len(files_of(tmp_path / "one")) == 7


@pytest.mark.skipif(not SHARED.is_dir(), reason="real clips are not here (../shared/data)")
def test_real_clips(clip, settings, tmp_path):
    clips = sorted((SHARED / "surv_fight").rglob("*.mp4"))[:2]
    images = lambda folder: [p for p in folder.iterdir() if p.suffix in (".jpg", ".tif", ".png")]
    folders = (p for p in sorted((SHARED / "ucsd_ped2").rglob("*")) if p.is_dir() and len(images(p)) > 20)
    items = [*(VideoItem(f"clip{n}", p) for n, p in enumerate(clips)), VideoItem("ped2", next(folders))]
    store = FeatureStore(tmp_path, dataclasses.replace(settings, stride=16))
    assert len(extract(items, clip, store, progress=False).done) == len(items)
    for item in items:
        f = store.load(item.id)
        assert f.n_frames == probe(item.source).n_frames == len(f.to_frames(np.zeros(len(f.frame))))
        assert len(f.frame) == -(-f.n_frames // 16) and f.motion.max() > 0
