"Several stores from one look at each video hold what each extraction alone would store."
from dataclasses import replace

import numpy as np
import pytest

from stprompt.clip import FrozenCLIP, mini_config
from stprompt.datasets import VideoItem
from stprompt.features import FeatureError, FeatureSettings, FeatureStore, extract, failures
from stprompt.files import Claims
from stprompt.one_pass import extract_into
from stprompt.video import write_video


@pytest.fixture(scope="module")
def clip(): return FrozenCLIP.from_config(mini_config())


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    folder, noise = tmp_path_factory.mktemp("films"), np.random.default_rng(2)
    films = noise.integers(0, 256, (3, 40, 48, 64, 3), np.uint8)
    return [VideoItem(f"a/{n}", write_video(folder/f"{n}.mp4", film, 25)) for n, film in enumerate(films)]


def three(clip, folder):
    "K of 3 and 12, and all windows."
    asked = [FeatureSettings(clip.identity, stride=2, k=k, keep_windows=kept)
             for k, kept in ((3, False), (12, False), (12, True))]
    return [FeatureStore(folder/str(n), one) for n, one in enumerate(asked)]


def counted(clip, monkeypatch):
    "How many pictures the backbone sees."
    seen, encode = [], FrozenCLIP.encode
    monkeypatch.setattr(FrozenCLIP, "encode", lambda self, images, *how: (
        seen.append(len(images)), encode(self, images, *how))[1])
    return seen


def test_each_frame_is_encoded_once_and_each_store_is_what_extract_makes(clip, items, tmp_path, monkeypatch):
    stores, seen = three(clip, tmp_path), counted(clip, monkeypatch)
    done = extract_into(items, clip, stores, progress=False)
    assert (done.done, done.failed, sum(seen)) == ([item.id for item in items], [], 60)
    for store, other in zip(stores, three(clip, tmp_path/"alone")):
        extract(items, clip, other, progress=False)
        for item in items: assert store.path(item.id).read_bytes() == other.path(item.id).read_bytes()
    assert sum(seen) == 4 * 60 and extract_into(items, clip, stores, progress=False).done == []


def test_what_one_store_has_is_left_to_extract(clip, items, tmp_path, monkeypatch):
    "As after a job that was killed between two stores."
    stores = three(clip, tmp_path)
    extract(items[:1], clip, stores[1], progress=False)
    done = extract_into(items, clip, stores, progress=False)
    assert (done.done, done.skipped) == ([item.id for item in items[1:]], [items[0].id])
    assert [store.has(items[0].id) for store in stores] == [False, True, False]
    assert extract(items, clip, stores[0], progress=False).done == [items[0].id]


def test_a_video_that_another_process_is_at_work_on_is_left_to_it(clip, items, tmp_path):
    stores, other = three(clip, tmp_path), Claims(tmp_path/"2")
    assert other.take(items[1].id)
    done = extract_into(items, clip, stores, progress=False)
    assert done.done == [items[0].id, items[2].id] and not stores[0].has(items[1].id)
    other.close()
    assert extract_into(items, clip, stores, progress=False).done == [items[1].id]     # all claims are free


def test_a_video_that_cannot_be_read_is_noted_in_each_store(clip, items, tmp_path):
    (tmp_path/"bad.mp4").write_bytes(b"no film")
    stores, bad = three(clip, tmp_path), VideoItem("bad", tmp_path/"bad.mp4")
    done = extract_into([bad, items[0]], clip, stores, progress=False)
    assert done.done == [items[0].id] and [id for id, _ in done.failed] == ["bad"]
    assert [list(failures(store)) for store in stores] == [["bad"]] * 3


@pytest.mark.parametrize("change", [{"stride": 4}, {"mode": "crop"}])
def test_stores_with_other_windows_are_refused_before_any_work(clip, items, tmp_path, change):
    store = three(clip, tmp_path)[0]
    with pytest.raises(FeatureError, match="alone, found"):
        extract_into(items, clip, [store, FeatureStore(tmp_path/"x", replace(store.settings, **change))])
    with pytest.raises(FeatureError, match="0 stores"): extract_into(items, clip, [])
