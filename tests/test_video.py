"""Faults of real files: what the notebook of `video` cannot show in a cell."""
import os
import subprocess
import sys
import threading
import warnings
import wave
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stprompt.video import (
    Frames,
    VideoError,
    VideoWarning,
    check_frames,
    count_frames,
    list_images,
    probe,
    read_all,
    read_frames,
    write_video,
)

SHARED = Path(__file__).resolve().parents[2]/"shared"/"data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="real clips are not here (../shared/data)")


def picture(n, h=48, w=64):
    return np.random.default_rng(n).integers(0, 255, (h, w, 3), dtype=np.uint8)


def encode(path, n=20, h=48, w=64, codec="libx264", pix="yuv420p", rotation=None, **options):
    "Any codec and container, past the module's own writer."
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = w, h, pix
        if rotation is not None: stream.set_display_rotation(rotation)
        for i in range(n):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(i, h, w), format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video")/"clip.mp4", (picture(i) for i in range(40)))


def refuses(path, *words):
    "Every door ends with one sentence that names the file, says the words and nothing else."
    for door in (probe, count_frames, read_all):
        with pytest.raises(VideoError) as caught: door(path)
        message = str(caught.value)
        assert Path(path).name in message and "\n" not in message, message
        assert any(w in message for w in words), (door.__name__, message)
        assert caught.value.__cause__ is None


# ---- files that are not what they seem ----------------------------------------------------------------
def test_missing(tmp_path): refuses(tmp_path/"gone.mp4", "no such file")


def test_empty_file(tmp_path):
    (tmp_path/"empty.mp4").write_bytes(b"")
    refuses(tmp_path/"empty.mp4", "empty (0 bytes)")


@pytest.mark.parametrize("data", [b"hello world\n" * 200, bytes(5000), b"\x89PNG not really" * 9,
                                  b"\xff\xd8\xff" * 500])
def test_not_a_video(tmp_path, data):
    (tmp_path/"fake.mp4").write_bytes(data)
    refuses(tmp_path/"fake.mp4", "cannot be opened", "no frames", "cut short")


def test_truncated_before_its_index(tmp_path, clip):
    (tmp_path/"cut.mp4").write_bytes(clip.read_bytes()[:3000])
    refuses(tmp_path/"cut.mp4", "cut short")


