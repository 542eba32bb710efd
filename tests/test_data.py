"""Data: found in the right order, fetched past bad sources, verified, never executed. All on loopback."""

import contextlib
import hashlib
import io
import json
import os
import pickle
import re
import socket
import subprocess
import sys
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from stn_cifar import data as data_module
from stn_cifar import download as download_module
from stn_cifar.config import Config
from stn_cifar.data import DataError, NoDataError, Split, load_data

N = 4  # images in a batch of the fake release
REPOSITORY = Path(__file__).parents[1]


def md5_of(content):
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def cifar(**fields):
    return Config(**{"dataset": "cifar10", "device": "cpu", **fields})


def pickled_batch(pixels, labels):
    # protocol 4: at 2, Python 3 writes bytes as a call of _codecs.encode, which no official file holds
    return pickle.dumps({b"data": pixels, b"labels": labels}, protocol=4)


def packed(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


class Release:
    """A small stand-in for the official release: the right structure, few images, sums of its own."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.pixels = rng.integers(0, 256, (6 * N, 3072), dtype=np.uint8)
        self.labels = rng.integers(0, 10, 6 * N).tolist()
        self.files = {name: pickled_batch(self.pixels[i * N:(i + 1) * N], self.labels[i * N:(i + 1) * N])
                      for i, name in enumerate(data_module.BATCHES)}
        # in an order of its own, as the official archive has, among files that nobody asked for
        self.archive = packed({"cifar-10-batches-py/readme.html": b"hello", **{
            f"cifar-10-batches-py/{name}": self.files[name] for name in reversed(self.files)}})

    def constants(self):
        """The module constants that make stn_cifar.data expect this release."""
        return {"ARCHIVE": (len(self.archive), md5_of(self.archive)), "IMAGES_PER_BATCH": N,
                "BATCHES": {name: (len(raw), md5_of(raw)) for name, raw in self.files.items()}}

    def unpack(self, place):
        folder = Path(place) / "cifar-10-batches-py"
        folder.mkdir(parents=True)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        return folder

    def assert_is(self, data):
        assert data.name == "CIFAR-10"
        images = torch.from_numpy(self.pixels).view(-1, 3, 32, 32)
        assert torch.equal(torch.cat([data.train.images, data.test.images]), images)
        assert torch.cat([data.train.labels, data.test.labels]).tolist() == self.labels


@pytest.fixture
def release(monkeypatch, tmp_path):
    """The fake release, expected by the module; an empty working folder, no place named, no sources."""
    release = Release()
    for name, value in release.constants().items():
        monkeypatch.setattr(data_module, name, value)
    monkeypatch.setattr(download_module, "SOURCES", ())
    monkeypatch.setattr(download_module, "TIMEOUT", 0.5)
    monkeypatch.setattr(download_module, "SPEED_WINDOW", 0.1)
    monkeypatch.delenv("STN_CIFAR_DATA", raising=False)
    monkeypatch.setenv("no_proxy", "*")
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return release


class Server:
    """An HTTP server on loopback; `add(name, behaviour)` returns a source that behaves so."""

    def __init__(self):
        self.behaviours, self.requests, self.closing = {}, [], threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                server.requests.append(self.path[1:])
                with contextlib.suppress(OSError):  # the client may hang up: it is here to
                    server.behaviours[self.path[1:]](self)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def add(self, name, behaviour):
        self.behaviours[name] = behaviour
        return name, f"http://127.0.0.1:{self.http.server_port}/{name}"

    def close(self):
        self.closing.set()
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


def send(content, length="its own", piece=None, pause=0.0, before=lambda: None):
    """A behaviour: sends `content`, in pieces with pauses if asked, declaring a Content-Length or None."""

    def behaviour(handler):
        before()
        handler.send_response(200)
        if length is not None:
            handler.send_header("Content-Length", str(len(content) if length == "its own" else length))
        handler.end_headers()
        for start in range(0, len(content), piece or len(content)):
            handler.wfile.write(content[start:start + (piece or len(content))])
            time.sleep(pause)

    return behaviour


def sources(monkeypatch, *pairs):
    monkeypatch.setattr(download_module, "SOURCES", pairs)


def left_behind(place="data"):
    return sorted(os.listdir(place)) if os.path.isdir(place) else []


def dead_source(name="dead"):
    with socket.socket() as probe:  # a port that was free a moment ago: connections are refused
        probe.bind(("127.0.0.1", 0))
        return name, f"http://127.0.0.1:{probe.getsockname()[1]}/"


# --- reading and the search order


def test_folder_and_archive_give_the_same_data(release, tmp_path):
    release.unpack(tmp_path / "folder")
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / "cifar-10-python.tar.gz").write_bytes(release.archive)
    for place in ("folder", "folder/cifar-10-batches-py", "archive", "archive/cifar-10-python.tar.gz"):
        data = load_data(cifar(data_root=str(tmp_path / place)))
        release.assert_is(data)
        assert data.val is None and data.train.poses is None
        assert (len(data.train), len(data.test)) == (5 * N, N)
        assert data.train.images.dtype == torch.uint8 and data.train.images.is_contiguous()
        assert data.train.labels.dtype == torch.int64
        assert len(data.classes) == 10 and data.classes[3] == "cat"
    assert sorted(os.listdir(tmp_path / "archive")) == ["cifar-10-python.tar.gz"]  # nothing was unpacked


def test_search_order(release, monkeypatch, tmp_path):
    """data_root, then $STN_CIFAR_DATA, then ./data: taking away the first gives the next."""
    root, variable = release.unpack(tmp_path / "root"), release.unpack(tmp_path / "variable")
    default = release.unpack("data").absolute()
    read, original = [], data_module._read_verified
    monkeypatch.setattr(data_module, "_read_verified",
                        lambda path, *expected: (read.append(path.absolute()), original(path, *expected))[1])
    monkeypatch.setenv("STN_CIFAR_DATA", str(variable.parent))
    release.assert_is(load_data(cifar(data_root=str(root.parent))))
    assert {path.parent for path in read} == {root}
    read.clear()
    release.assert_is(load_data(cifar()))
    assert {path.parent for path in read} == {variable}
    read.clear()
    monkeypatch.setenv("STN_CIFAR_DATA", "")  # empty is as good as unset
    release.assert_is(load_data(cifar()))
    assert {path.parent for path in read} == {default}


@pytest.mark.parametrize("name", ["data_root", "STN_CIFAR_DATA"])
def test_named_place_without_data(release, monkeypatch, tmp_path, capsys, name):
    """What is named and wrong is never silently passed over: an error, or with "auto" a note."""
    release.unpack("data")
    fields = {"data_root": str(tmp_path / "typo")} if name == "data_root" else {}
    if not fields:
        monkeypatch.setenv("STN_CIFAR_DATA", str(tmp_path / "typo"))
    with pytest.raises(DataError, match=rf"{name}: '.*typo'.* does not hold .*; name a folder"):
        load_data(cifar(**fields))
    release.assert_is(load_data(cifar(dataset="auto", **fields)))
    assert re.search(rf"NOTE: {name}: '.*typo'", capsys.readouterr().out)


def test_val_size(release):
    release.unpack("data")
    whole = load_data(cifar()).train
    for seed in (0, 1):
        data = load_data(cifar(val_size=3, seed=seed))
        assert torch.equal(data.val.images, whole.images[-3:])
        assert torch.equal(data.val.labels, whole.labels[-3:])
        assert torch.equal(data.train.images, whole.images[:-3])
        assert torch.equal(data.train.labels, whole.labels[:-3])
    assert len(load_data(cifar(val_size=len(whole) - 1)).train) == 1
    with pytest.raises(ValueError, match=f"val_size: {len(whole)} is out of range; .* 0 to {len(whole) - 1}"):
        load_data(cifar(val_size=len(whole)))


def test_split_moves_and_slices_all_of_it():
    split = Split(torch.zeros(5, 3, 2, 2, dtype=torch.uint8), torch.arange(5), torch.zeros(5, 2, 3))
    assert (len(split), len(split[1:3]), len(split[1:3].poses)) == (5, 2, 2)
    moved = split.to("meta")
    assert {t.device.type for t in (moved.images, moved.labels, moved.poses)} == {"meta"}


# --- damage and malice


def truncate(raw):
    return raw[:-100]


def flip_a_bit(raw):
    middle = len(raw) // 2
    return raw[:middle] + bytes([raw[middle] ^ 1]) + raw[middle + 1:]


@pytest.mark.parametrize("dataset", ["cifar10", "auto"])
@pytest.mark.parametrize(("damage", "symptom"), [(truncate, "bytes, not"), (flip_a_bit, "has MD5"),
                                                 (lambda raw: b"", "has 0 bytes"), (None, "cannot be read")])
def test_damaged_batch_is_named_and_not_used(release, dataset, damage, symptom):
    path = release.unpack("data") / "data_batch_3"
    path.unlink()
    if damage:
        path.write_bytes(damage(release.files["data_batch_3"]))
    with pytest.raises(DataError, match=rf"data_batch_3 .*{symptom}.*not used") as caught:
        load_data(cifar(dataset=dataset))
    assert not isinstance(caught.value, NoDataError)  # which "auto" would answer with the glyphs


@pytest.mark.parametrize(("damage", "symptom"), [(truncate, "bytes, not"), (flip_a_bit, "has MD5")])
def test_damaged_archive_is_named_and_not_used(release, damage, symptom):
    Path("data").mkdir()
    Path("data/cifar-10-python.tar.gz").write_bytes(damage(release.archive))
    with pytest.raises(DataError, match=rf"cifar-10-python.tar.gz .*{symptom}"):
        load_data(cifar())


def expect_archive(monkeypatch, archive):
    """Puts `archive` in ./data and makes its sum the right one: what now refuses it is not the sum."""
    monkeypatch.setattr(data_module, "ARCHIVE", (len(archive), md5_of(archive)))
    Path("data").mkdir()
    Path("data/cifar-10-python.tar.gz").write_bytes(archive)


@pytest.mark.parametrize("prefix", ["../", "/tmp/", "", "x/cifar-10-batches-py/", "cifar-10-batches-py/../"])
def test_members_are_taken_by_their_exact_name(release, monkeypatch, prefix):
    expect_archive(monkeypatch, packed({f"{prefix}{name}": raw for name, raw in release.files.items()}))
    with pytest.raises(DataError, match=r"does not hold data_batch_1, .*test_batch"):
        load_data(cifar())


def test_member_of_another_size_is_not_read(release, monkeypatch):
    files = {**release.files, "data_batch_2": bytes(10_000_000)}
    expect_archive(monkeypatch, packed({f"cifar-10-batches-py/{name}": raw for name, raw in files.items()}))
    with pytest.raises(DataError, match="does not hold data_batch_2 in the size"):
        load_data(cifar())


class Payload:
    """Pickles as a call that creates a file: the proof that unpickling ran code."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_malicious_pickle_is_refused_and_does_not_run(tmp_path):
    raw = pickle.dumps({b"data": Payload(tmp_path / "ran"), b"labels": [0] * N}, protocol=4)
    with pytest.raises(DataError, match=r"evil is not a CIFAR-10 batch: it asks for (posix|nt)\.mkdir"):
        data_module._parse_batch(Path("evil"), raw)
    assert not (tmp_path / "ran").exists()
    pickle.loads(raw)  # the payload is a live one
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("source", [b"cbuiltins\neval\n.", b"cnumpy\nload\n.",
                                    b"cnumpy.core.multiarray\nset_string_function\n.",
                                    b"\x80\x04\x8c\x05numpy\x8c\x0cf2py.os.exec\x93."])
def test_nothing_else_may_be_named_in_a_pickle(source):
    with pytest.raises(DataError, match="it asks for"):
        data_module._parse_batch(Path("evil"), source)


@pytest.mark.parametrize(("pixels", "labels", "message"), [
    (np.zeros((N, 3072), np.uint8), [0] * N, None),
    (np.zeros((N, 3072), np.float32), [0] * N, "data must be uint8"),
    (np.zeros((N + 1, 3072), np.uint8), [0] * N, "data must be uint8"),
    (np.zeros((N, 32, 32, 3), np.uint8), [0] * N, "data must be uint8"),
    (np.asfortranarray(np.zeros((N, 3072), np.uint8)), [0] * N, "data must be uint8"),
    (np.array([[None] * 3072] * N), [0] * N, "data must be uint8"),
    (list(range(N)), [0] * N, "is not a CIFAR-10 batch"),
    (np.zeros((N, 3072), np.uint8), [0] * (N - 1), "labels must be"),
    (np.zeros((N, 3072), np.uint8), [0] * (N - 1) + [10], "labels must be"),
    (np.zeros((N, 3072), np.uint8), [0] * (N - 1) + [-1], "labels must be"),
    (np.zeros((N, 3072), np.uint8), [0.5] * N, "labels must be"),
    (np.zeros((N, 3072), np.uint8), "0" * N, "is not a CIFAR-10 batch"),
])
def test_contents_are_checked(monkeypatch, pixels, labels, message):
    monkeypatch.setattr(data_module, "IMAGES_PER_BATCH", N)
    raw = pickled_batch(pixels, labels)
    if message is None:
        assert data_module._parse_batch(Path("batch"), raw)[0].shape == (N, 3, 32, 32)
    else:
        with pytest.raises(DataError, match=message):
            data_module._parse_batch(Path("batch"), raw)


# --- downloading


def test_first_source_that_delivers_is_used(release, server, monkeypatch, capsys):
    sources(monkeypatch, *(server.add(name, send(release.archive)) for name in ("first", "second")))
    release.assert_is(load_data(cifar()))
    assert server.requests == ["first"]
    assert left_behind() == ["cifar-10-python.tar.gz"]
    assert "CIFAR-10 from first: 100%" in capsys.readouterr().err  # the progress bar
    release.assert_is(load_data(cifar()))
    assert server.requests == ["first"]  # the second time it is there


def silent(server, declared_first):
    """A behaviour: nothing at all, or headers and a few bytes and then nothing."""

    def behaviour(handler):
        if declared_first:
            send(bytes(1000), length=None)(handler)
        server.closing.wait()

    return behaviour


BAD_SOURCES = {  # how a source may fail, and what is said of it
    "silent": (lambda r, s: silent(s, declared_first=False), "timed out"),
    "silent_later": (lambda r, s: silent(s, declared_first=True), "timed out"),
    "not_found": (lambda r, s: lambda h: h.send_error(404), "404"),
    "no_http": (lambda r, s: lambda h: h.wfile.write(b"nonsense\r\n\r\n"), "nonsense"),
    "other_bytes": (lambda r, s: send(flip_a_bit(r.archive)), "sends another file, of MD5 "),
    "half": (lambda r, s: send(r.archive[:-1000], length=len(r.archive)), r"ended after \d+ of \d+ bytes"),
    "half_undeclared": (lambda r, s: send(r.archive[:-1000], length=None), r"ended after \d+ of \d+ bytes"),
    "error_page": (lambda r, s: send(b"<html>come back later</html>"), r"offers 28 bytes, not \d+"),
    "oversize": (lambda r, s: send(r.archive + b"x"), r"offers \d+ bytes, not \d+"),
    "slow": (lambda r, s: send(r.archive, piece=4000, pause=0.05), "slow, .* kB/s"),
}


@pytest.mark.parametrize("kind", BAD_SOURCES)
def test_bad_source_is_given_up_for_the_next(release, server, monkeypatch, capsys, kind):
    behave, symptom = BAD_SOURCES[kind]
    monkeypatch.setattr(download_module, "MIN_SPEED", 1_000_000)
    sources(monkeypatch, server.add(kind, behave(release, server)), server.add("good", send(release.archive)))
    release.assert_is(load_data(cifar()))
    assert server.requests == [kind, "good"]
    assert re.search(rf"given up {kind} \(http.*{symptom}", capsys.readouterr().out)
    assert left_behind() == ["cifar-10-python.tar.gz"]


def test_dripping_source_is_given_up_in_time(release, server, monkeypatch):
    """Bytes that drip in within TIMEOUT are not silence: the clock is read before any buffer is full."""
    drip, ended = send(release.archive[:40], length=len(release.archive), piece=1, pause=0.05), []

    def behaviour(handler):
        drip(handler)  # 2 s; OSError if the client hangs up
        ended.append(True)

    sources(monkeypatch, server.add("drip", behaviour), server.add("good", send(release.archive)))
    release.assert_is(load_data(cifar()))
    assert server.requests == ["drip", "good"]
    assert not ended


def test_endless_stream_is_cut_off(release, server, monkeypatch):
    """The disk never holds more than the file should have, whatever a source that declares no size sends."""

    def endless(handler):
        handler.send_response(200)
        handler.end_headers()
        for _ in range(50):  # endless enough, and yet a failing test comes to an end
            handler.wfile.write(bytes(100_000))

    written, original = [], download_module._fetch

    def fetch(name, url, file, *expected):
        try:
            original(name, url, file, *expected)
        finally:
            written.append(file.tell())

    monkeypatch.setattr(download_module, "_fetch", fetch)
    sources(monkeypatch, server.add("endless", endless))
    with pytest.raises(NoDataError, match=f"sends more than {len(release.archive)} bytes"):
        load_data(cifar())
    assert written[0] <= len(release.archive)
    assert left_behind() == []


def test_slow_is_better_than_none(release, server, monkeypatch):
    """Where all that answers is slow, the first of the slow ones gets a second chance without the limit."""
    monkeypatch.setattr(download_module, "MIN_SPEED", 1_000_000)
    slow = send(release.archive, piece=10_000, pause=0.05)
    sources(monkeypatch, server.add("bad", send(b"?")), server.add("slow1", slow), server.add("slow2", slow))
    release.assert_is(load_data(cifar()))
    assert server.requests == ["bad", "slow1", "slow2", "slow1"]


def test_absent_network_is_one_clear_error(release, monkeypatch):
    sources(monkeypatch, dead_source("one"), dead_source("two"))
    with pytest.raises(NoDataError) as caught:
        load_data(cifar())
    message = str(caught.value)
    for name, url in download_module.SOURCES:  # what each answered
        assert re.search(rf"{name} \({re.escape(url)}\): .*refused", message)
    for remedy in ("place cifar-10-python.tar.gz", "STN_CIFAR_DATA", 'dataset="glyphs"'):
        assert remedy in message
    assert left_behind() == []


def test_unwritable_folder_is_said(release, server, monkeypatch):
    sources(monkeypatch, server.add("good", send(release.archive)))
    Path("data").write_text("a file where the folder should be")
    with pytest.raises(NoDataError, match="File exists: 'data'"):
        load_data(cifar())


def test_interrupted_download_leaves_nothing(release, server, monkeypatch):
    def interrupted(name, url, file, *expected):
        file.write(b"half")
        assert len(left_behind()) == 1  # or the next lines would prove nothing
        raise KeyboardInterrupt

    monkeypatch.setattr(download_module, "_fetch", interrupted)
    sources(monkeypatch, ("any", "http://127.0.0.1:9/"))
    with pytest.raises(KeyboardInterrupt):
        load_data(cifar())
    assert left_behind() == []


CHILD = """
import json, sys
from pathlib import Path
from stn_cifar import data, download
from stn_cifar.config import Config
for name, value in json.load(sys.stdin).items():
    setattr(download if name == "SOURCES" else data, name, value)
loaded = data.load_data(Config(dataset="cifar10", device="cpu"))
print("sum", int(loaded.train.images.sum()) + int(loaded.test.images.sum()))
"""


def test_two_processes_at_once(release, server, monkeypatch):
    """Both download into the same folder at the same moment; both get the data, and one archive is left."""
    barrier = threading.Barrier(2, timeout=30)
    source = server.add("shared", send(release.archive, piece=10_000, pause=0.02, before=barrier.wait))
    constants = json.dumps({**release.constants(), "SOURCES": [source]}).encode()
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    children = [subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                 stderr=subprocess.PIPE, env=environment) for _ in range(2)]
    for child in children:
        child.stdin.write(constants)
        child.stdin.close()
        child.stdin = None
    outputs = [child.communicate(timeout=60) for child in children]
    assert [child.returncode for child in children] == [0, 0], outputs
    assert [int(out.split()[-1]) for out, _ in outputs] == [release.pixels.sum(dtype=np.int64)] * 2
    assert server.requests == ["shared", "shared"]
    assert left_behind() == ["cifar-10-python.tar.gz"]


