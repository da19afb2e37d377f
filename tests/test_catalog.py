"Every data set by its name: parameters checked before any work, and nothing missing in silence."
from pathlib import Path

import pytest

from stprompt import catalog
from stprompt.catalog import DATASETS, OPENERS, CatalogError, Source, open_benchmark, texts_of
from stprompt.datasets import HYPER, VideoItem

SHARED = Path(__file__).parents[2] / "shared"


def clips(root, names=("fight/a", "fight/b", "noFight/a", "noFight/b")):
    "Class folders of files that nobody looks into yet."
    for name in names:
        path = root / f"{name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


@pytest.mark.parametrize(
    "wrong, said",
    [
        (dict(dataset="ucf"), "dataset='ucf': choose one of ministreet, folder, "),
        (dict(datset="csv"), "datset='csv': there is no such parameter; did you mean dataset"),
        (dict(root=7), "root=7: expected a text, found int"),
        (dict(root="nowhere"), "root='nowhere': no such folder; dataset='folder' needs an existing folder"),
        (dict(root=""), "root='': no such folder"),
        (dict(root="~no_such_user/clips"), "root='~no_such_user/clips': no such folder"),
        (dict(dataset="csv"), "root='.*': no such list; dataset='csv' needs the existing list"),
        (dict(dataset="ucf_crime", root="nowhere"), "no such folder; dataset='ucf_crime' needs the"),
        (dict(size="huge"), "size='huge': choose one of small, full"),
        (dict(seed=-1), "seed=-1: expected a whole number from 0"),
        (dict(seed=2**31), "seed=2147483648: expected a whole number from 0"),
        (dict(seed=True), "seed=True: .* found bool"),
        (dict(texts="fight"), "texts='fight': expected 'label: words; label: words', found 'fight'"),
        (dict(texts="a: b; : c"), "texts='a: b; : c': expected .* found ''"),
        (dict(dataset="ucf_crime", texts="a: b"), "texts='a: b': only one's own data .folder, csv. takes"),
        (dict(dataset="ministreet", root="", texts="a: b"), "ministreet has its own"),
        (dict(features="nowhere"), "features='nowhere': VadCLIP published .* found 'folder'"),
        (dict(dataset="ucf_crime", features="nowhere"), "features='nowhere': no such folder"),
        (dict(validation=.6), "validation=0.6: expected a number from -1"),
        (dict(validation=-.5), "validation=-0.5: expected a share from 0 to 0.5, or -1"),
        (dict(dataset="ministreet", root="", validation=.2), "ministreet comes with its own validation"),
        (dict(dataset="ubnormal", validation=.2), "ubnormal comes with its own validation split"),
    ],
    ids=str,
)
def test_a_wrong_parameter_of_a_source(tmp_path, wrong, said):
    with pytest.raises(CatalogError, match=said):
        Source(**{"dataset": "folder", "root": str(tmp_path), **wrong})


def test_a_list_is_no_folder(tmp_path):
    (tmp_path / "list.csv").write_text("path,label\n")
    with pytest.raises(CatalogError, match="no such folder"):
        Source(dataset="folder", root=str(tmp_path / "list.csv"))
    with pytest.raises(CatalogError, match="no such list"): Source(dataset="csv", root=str(tmp_path))
    assert Source(dataset="csv", root=str(tmp_path / "list.csv")).root


def test_words_for_labels():
    assert texts_of(" fight : two people fighting;run: someone running ; ") == {
        "fight": "two people fighting", "run": "someone running"}
    assert texts_of("time: at 10:30") == {"time": "at 10:30"} and texts_of("") == {}


def test_every_dataset_of_the_table_can_be_named():
    assert set(DATASETS) >= set(HYPER) and tuple(OPENERS) == DATASETS


