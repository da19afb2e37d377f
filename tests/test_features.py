"""Extraction and the feature store: chunks, kills, bad videos, damaged files, mixed settings, names that leave the root, and the command line."""
import dataclasses, io, json, os, shutil, signal, subprocess, sys, threading, time
from pathlib import Path
import numpy as np
import pytest, torch
from hypothesis import given, settings as options, strategies as st
from safetensors.torch import load_file, save_file
from stprompt import features as module
from stprompt.clip import FrozenCLIP, mini_config
from stprompt.datasets import DatasetError, VideoItem
from stprompt.features import FeatureError, FeatureSettings, FeatureStore, VadCLIPStore, VideoFeatures, ahead, extract, extract_video, extract_views, failures, load_all, main, shard, ten_crops, vadclip_features
from stprompt.motion import aggregate, motion_prior
from stprompt.video import VideoError, probe, read_all, write_video

torch.set_num_threads(1)
SHARED = Path(__file__).parents[2] / "shared" / "data"

def film(path, n=22, size=(64, 96), **more):
    noise = np.random.default_rng(n).integers(60, 110, (*size, 3), np.uint8)
    def paint(t): image = noise.copy(); image[20:40, (3 * t) % 60:(3 * t) % 60 + 20] = (230, 120, 40); return image
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
    return VideoFeatures(**{**dict(frame=r(T, D), frame_index=np.arange(T) * 4, time=np.arange(T) * .16, n_frames=4 * T - 1, fps=25., size=(48, 64), aggregates={"sa2": r(T, D), "average": r(T, D)}, motion=r(T, 2, 2).abs()), **more})

def same(a, b, atol=2e-3):
    "Two VideoFeatures hold the same."
    tensors = lambda f: {"frame": f.frame, "motion": f.motion, **f.aggregates}
    assert tensors(a).keys() == tensors(b).keys() and (a.n_frames, a.fps, a.size) == (b.n_frames, b.fps, b.size) and np.array_equal(a.frame_index, b.frame_index) and np.array_equal(a.time, b.time)
    for name, tensor in tensors(a).items(): assert torch.allclose(tensor, tensors(b)[name], atol=atol), name
    return True


# ---- extraction --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("mode, window, window_stride", [("token", 32, 32), ("token", 80, 48), ("crop", 112, 112)])
def test_extraction_is_the_definition(clip, video, mode, window, window_stride):
    "All frames at once through the rooms 03 and 04, against the chunked, threaded, streamed way; for any chunk."
    s = FeatureSettings(clip.identity, stride=5, window=window, window_stride=window_stride, mode=mode, k=4, patches=True)
    all_at_once = read_all(video, stride=5)
    patches = clip.windows(all_at_once.images, window, window_stride, mode)
    mo = motion_prior(patches)
    for chunk in (2, 64):
        f = extract_video(video, clip, s, chunk)
        assert torch.allclose(f.frame, clip.frames(all_at_once.images), atol=1e-4) and torch.allclose(f.patches, patches, atol=1e-4) and torch.allclose(f.motion, mo, atol=1e-3)
        assert f.aggregates.keys() == {"average", "attention", "selection_average", "sa2"}
        for row, got in f.aggregates.items(): assert torch.allclose(got, aggregate(patches, mo, 4, row), atol=1e-3), row
        assert f.n_frames == 42 and f.frame_index.tolist() == list(range(0, 42, 5)) and np.allclose(f.time, f.frame_index / 25, atol=1e-6) and f.size == (64, 96) and f.fps == pytest.approx(25)