def test_no_video_stream(tmp_path):
    with wave.open(str(tmp_path/"sound.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(16000))
    refuses(tmp_path/"sound.wav", "no video stream")


def test_zero_frames(tmp_path):
    with av.open(str(tmp_path/"zero.avi"), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        container.start_encoding()
    refuses(tmp_path/"zero.avi", "no frames", "cannot be opened")


def test_empty_folder(tmp_path):
    (tmp_path/"notes.txt").write_text("x")
    refuses(tmp_path, "folder of images")


def test_broken_image_is_named(tmp_path):
    for i in range(3): cv2.imwrite(str(tmp_path/f"{i}.png"), picture(i))
    (tmp_path/"1.png").write_bytes(b"")
    (tmp_path/".hidden.png").write_bytes(b"")
    with pytest.raises(VideoError, match="1.png.*cannot be read"): read_all(tmp_path)


# ---- files that are cut or damaged --------------------------------------------------------------------
def test_cut_after_its_index(tmp_path):
    whole = encode(tmp_path/"whole.mp4", 40, movflags="faststart")
    cut = tmp_path/"cut.mp4"
    cut.write_bytes(whole.read_bytes()[:whole.stat().st_size//2])
    with pytest.raises(VideoError, match=r"cut.mp4: cut short or damaged after \d+ frames of 40"):
        read_all(cut)
    with pytest.warns(VideoWarning, match="only these are used"): part = read_all(cut, partial=True)
    assert 5 < len(part) < 40 and part.seen == len(part)
    np.testing.assert_array_equal(part.images, read_all(whole, stop=len(part)).images)
    assert 0 < probe(cut).n_frames < 40 and probe(cut).claimed == 40


@pytest.mark.parametrize("suffix", [".mkv", ".ts", ".avi"])
def test_cut_in_other_containers(tmp_path, suffix):
    whole = encode(tmp_path/f"whole{suffix}", 40, **({} if suffix != ".avi" else dict(codec="mpeg4")))
    cut = tmp_path/f"cut{suffix}"
    cut.write_bytes(whole.read_bytes()[:whole.stat().st_size//2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VideoWarning)
        part = read_all(cut, partial=True)
    assert 5 < len(part) < 40
    np.testing.assert_array_equal(part.index, np.arange(len(part)))


def test_lying_frame_count(tmp_path, clip):
    "An avi header that claims 200 frames where 40 are."
    film = encode(tmp_path/"lie.avi", 40, codec="mpeg4")
    data = film.read_bytes()
    for tag, offset in ((b"avih", 8 + 16), (b"strh", 8 + 32)):
        at = data.index(tag) + offset
        assert int.from_bytes(data[at:at + 4], "little") == 40
        data = data[:at] + (200).to_bytes(4, "little") + data[at + 4:]
    film.write_bytes(data)
    with pytest.warns(VideoWarning, match="claims 200 frames, 40 are there"): frames = read_all(film)
    info = probe(film)
    assert len(frames) == frames.seen == info.n_frames == 40
    assert info.claimed == 200
    assert info.duration == pytest.approx(1.6)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_lying_frame_rate(tmp_path, suffix):
    "A header that says 25 frames a second where the time stamps say 8: the stamps count."
    film = tmp_path/f"lie{suffix}"
    with av.open(str(film), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for i in range(20):
            frame = av.VideoFrame.from_ndarray(picture(i), format="rgb24")
            frame.pts, frame.time_base = 125*i, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    frames, info = read_all(film), probe(film)
    np.testing.assert_allclose(frames.time, np.arange(20)/8, atol=2e-3)
    assert info.n_frames == 20
    assert info.fps == pytest.approx(8, rel=1e-3)
    assert info.duration == pytest.approx(2.5, rel=1e-3)


def test_size_change_midway(tmp_path):
    parts = [encode(tmp_path/f"{i}.h264", 10, *size).read_bytes()
             for i, size in enumerate([(48, 64), (64, 96)])]
    film = tmp_path/"change.h264"
    film.write_bytes(b"".join(parts))
    with pytest.raises(VideoError, match=r"change.h264: the picture size changes from 48 x "
                       r"64 to 64 x 96 .* at frame 10"):
        read_all(film)
    with pytest.warns(VideoWarning, match="at frame 10"): frames = read_all(film, size=(48, 64))
    assert frames.images.shape == (20, 48, 64, 3)
    assert frames.time[-1] == pytest.approx(19/25)     # no time stamps: nominal rate


def test_size_change_in_a_folder(tmp_path):
    for i in range(4): cv2.imwrite(str(tmp_path/f"{i}.png"), picture(i, 48, 64 if i < 2 else 66))
    with pytest.raises(VideoError, match="48 x 64 to 48 x 66 .* at frame 2"): read_all(tmp_path)
    read_all(tmp_path, stop=2)                                                    # nothing wrong before it


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 10**6), noise=st.binary(min_size=1, max_size=64), cut=st.booleans())
def test_any_damage_is_a_sentence_or_good_frames(tmp_path, clip, at, noise, cut):
    "Bytes overwritten anywhere: frames in order or a VideoError; no other error, no wrong number."
    data = bytearray(clip.read_bytes())
    at %= len(data)
    data[at:at + len(noise)] = noise
    film = tmp_path/"noisy.mp4"
    film.write_bytes(data[:at] if cut else data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VideoWarning)
        try: frames = read_all(film)
        except VideoError as error: assert "noisy.mp4" in str(error)
        else: assert frames.index.tolist() == list(range(len(frames))) and frames.images.dtype == np.uint8


# ---- unusual but good ---------------------------------------------------------------------------------
def test_odd_size(tmp_path):
    film = encode(tmp_path/"odd.mkv", 5, 33, 47, codec="ffv1", pix="bgr0")
    frames = read_all(film)
    assert probe(film).size == (33, 47) and frames.images.shape == (5, 33, 47, 3)
    np.testing.assert_array_equal(frames.images[3], picture(3, 33, 47))            # ffv1 is lossless: exact
    again = write_video(tmp_path/"again.mp4", frames.images, crf=0)
    assert read_all(again).images.shape == (5, 34, 48, 3)


def test_one_frame(tmp_path):
    one = write_video(tmp_path/"one.mp4", [picture(0)])
    frames = read_all(one, stride=16)
    assert frames.index.tolist() == [0]
    assert frames.time.tolist() == [0]
    assert probe(one).n_frames == 1
    assert probe(one).duration > 0


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".avi"])
def test_containers_start_at_second_zero(tmp_path, suffix):
    film = encode(tmp_path/f"film{suffix}", 20)
    frames = read_all(film)
    np.testing.assert_allclose(frames.time, np.arange(20)/25, atol=2e-3)
    assert probe(film).n_frames == 20 and probe(film).fps == pytest.approx(25, rel=.02)


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_phone_rotation(tmp_path, rotation):
    "The note 'turn by r degrees counter-clockwise' gives the picture np.rot90 gives."
    film = encode(tmp_path/"phone.mov", 2, 48, 64, codec="mpeg4", rotation=rotation)
    with av.open(str(film)) as container: stored = next(container.decode(video=0)).to_ndarray(format="rgb24")
    shown = read_all(film).images[0]
    np.testing.assert_array_equal(shown, np.rot90(stored, rotation//90))
    assert probe(film).size == shown.shape[:2] == ((64, 48) if rotation % 180 else (48, 64))


def test_variable_frame_rate_survives_stride(tmp_path):
    times = np.cumsum(np.random.default_rng(0).uniform(.02, .3, 40))
    times -= times[0]
    film = write_video(tmp_path/"vfr.mp4", (picture(i) for i in range(40)), times=times)
    frames = read_all(film, stride=7, start=3)
    np.testing.assert_allclose(frames.time, times[3::7], atol=1e-4)
    assert probe(film).fps == pytest.approx(39/times[-1], rel=1e-4)


@settings(max_examples=60, deadline=None)
@given(stride=st.integers(1, 50), start=st.integers(0, 39), length=st.one_of(st.none(), st.integers(1, 60)),
       chunk=st.integers(1, 50))
def test_selection_is_python_slicing(clip, stride, start, length, chunk):
    stop = None if length is None else start + length
    parts = list(read_frames(clip, stride=stride, start=start, stop=stop, chunk=chunk, size=(8, 8)))
    assert np.concatenate([p.index for p in parts]).tolist() == list(range(40))[start:stop:stride]
    assert all(len(p) == chunk for p in parts[:-1]) and 0 < len(parts[-1]) <= chunk
    assert parts[-1].seen == min(40, stop or 40)


@pytest.mark.parametrize("options", [dict(stride=0), dict(stride=1.5), dict(start=-1), dict(start=3, stop=3),
                                     dict(chunk=0), dict(size=(1,)), dict(fps=0)])
def test_impossible_requests(clip, options):
    with pytest.raises(VideoError, match=list(options)[-1]): read_frames(clip, **options)


@pytest.mark.parametrize("frames, why", [
    (picture(0), r"expected uint8 \[N, H, W, 3\], found uint8 \[48, 64, 3\]; read them with stprompt.video"),
    (picture(0)[None] / 255, r"found float64 \[1, 48, 64, 3\]"),
    (picture(0)[None, ..., :1], r"found uint8 \[1, 48, 64, 1\]"),
    ([picture(0), picture(0, 50)], "pictures of different sizes; encode them one by one")])
def test_frames_from_elsewhere_are_checked(frames, why):
    with pytest.raises(VideoError, match=why): check_frames(frames)
    with pytest.raises(VideoError, match=why): check_frames(Frames(frames, np.arange(1), np.arange(1) / 25))


def test_start_past_the_end(clip):
    with pytest.raises(VideoError, match="start=40 lies past its end, it has 40 frames"):
        read_all(clip, start=40)


# ---- writing ------------------------------------------------------------------------------------------
def test_a_failing_source_leaves_nothing(tmp_path):
    old = write_video(tmp_path/"film.mp4", [picture(0)]).read_bytes()
    def source():
        yield picture(0)
        raise RuntimeError("the renderer broke")
    with pytest.raises(RuntimeError): write_video(tmp_path/"film.mp4", source())
    assert (tmp_path/"film.mp4").read_bytes() == old and os.listdir(tmp_path) == ["film.mp4"]


@pytest.mark.parametrize("images", [[picture(0), picture(0, 50)], [picture(0)/255], [picture(0)[..., 0]],
                                    []])
def test_wrong_pictures(tmp_path, images):
    with pytest.raises(VideoError, match="film.mp4"): write_video(tmp_path/"film.mp4", images)
    assert os.listdir(tmp_path) == []


def test_the_same_bytes_again(tmp_path):
    "x264's mbtree gives another file once in 15 times on these pictures: 50 equal ones are no luck."
    def ball(n, h=96, w=160):
        image = np.full((h, w, 3), (60 + n, 70 + n, 90), np.uint8)
        image[h*2//3:] //= 2
        return cv2.circle(image, (4 + 2*n, h*2//3 - 8), 6, (240, 200, 40), -1)
    rng, keep, balls = np.random.default_rng(0), [], [ball(n) for n in range(60)]
    files = set()
    for _ in range(50):
        keep = keep[-20:] + [rng.bytes(rng.integers(1, 300_000))]                  # stirs the heap
        files.add(write_video(tmp_path/"film.mp4", balls).read_bytes())
    assert len(files) == 1


def test_unknown_container(tmp_path):
    with pytest.raises(VideoError, match="film.xyz"): write_video(tmp_path/"film.xyz", [picture(0)])
    assert os.listdir(tmp_path) == []


def test_written_form(tmp_path):
    film = write_video(tmp_path/"film.mp4", (picture(i) for i in range(5)), fps=30)
    with av.open(str(film)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 30)


def test_parallel_writers_of_one_file(tmp_path):
    writers = [threading.Thread(target=write_video, args=(tmp_path/"film.mp4", [picture(0)] * 10))
               for _ in range(4)]
    for w in writers: w.start()
    for w in writers: w.join()
    assert os.listdir(tmp_path) == ["film.mp4"] and count_frames(tmp_path/"film.mp4") == 10


# ---- memory -------------------------------------------------------------------------------------------
PEAK = """
import resource, sys
from stprompt.video import read_frames
n = sum(len(f) for f in read_frames(sys.argv[1], chunk=16))
print(n, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_length(tmp_path):
    noise = [picture(i, 240, 320) for i in range(8)]
    peaks = []
    # 1000 frames are 230 MB when kept
    for n in (100, 1000):
        film = write_video(tmp_path/f"{n}.mp4", (noise[i % 8] for i in range(n)), crf=45, preset="ultrafast")
        done = subprocess.run([sys.executable, "-c", PEAK, str(film)], capture_output=True, text=True,
                              check=True, cwd=Path(__file__).parents[1])
        read, peak = map(int, done.stdout.split())
        assert read == n
        peaks.append(peak)
    assert peaks[1] < 1.10 * peaks[0], f"{peaks[0]//1024} MB for 100 frames, {peaks[1]//1024} MB for 1000"


# ---- real footage -------------------------------------------------------------------------------------
@needs_shared
def test_real_clips():
    for film in sorted(SHARED.glob("surv_fight/*/*.mp4"))[::20]:
        info, n = probe(film), count_frames(film)
        assert info.n_frames == n and 20 <= n <= 142 and 200 <= info.size[0] <= 720
        frames = read_all(film, stride=16)
        assert frames.seen == n
        assert frames.images.shape[1:3] == info.size
        assert np.all(np.diff(frames.time) > 0)


@needs_shared
def test_real_image_folder():
    folder = SHARED/"ucsd_ped2"/"testing"/"frames"/"01"
    info, frames = probe(folder, fps=10), read_all(folder, stride=50, fps=10)
    assert info.size == (240, 360) and info.n_frames == frames.seen == len(list_images(folder)) == 180
    assert frames.time.tolist() == [0, 5, 10, 15]