def test_ones_own_folder_and_list(tmp_path, monkeypatch):
    "Words, seed and a place that begins with ~ reach the benchmark; a list is opened where its folder is."
    clips(tmp_path / "clips", [f"{label}/{n}" for label in ("fight", "noFight") for n in range(12)])
    monkeypatch.setenv("HOME", str(tmp_path))
    here = dict(dataset="folder", root="~/clips", texts="fight: two people fighting")
    one, two = (open_benchmark(Source(**here, seed=seed)) for seed in (0, 1))
    assert one.name == "clips" and len(one.items()) == 24
    assert one.classes == {"Normal": "normal", "fight": "two people fighting"}
    assert one.test != two.test and one.test == open_benchmark(Source(**here)).test
    rows = [f"fight/{n}.mp4,fight" for n in range(12)] + [f"noFight/{n}.mp4,Normal" for n in range(12)]
    (tmp_path / "clips" / "list.csv").write_text("path,label\n" + "\n".join(rows))
    listed = open_benchmark(Source(dataset="csv", root="~/clips/list.csv", texts="fight: a fight"))
    assert len(listed.items()) == 24 and listed.classes["fight"] == "a fight"


def test_missing_videos_stop_a_training(tmp_path, monkeypatch):
    root = clips(tmp_path / "clips")
    source, benchmark = Source(dataset="folder", root=str(root)), open_benchmark(Source("folder", str(root)))
    gone = benchmark.items()[0].source
    gone.unlink()
    monkeypatch.setitem(OPENERS, "folder", lambda source, root, lists: benchmark)
    said = f"clips: 1 of 4 listed videos are not there, the first one {gone}; put the videos below root='"
    with pytest.raises(CatalogError, match=said): open_benchmark(source)
    assert isinstance(open_benchmark(source, complete=False).items()[0], VideoItem)


@pytest.mark.parametrize("name, n", [("ucf_crime", 1900), ("shanghaitech", 437)])
def test_a_benchmark_is_listed_as_it_is(name, n):
    "Official lists, no videos: an extraction sees every listed video, a training none."
    lists = SHARED / "annotations" / name
    if not lists.is_dir(): pytest.skip("official lists are not here (../shared/annotations)")
    source = Source(dataset=name, root=str(lists), annotations=str(lists))
    assert len(open_benchmark(source, complete=False).items()) == n
    with pytest.raises(CatalogError, match=f"{n} of {n} listed videos are not there"): open_benchmark(source)


@pytest.mark.parametrize("name, n", [("ucf_crime", 1610), ("shanghaitech", 238)])
def test_the_share_of_validation_videos(name, n):
    "0 trains on every video; the benchmark's own is 0.15; the test split stays."
    lists = SHARED / "annotations" / name
    if not lists.is_dir(): pytest.skip("official lists are not here (../shared/annotations)")
    opened = {share: open_benchmark(Source(dataset=name, root=str(lists), validation=share), complete=False)
              for share in (-1., 0., .15, .4)}
    count = {share: (len(one.train), len(one.validation)) for share, one in opened.items()}
    assert count[0.] == (n, 0) and count[-1.] == count[.15]
    assert .1 < count[.15][1] / n < .2 and .35 < count[.4][1] / n < .45     # each class on its own
    assert len({one.test for one in opened.values()}) == 1


def test_official_validation_videos_are_never_trained_on():
    lists = SHARED / "annotations" / "ubnormal"
    if not lists.is_dir(): pytest.skip("official lists are not here (../shared/annotations)")
    with_it, without = (open_benchmark(Source(dataset="ubnormal", root=str(lists), validation=share),
                                       complete=False) for share in (-1., 0.))
    assert with_it.train == without.train and len(with_it.validation) == 64 and not without.validation


def test_the_bundled_benchmark_needs_no_place(monkeypatch, tmp_path):
    asked, benchmark = [], open_benchmark(Source("folder", str(clips(tmp_path))))
    monkeypatch.setattr(catalog, "ministreet", lambda *place: asked.append(place) or benchmark)
    for source in (Source(), Source(size="full", root=str(tmp_path / "rendered"))): open_benchmark(source)
    assert asked == [(None, "small"), (tmp_path / "rendered", "full")]