def test_every_frame_gets_a_score(clip, tmp_path):
    for n in (1, 2, 4, 5, 9):
        f = extract_video(film(tmp_path / f"{n}.mp4", n), clip, FeatureSettings(clip.identity, stride=4))
        scores = f.to_frames(np.arange(len(f.frame)) * 1.)
        assert f.n_frames == n and scores.tolist() == [i // 4 for i in range(n)]

@options(max_examples=60, deadline=None)
@given(n=st.integers(1, 200), stride=st.integers(1, 20), classes=st.integers(0, 3))
def test_back_to_frames(n, stride, classes):
    index = np.arange(0, n, stride); T = len(index)
    f = VideoFeatures(torch.zeros(T, 2), index, index / 25, n, 25., (4, 4))
    scores = np.random.default_rng(n).random((T, classes) if classes else T)
    assert np.array_equal(f.to_frames(scores), scores[np.arange(n) // stride])
    with pytest.raises(FeatureError, match="score every feature once"): f.to_frames(scores[:-1])

def test_an_image_folder_and_odd_sizes(clip, settings, tmp_path):
    import cv2
    (tmp_path / "frames").mkdir()
    for n in range(6): cv2.imwrite(str(tmp_path / "frames" / f"{n:03d}.png"), np.full((31, 47, 3), 40 * n, np.uint8))
    f = extract_video(tmp_path / "frames", clip, settings)
    assert f.n_frames == 6 and f.size == (31, 47) and f.frame.shape == (2, 128)
    assert extract_video(film(tmp_path / "odd.mp4", 5, (33, 47)), clip, settings).n_frames == 5

def test_a_variable_frame_rate_keeps_its_times(clip, settings, tmp_path):
    times = np.cumsum([0, *([.04] * 7), *([.2] * 4)])
    f = extract_video(film(tmp_path / "v.mkv", 12, times=times), clip, settings)
    assert f.fps == pytest.approx(11 / times[-1], rel=1e-3) and np.allclose(f.time, times[::4], atol=2e-3) and f.to_frames([1, 2, 3]).tolist() == [1] * 4 + [2] * 4 + [3] * 4

def test_the_backbone_may_fail_without_hanging(clip, settings, video, monkeypatch):
    "An error while encoding ends the decoding thread too."
    started = threading.active_count()
    monkeypatch.setattr(FrozenCLIP, "encode", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("out of memory")))
    with pytest.raises(RuntimeError, match="out of memory"): extract_video(video, clip, settings, chunk=1)
    end = time.time() + 5
    while threading.active_count() > started and time.time() < end: time.sleep(.02)
    assert threading.active_count() <= started

def test_threads_change_nothing(clip, settings, tmp_path, monkeypatch):
    "Decoding ahead over several videos, a bad one among them, or in turn: the same store, the same reasons."
    (tmp_path / "films").mkdir()
    items = [VideoItem(f"{n}", film(tmp_path / "films" / f"{n}.mp4", n)) for n in (3, 70, 9)]
    items.insert(1, VideoItem("bad", film(tmp_path / "films" / "bad.mp4", 70)))
    items[1].source.write_bytes(items[1].source.read_bytes()[:-2000])
    inline = extract(items, clip, FeatureStore(tmp_path / "inline", settings), progress=False)
    monkeypatch.setattr(module, "overlapped", lambda parts, clip: ahead(parts))
    threads = extract(items, clip, FeatureStore(tmp_path / "threads", settings), progress=False)
    assert inline.done == threads.done == ["3", "70", "9"] and inline.failed == threads.failed and inline.failed[0][0] == "bad" and inline.frames == threads.frames == 1 + 18 + 3
    contents = lambda root: {p.name: p.read_bytes() for p in (tmp_path / root).iterdir()}
    assert contents("inline") == contents("threads") and len(contents("inline")) == 5

def test_one_thread_means_one(clip, monkeypatch):
    parts = iter([1])
    assert module.overlapped(parts, clip) is parts
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert module.overlapped(parts, clip) is not parts

@pytest.mark.parametrize("shape", [(64, 96), (96, 64), (300, 500)])
def test_ten_crops(clip, tmp_path, shape):
    "Each view against one cut by hand; the file of a crop holds the features of that view."
    s = FeatureSettings(clip.identity, stride=4, crops=10)
    path = film(tmp_path / "a.mp4", 6, shape); frames = read_all(path, stride=4).images
    crops = ten_crops(frames, 224)
    assert len(crops) == 10 and {c.shape for c in crops} == {(2, 224, 224, 3)}
    import cv2
    big = cv2.resize(frames[1], (340, 256), interpolation=cv2.INTER_AREA if shape[0] * shape[1] > 340 * 256 else cv2.INTER_LINEAR)
    for c, (y, x) in enumerate([(16, 58), (0, 0), (0, 116), (32, 0), (32, 116)]):
        assert np.array_equal(crops[c][1], big[y:y + 224, x:x + 224]) and np.array_equal(crops[c + 5][1], big[y:y + 224, x:x + 224][:, ::-1])
    if shape != (64, 96): return
    store = FeatureStore(tmp_path / "store", s); item = VideoItem("x/a", path)
    assert extract([item], clip, store, progress=False).done == ["x/a"]
    assert sorted(p.name for p in (tmp_path / "store" / "x").iterdir()) == [f"a__{c}.safetensors" for c in range(10)]
    for c in (0, 3, 9):
        assert torch.allclose(load_all([item], store, crop=c)["x/a"].frame, clip.frames(crops[c]), atol=2e-3)
        assert same(extract_views(path, clip, s)[c], store.load("x/a", c), atol=2e-2)
    store.path("x/a", 7).unlink()
    assert not store.has("x/a")
    assert extract([item], clip, store, progress=False).done == ["x/a"] and store.has("x/a")
    with pytest.raises(FeatureError, match="crops 0 to 9"): store.load("x/a", 10)
    with pytest.raises(FeatureError, match="crops 0 to 0"): FeatureStore(tmp_path / "one", FeatureSettings(clip.identity)).load("a", 1)

def test_ahead_is_bounded_and_stops():
    made = []
    def items():
        for n in range(1000): made.append(n); yield n
    running = ahead(items(), 2)
    assert next(running) == 0
    time.sleep(.3); assert len(made) <= 5                                            # 1 taken, 2 in the box, 1 in hand
    running.close(); time.sleep(.3); assert len(made) <= 5                           # nobody listens: no more is made
    assert list(ahead(iter(range(50)))) == list(range(50))
    def broken(): yield 1; raise VideoError("damaged here")
    with pytest.raises(VideoError, match="damaged here"): list(ahead(broken()))


# ---- the store ---------------------------------------------------------------------------------------------------
def test_what_is_saved_comes_back(settings, tmp_path):
    store, f = FeatureStore(tmp_path, settings), some(5, patches=torch.ones(5, 2, 2, 4))
    store.save("Fighting/a b.c-é", f)
    back = store.load("Fighting/a b.c-é")
    assert same(f, back) and torch.equal(back.patches, f.patches) and back.frame.dtype == torch.float32 and store.has("Fighting/a b.c-é") and not store.has("b")
    on_disk = load_file(store.path("Fighting/a b.c-é"))
    assert on_disk["frame"].dtype == torch.float16 and on_disk["frame_index"].dtype == torch.int64 and on_disk["time"].dtype == torch.float64
    assert torch.equal(back.spatial("sa2"), back.aggregates["sa2"]) and back.spatial("none") is None
    with pytest.raises(FeatureError, match="these features hold .*extract again"): back.spatial("attention")

@options(max_examples=30, deadline=None)
@given(part=st.floats(0, 1, exclude_max=True), flip=st.booleans())
def test_a_damaged_file_is_said_so_and_made_again(part, flip, tmp_path_factory):
    store = FeatureStore(tmp_path_factory.mktemp("store"), FeatureSettings({"name": "x"}))
    store.save("a", some()); path = store.path("a"); data = path.read_bytes(); cut = int(part * len(data))
    path.write_bytes(data[:cut] if not flip else data[:min(cut, 60)] + b"\xff" + data[min(cut, 60) + 1:])       # cut short, or a byte of the header
    assert not store.has("a")
    with pytest.raises(FeatureError, match="a.safetensors: cut short or not a feature file .*extract again"): store.load("a")
    store.save("a", some()); assert store.has("a")

def test_tensors_that_do_not_belong_together(settings, tmp_path):
    store = FeatureStore(tmp_path, settings); store.save("a", some())
    tensors = load_file(store.path("a"))
    from safetensors import safe_open
    with safe_open(store.path("a"), "pt") as file: meta = file.metadata()
    save_file({**tensors, "frame": tensors["frame"][:-1].contiguous()}, store.path("a"), meta)
    assert not store.has("a")
    save_file(tensors, store.path("a"))                                             # another tool's file: no header
    with pytest.raises(FeatureError, match="not a feature file"): store.load("a")
    with pytest.raises(FeatureError, match="3 sampled frames, but time holds 2"): some(time=np.arange(2.))

@pytest.mark.parametrize("change", [dict(stride=8), dict(window=48, window_stride=48), dict(mode="crop"), dict(k=3), dict(clip={"name": "other"}), dict(patches=True), dict(crops=10)], ids=str)
def test_settings_do_not_mix(settings, tmp_path, change):
    store, other = FeatureStore(tmp_path / "s", settings), dataclasses.replace(settings, **change)
    store.save("a", some())
    assert other.hash != settings.hash
    with pytest.raises(FeatureError, match=f"made with {next(iter(change)) if 'window' not in change else 'window'}"): FeatureStore(tmp_path / "s", other)
    elsewhere = FeatureStore(tmp_path / "t", other)
    for crop in range(other.crops): shutil.copy(store.path("a"), elsewhere.path("a", crop))             # a file carried over by hand
    assert not elsewhere.has("a")
    with pytest.raises(FeatureError, match="other settings"): elsewhere.load("a")
    assert FeatureStore(tmp_path / "s", settings).has("a")

def test_the_wrong_backbone_writes_nothing(clip, settings, tmp_path, video):
    store = FeatureStore(tmp_path, settings)
    with pytest.raises(FeatureError, match="not of this backbone"): extract([VideoItem("a", video)], FrozenCLIP.from_config(mini_config(), 1), store, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["settings.json"]

@pytest.mark.parametrize("id", ["../a", "a/../../b", "/etc/passwd", "x\0y"])
def test_names_that_leave_the_store(settings, tmp_path, id):
    store = FeatureStore(tmp_path / "store", settings)
    for call in (lambda: store.path(id), lambda: store.save(id, some()), lambda: store.load(id)):
        with pytest.raises(FeatureError, match="would lie outside"): call()
    assert not store.has(id) and sorted(p.name for p in tmp_path.rglob("*")) == ["settings.json", "store"]
    if id != "x\0y":
        with pytest.raises(DatasetError, match="cannot leave its root"): VideoItem(id, "a.mp4")

def test_a_link_out_of_the_store_is_not_followed(settings, tmp_path):
    store = FeatureStore(tmp_path / "store", settings); (tmp_path / "out").mkdir()
    (tmp_path / "store" / "door").symlink_to(tmp_path / "out")
    with pytest.raises(FeatureError, match="would lie outside"): store.save("door/a", some())
    assert not list((tmp_path / "out").iterdir())

@pytest.mark.parametrize("what", ["frame", "motion", "sa2"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e6])                        # 1e6 is infinite in half precision
def test_numbers_that_are_none_are_not_stored(settings, tmp_path, what, value):
    f, store = some(), FeatureStore(tmp_path, settings)
    (f.aggregates["sa2"] if what == "sa2" else getattr(f, what))[1, 0] = value
    with pytest.raises(FeatureError, match=f"{what} holds NaN or infinity, nothing was stored"): store.save("a", f)
    assert [p.name for p in tmp_path.rglob("*")] == ["settings.json"]

def test_a_store_without_its_note_or_place(settings, tmp_path):
    store = FeatureStore(tmp_path / "s", settings); note = tmp_path / "s" / "settings.json"
    for text in ("", '{"stride": 4', "[1]", "7"):
        note.write_text(text)
        with pytest.raises(FeatureError, match="settings.json: cut short"): FeatureStore(tmp_path / "s", settings)
    note.unlink(); assert FeatureStore(tmp_path / "s", settings).root == store.root
    (tmp_path / "file").write_text("")
    with pytest.raises(FeatureError, match="no folder for features"): FeatureStore(tmp_path / "file", settings)

@pytest.mark.parametrize("wrong", [dict(stride=0), dict(stride=2.5), dict(k=True), dict(window=-3), dict(window_stride=0), dict(mode="dense"), dict(crops=5)], ids=str)
def test_settings_out_of_range(wrong):
    name = next(iter(wrong))
    with pytest.raises(FeatureError, match=f"^{name}="): FeatureSettings({"name": "x"}, **wrong)

def test_a_failed_write_leaves_the_old_file(settings, tmp_path, monkeypatch):
    store = FeatureStore(tmp_path, settings); store.save("a", some(seed=1)); old = store.path("a").read_bytes()
    def full(path, data): path.open("wb").write(data[:99]); raise OSError(28, "No space left on device")
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError): store.save("a", some(seed=2))
    assert store.path("a").read_bytes() == old and not list(tmp_path.glob(".*"))


# ---- many videos -------------------------------------------------------------------------------------------------
def bad_videos(folder):
    "One of each kind of bad video, by name."
    whole = film(folder / "whole.mp4").read_bytes()
    files = {"empty.mp4": b"", "text.mp4": b"this is not a video", "cut.mp4": whole[:len(whole) // 2], "sound.wav": b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0\x40\x1f\0\0\x80\x3e\0\0\x02\0\x10\0data\0\0\0\0"}
    for name, data in files.items(): (folder / name).write_bytes(data)
    (folder / "nothing").mkdir()
    return [VideoItem(name, folder / name) for name in (*files, "nothing", "missing.mp4")]

def test_bad_videos_are_written_down_and_the_rest_goes_on(clip, settings, tmp_path):
    (tmp_path / "films").mkdir()
    bad, good = bad_videos(tmp_path / "films"), [VideoItem("good", film(tmp_path / "films" / "good.mp4")), VideoItem("one", film(tmp_path / "films" / "one.mp4", 1))]
    store = FeatureStore(tmp_path / "store", settings)
    summary = extract([bad[0], good[0], *bad[1:], good[1]], clip, store, progress=False)
    assert summary.done == ["good", "one"] and [id for id, _ in summary.failed] == [i.id for i in bad]
    for item, (_, reason) in zip(bad, summary.failed): assert item.source.name in reason and len(reason.splitlines()) == 1 and reason in repr(summary)
    assert sorted(p.name for p in (tmp_path / "store").rglob("*")) == sorted(["good.safetensors", "one.safetensors", "settings.json", *(f"{i.id}.failed.json" for i in bad)])
    assert failures(store) == dict(summary.failed) and json.loads((tmp_path / "store" / "cut.mp4.failed.json").read_text())["file"] == str(tmp_path / "films" / "cut.mp4")
    assert store.load("one").motion.max() == 0 and store.load("one").n_frames == 1
    film(tmp_path / "films" / "cut.mp4")                                              # copied again
    again = extract([*bad, *good], clip, store, progress=False)
    assert again.done == ["cut.mp4"] and again.skipped == ["good", "one"] and len(again.failed) == len(bad) - 1 and "cut.mp4" not in failures(store)

def test_videos_that_lie(clip, settings, tmp_path):
    "A header with too many frames: said, and every frame that is there counts. A size that changes midway: written down."
    parts = [film(tmp_path / f"{n}.h264", 8, size).read_bytes() for n, size in enumerate([(48, 64), (64, 96)])]
    (tmp_path / "change.h264").write_bytes(b"".join(parts))
    data = film(tmp_path / "lie.avi", 40).read_bytes()
    for tag, offset in ((b"avih", 24), (b"strh", 40)):
        at = data.index(tag) + offset; assert int.from_bytes(data[at:at + 4], "little") == 40
        data = data[:at] + (200).to_bytes(4, "little") + data[at + 4:]
    (tmp_path / "lie.avi").write_bytes(data)
    store = FeatureStore(tmp_path / "store", settings)
    with pytest.warns(UserWarning, match="claims 200 frames, 40 are there"): summary = extract([VideoItem("change", tmp_path / "change.h264"), VideoItem("lie", tmp_path / "lie.avi")], clip, store, progress=False)
    assert summary.done == ["lie"] and store.load("lie").n_frames == 40 and "picture size changes from 48 x 64 to 64 x 96" in failures(store)["change"]

def test_a_note_left_beside_a_whole_file_goes(clip, settings, tmp_path, video):
    "Killed between the features' and the note's end."
    item, store = VideoItem("a", video), FeatureStore(tmp_path, settings)
    extract([item], clip, store, progress=False); module.note_failure(store, item, "an older run's")
    assert failures(store) and extract([item], clip, store, progress=False).skipped == ["a"] and failures(store) == {}

def test_one_file_cut_short_is_made_again(clip, settings, tmp_path, video):
    items, store = [VideoItem(n, video) for n in "abc"], FeatureStore(tmp_path, settings)
    extract(items, clip, store, progress=False)
    first = store.path("b").read_bytes(); store.path("b").write_bytes(first[:100])
    again = extract(items, clip, store, progress=False)
    assert again.done == ["b"] and again.skipped == ["a", "c"] and store.path("b").read_bytes() == first

JOB = """
import sys, torch; torch.set_num_threads(1)
from pathlib import Path
from stprompt import features
from stprompt.clip import FrozenCLIP, mini_config
from stprompt.datasets import VideoItem
films, root = Path(sys.argv[1]), sys.argv[2]
clip = FrozenCLIP.from_config(mini_config())
store = features.FeatureStore(root, features.FeatureSettings(clip.identity, stride=4))
right = features.move_into_place
def wait(part, path):                               # stop for ever between a written file and its place
    if path.name == "c.safetensors": print("here", flush=True); sys.stdin.read()
    right(part, path)
features.move_into_place = wait
features.extract([VideoItem(p.stem, p) for p in sorted(films.glob("*.mp4"))], clip, store, progress=False)
"""

def test_killed_in_the_middle_and_resumed(clip, settings, tmp_path):
    "kill -9 at the worst moment; the next run finishes, and every file is the one an undisturbed run makes."
    (tmp_path / "films").mkdir()
    for n, name in enumerate("abcde"): film(tmp_path / "films" / f"{name}.mp4", 12 + n)
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    killed = subprocess.Popen([sys.executable, "-c", JOB, str(tmp_path / "films"), str(tmp_path / "store")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
    assert killed.stdout.readline() == b"here\n"
    killed.send_signal(signal.SIGKILL); killed.communicate()
    names = lambda root: sorted(p.name for p in (tmp_path / root).glob("*.safetensors"))
    assert names("store") == ["a.safetensors", "b.safetensors"]
    halves = list((tmp_path / "store").glob(".*.part")); assert len(halves) == 1
    os.utime(halves[0], (time.time() - 7200,) * 2)                                     # two hours later
    items = [VideoItem(p.stem, p) for p in sorted((tmp_path / "films").glob("*.mp4"))]
    resumed, undisturbed = (extract(items, clip, FeatureStore(tmp_path / root, settings), progress=False) for root in ("store", "undisturbed"))
    assert resumed.skipped == ["a", "b"] and resumed.done == ["c", "d", "e"] and len(undisturbed.done) == 5
    assert names("store") == names("undisturbed") == [f"{n}.safetensors" for n in "abcde"]
    for name in (*names("store"), "settings.json"): assert (tmp_path / "store" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()
    assert not list((tmp_path / "store").glob(".*"))                                   # the half is gone too

def test_shards_fill_one_store(clip, settings, tmp_path):
    "Two halves of the work make the bytes of the whole."
    (tmp_path / "films").mkdir()
    items = [VideoItem(n, film(tmp_path / "films" / f"{n}.mp4", 5 + k)) for k, n in enumerate("abcde")]
    halves = [extract(shard(items, f"{i}/2"), clip, FeatureStore(tmp_path / "parts", settings), progress=False) for i in range(2)]
    assert [s.done for s in halves] == [["a", "c", "e"], ["b", "d"]]
    extract(items, clip, FeatureStore(tmp_path / "whole", settings), progress=False)
    contents = lambda root: {p.name: p.read_bytes() for p in (tmp_path / root).iterdir()}
    assert contents("parts") == contents("whole") and len(contents("whole")) == 6
    for wrong in ("2/2", "-1/2", "1", "a/b", "1/0", "0/1/2", ""):
        with pytest.raises(FeatureError, match="expected i/n"): shard(items, wrong)

@pytest.mark.parametrize("where", ["while encoding", "while writing"])
def test_control_c_leaves_a_usable_store(clip, settings, tmp_path, monkeypatch, where):
    (tmp_path / "films").mkdir()
    items, store = [VideoItem(n, film(tmp_path / "films" / f"{n}.mp4", 5)) for n in "abc"], FeatureStore(tmp_path / "store", settings)
    encode, place, calls = FrozenCLIP.encode, module.move_into_place, []
    def second(right):
        def run(*a, **k):
            calls.append(1)
            if len(calls) == 2: raise KeyboardInterrupt
            return right(*a, **k)
        return run
    if where == "while encoding": monkeypatch.setattr(FrozenCLIP, "encode", second(encode))
    else: monkeypatch.setattr(module, "move_into_place", second(place))
    with pytest.raises(KeyboardInterrupt): extract(items, clip, store, progress=False)
    assert sorted(p.name for p in store.root.iterdir()) == ["a.safetensors", "settings.json"]       # no half of b
    again = extract(items, clip, FeatureStore(tmp_path / "store", settings), progress=False)
    assert again.skipped == ["a"] and again.done == ["b", "c"]

def test_all_or_a_word_about_the_missing(settings, tmp_path):
    store = FeatureStore(tmp_path, settings); items = [VideoItem(n, f"{n}.mp4") for n in ("x/a", "b", "c")]
    store.save("x/a", some(seed=1)); store.save("c", some(seed=2))
    loaded = load_all(iter([items[0], items[2]]), store)
    assert list(loaded) == ["x/a", "c"] and same(loaded["c"], some(seed=2)) and not torch.equal(loaded["x/a"].frame, loaded["c"].frame)
    with pytest.raises(FeatureError, match="no features of 1 of 3 videos .first 'b'.*run extract"): load_all(items, store)
    store.path("c").write_bytes(store.path("c").read_bytes()[:50])
    with pytest.raises(FeatureError, match="c.safetensors: cut short .*delete it and extract again"): load_all([items[2]], store)


# ---- released features and the command line ----------------------------------------------------------------------
def test_released_features(tmp_path):
    path = tmp_path / "Abuse001_x264__0.npy"
    np.save(path, np.random.default_rng(0).random((7, 512)).astype(np.float16))
    f = vadclip_features(path)
    assert f.frame.shape == (7, 512) and f.frame.dtype == torch.float32 and f.n_frames == 112 and f.to_frames(np.arange(7)).tolist() == [i // 16 for i in range(112)]
    with pytest.raises(FeatureError, match="no window aggregates"): f.spatial("sa2")
    data = path.read_bytes()
    for wrong in (data[:200], b"", b"text"):
        path.write_bytes(wrong)
        with pytest.raises(FeatureError, match="Abuse001"): vadclip_features(path)
    for wrong in (np.zeros(7), np.zeros((2, 3, 4)), np.array([["a", "b"]]), np.full((2, 4), np.nan), np.array([[1, 2]])):
        np.save(path, wrong)
        with pytest.raises(FeatureError, match=r"expected finite features \[T, D\]"): vadclip_features(path)
    np.save(path, np.array([{"a": print}], object), allow_pickle=True)
    with pytest.raises(FeatureError, match="plain numbers"): vadclip_features(path)

def released(folder, names=("Abuse/Abuse001_x264", "Testing_Normal_Videos_Anomaly/Normal_Videos_003_x264"), labels=("Abuse", "Normal"), crops=10):
    "A download in the authors' layout with their list."
    lines = ["path,label"]
    for v, (name, label) in enumerate(zip(names, labels)):
        for c in range(crops):
            path = folder / "UCFClipFeatures" / f"{name}__{c}.npy"; path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, np.full((4 + v, 8), 10 * v + c, np.float16)); lines.append(f"/home/somebody/Desktop/UCFClipFeatures/{name}__{c}.npy,{label}")
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
    return folder / "UCFClipFeatures", folder / "list.csv"

def test_a_released_download_is_a_store(tmp_path):
    root, listing = released(tmp_path)
    store = VadCLIPStore(root, listing)
    assert [(i.id, i.labels, i.is_abnormal) for i in store.items] == [("Abuse001_x264", ("Abuse",), True), ("Normal_Videos_003_x264", ("Normal",), False)]
    loaded = load_all(store.items, store, crop=7)
    assert loaded["Abuse001_x264"].frame.unique().tolist() == [7] and loaded["Normal_Videos_003_x264"].frame.unique().tolist() == [17] and loaded["Normal_Videos_003_x264"].n_frames == 80
    assert loaded["Abuse001_x264"].spatial("none") is None and loaded["Abuse001_x264"].frame_index.tolist() == [0, 16, 32, 48] and loaded["Abuse001_x264"].time[2] == pytest.approx(32 / 30)
    ucf = [VideoItem("Abuse/Abuse001_x264", "anywhere.mp4", "Abuse")]                # a benchmark's own items
    assert load_all(ucf, store)["Abuse/Abuse001_x264"].frame.unique().tolist() == [0] and store.has("Abuse/Abuse001_x264.mp4") and not store.has("Abuse002")
    known = VadCLIPStore(root, listing, n_frames={"Abuse/Abuse001_x264": 75})
    assert len(known.load("Abuse/Abuse001_x264").to_frames([1, 2, 3, 4])) == 75
    with pytest.raises(FeatureError, match="4 vectors.*has 500 frames"): VadCLIPStore(root, listing, n_frames={"Abuse001_x264": 500}).load("Abuse001_x264")
    store.path("Abuse001_x264").unlink()
    with pytest.raises(FeatureError, match="no features of 1 of 2 videos .first 'Abuse001_x264'"): load_all(store.items, store)

def test_xd_labels_of_a_released_list(tmp_path):
    root, listing = released(tmp_path, ("Bad.Boys__#00-26_label_B2-G-0", "v=x__#1_label_A"), ("B2-G-0", "A"), crops=1)
    items = VadCLIPStore(root, listing).items
    assert [(i.id, i.labels) for i in items] == [("Bad.Boys__#00-26_label_B2-G-0", ("Shooting", "Explosion")), ("v=x__#1_label_A", ("Normal",))]

@pytest.mark.parametrize("line, said", [("../../etc/x__0.npy,Abuse", "use the released list"), ("a.npy,Abuse", "crop 0 to 9"), ("a__0.npz,Abuse", "crop 0 to 9"), ("a__12.npy,Abuse", "crop 0 to 9"), ("a__0.npy", "expected path,label"),
                                        ("a__0.npy,", "expected path,label"), ("a__0.npy,Abuse,1", "expected path,label"), ("UCFClipFeatures/Abuse/Abuse001_x264__3.npy,Arson", "is 'Arson' here and Abuse above"), ("__0.npy,Abuse", "crop 0 to 9")])
def test_a_wrong_line_of_a_released_list(tmp_path, line, said):
    root, listing = released(tmp_path, crops=2)
    n = len(listing.read_text().splitlines()) + 1
    listing.write_bytes(listing.read_bytes().replace(b"\n", b"\r\n") + b"\r\n" + line.encode())                 # CRLF, a blank line, no final newline
    with pytest.raises(FeatureError, match=f"list.csv, line {n + 1}: .*{said}"): VadCLIPStore(root, listing)

@pytest.mark.parametrize("data", [b"", b"\xff\xfe\0", b"video,label\nx__0.npy,a\n", None])
def test_no_released_list(tmp_path, data):
    root, listing = released(tmp_path, crops=1)
    listing.unlink() if data is None else listing.write_bytes(data)
    with pytest.raises(FeatureError, match="list.csv.*VadCLIP's repository"): VadCLIPStore(root, listing)

@options(max_examples=60, deadline=None)
@given(st.binary(max_size=200))
def test_any_list_is_a_sentence_or_a_store(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("any"); (folder / "list.csv").write_bytes(b"path,label\n" + data)
    try: store = VadCLIPStore(folder, folder / "list.csv")
    except FeatureError as error: assert "list.csv" in str(error)
    else: assert all(folder in store.path(i.id).parents and not store.has(i.id) for i in store.items)

def test_released_pickles_are_refused(tmp_path):
    root, listing = released(tmp_path, crops=1)
    store = VadCLIPStore(root, listing); ran = tmp_path / "ran"
    class Bomb:
        def __reduce__(self): return (Path.touch, (ran,))
    np.save(store.path("Abuse001_x264"), np.array([Bomb()], object), allow_pickle=True)
    with pytest.raises(FeatureError, match="plain numbers"): store.load("Abuse001_x264")
    assert not ran.exists()

def test_has_reads_no_tensors(settings, tmp_path, monkeypatch):
    store = FeatureStore(tmp_path, settings); store.save("a", some())
    monkeypatch.setattr(module, "unpack", None)
    assert store.has("a")
    data = store.path("a").read_bytes()
    for wrong in (data[:-1], data + b"x", data[:9], b""):
        store.path("a").write_bytes(wrong); assert not store.has("a")

PROCESSES = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]

def test_accelerate_launch_makes_the_store_of_one_process(tmp_path):
    "Two processes, a bad video among theirs: the bytes of one process, one summary, exit code 1; then all skipped."
    for n, name in enumerate(("fight/a", "fight/b", "fight/c", "normal/a", "normal/b")): film(tmp_path / "root" / f"{name}.mp4", 5 + n)
    (tmp_path / "root" / "fight" / "bad.mp4").write_bytes(b"no video")
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")} | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    def call(store, *launcher): return subprocess.run([sys.executable, "-m", *launcher, "stprompt.features", "--root", str(tmp_path / "root"), "--store", str(tmp_path / store), "--device", "cpu"], capture_output=True, text=True, env=env)
    one, two = call("one"), call("two", "accelerate.commands.launch", *PROCESSES, "-m")
    assert one.returncode == 1 and two.returncode == 1, two.stderr[-3000:]
    for done in (one, two): assert done.stdout.count("5 videos extracted, 0 found, 1 failed") == 1 and "fight/bad" in done.stdout
    assert "2 processes" in two.stdout
    contents = lambda root: {str(p.relative_to(tmp_path / root)): p.read_bytes() for p in (tmp_path / root).rglob("*") if p.is_file()}
    assert contents("one") == contents("two") and len(contents("one")) == 7

@pytest.mark.parametrize("wrong, said", [(dict(dataset="ucf"), "dataset='ucf': choose one of ministreet, folder, "), (dict(stride="4"), "stride='4': expected int"), (dict(root="nowhere"), "root='nowhere': no such folder"), (dict(patches=1), "patches=1: expected bool"),
                                         (dict(root=""), "root='': no such folder"), (dict(crops=5), "crops=5"), (dict(shard="1/1"), "shard='1/1'"), (dict(mode="all"), "mode='all'"), (dict(stride=-1), "stride=-1"), (dict(k=0), "k=0")], ids=str)
def test_a_wrong_parameter_of_the_job(tmp_path, wrong, said):
    with pytest.raises(FeatureError, match=said): module.ExtractJob(**{"root": str(tmp_path), **wrong})

@pytest.mark.parametrize("name", ["ucf_crime", "shanghaitech"])
def test_a_benchmark_is_extracted_as_it_is(name):
    "Official lists, no videos: every listed video becomes a note, none is lost."
    lists = SHARED.parent / "annotations" / name
    if not lists.is_dir(): pytest.skip("official lists are not here (../shared/annotations)")
    job = module.ExtractJob(dataset=name, root=str(lists), annotations=str(lists))
    assert len(module.open_dataset(job).items()) == {"ucf_crime": 1900, "shanghaitech": 437}[name]

def test_every_dataset_of_the_table_can_be_named():
    from stprompt.datasets import HYPER
    assert set(module.DATASETS) >= set(HYPER)

def test_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(FrozenCLIP, "load", classmethod(lambda cls, *a: cls.from_config(mini_config())))
    for name in ("fight/a", "fight/b", "normal/a", "normal/b"): film(tmp_path / "root" / f"{name}.mp4", 6)
    call = lambda *more: main(["--root", str(tmp_path / "root"), "--store", str(tmp_path / "store"), *more])
    assert call() == 0 and "4 videos extracted" in capsys.readouterr().out and call() == 0 and "4 found" in capsys.readouterr().out
    assert call("--stride", "8") == 2 and "made with stride=4, not 8" in capsys.readouterr().err
    (tmp_path / "root" / "fight" / "c.mp4").write_bytes(b"no")
    assert call() == 1 and "fight/c" in capsys.readouterr().out
    assert call("--shard", "4/4") == 2 and "expected i/n" in capsys.readouterr().err
    assert main(["--root", str(tmp_path / "nowhere"), "--store", str(tmp_path / "store")]) == 2 and "no such folder" in capsys.readouterr().err

@pytest.mark.skipif(not SHARED.is_dir(), reason="real clips are not here (../shared/data)")
def test_real_clips(clip, settings, tmp_path):
    clips = sorted((SHARED / "surv_fight").rglob("*.mp4"))[:2]
    items = [VideoItem(f"clip{n}", p) for n, p in enumerate(clips)] + [VideoItem("ped2", next(p for p in sorted((SHARED / "ucsd_ped2").rglob("*")) if p.is_dir() and len(list(p.glob("*.jpg")) + list(p.glob("*.tif")) + list(p.glob("*.png"))) > 20))]
    store = FeatureStore(tmp_path, dataclasses.replace(settings, stride=16))
    assert len(extract(items, clip, store, progress=False).done) == len(items)
    for item in items:
        f = store.load(item.id)
        assert f.n_frames == probe(item.source).n_frames == len(f.to_frames(np.zeros(len(f.frame)))) and len(f.frame) == -(-f.n_frames // 16) and f.motion.max() > 0