# --- glyphs


@pytest.fixture
def small_glyphs(monkeypatch):
    calls = []

    def make_glyphs(count, seed):
        calls.append((count, seed))
        n = count // 1000
        images = torch.full((n, 3, 32, 32), seed, dtype=torch.uint8)
        return images, torch.zeros(n, dtype=torch.int64), torch.eye(2, 3).expand(n, 2, 3).clone()

    monkeypatch.setattr(data_module, "make_glyphs", make_glyphs)
    return calls


def test_glyphs(release, small_glyphs):
    release.unpack("data")  # there, but not asked for
    data = load_data(Config(dataset="glyphs", device="cpu", val_size=10, seed=7))
    assert small_glyphs == [(50_000, 0), (10_000, 1)]  # the same data set whatever the seed
    assert data.name == "glyphs" and data.classes == tuple(data_module.GLYPH_CLASSES)
    splits = (data.train, data.val, data.test)
    assert [(len(split), len(split.poses)) for split in splits] == [(40, 40), (10, 10), (10, 10)]


def test_auto_falls_back_to_glyphs_and_says_so(release, small_glyphs, monkeypatch, capsys):
    sources(monkeypatch, dead_source())
    data = load_data(cifar(dataset="auto"))
    assert data.name == "glyphs" and len(data.train) == 50
    banner = capsys.readouterr().out
    assert "THIS IS NOT CIFAR-10" in banner and "refused" in banner and "STN_CIFAR_DATA" in banner
    assert len(banner.splitlines()) >= 6 and "=" * 80 in banner
    with pytest.raises(NoDataError):
        load_data(cifar())


def test_auto_takes_cifar10_where_it_is(release, small_glyphs, capsys):
    release.unpack("data")
    release.assert_is(load_data(cifar(dataset="auto")))
    assert small_glyphs == [] and capsys.readouterr().out == ""


# --- the real thing


def test_real_cifar10(monkeypatch):
    """The pixels, in the order N x 32 x 32 x 3, are those that the official release is known to hold."""
    places = (os.environ.get("STN_CIFAR_DATA"), REPOSITORY.parent / "shared" / "datasets")
    place = next((p for p in places if p and data_module._look_in(Path(p))), None)
    if place is None:
        pytest.skip("CIFAR-10 is not here: set STN_CIFAR_DATA to the folder that holds it")
    data = load_data(cifar(data_root=str(place)))
    sums = [md5_of(s.images.permute(0, 2, 3, 1).contiguous().numpy()) for s in (data.train, data.test)]
    assert sums == ["17e2cb5a4119d89a4a13e02b91701bff", "6d2714505047e13831cd876923568712"]
    assert data.train.labels.bincount().tolist() == [5000] * 10
    assert data.test.labels[:4].tolist() == [3, 8, 8, 0]
    assert data.classes[data.test.labels[0]] == "cat"
