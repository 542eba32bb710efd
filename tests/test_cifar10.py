"""CIFAR-10: found, verified, fetched past bad and hostile sources. All on loopback, in a moment."""

import contextlib
import errno
import io
import os
import pickle
import re
import shutil
import socket
import ssl
import subprocess
import tarfile
import tempfile
import threading
import time
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from stn_cifar.data import DataError, NoDataError, cifar10

N = 4  # images in a batch of the fake release


def sums(content):
    return len(content), md5(content, usedforsecurity=False).hexdigest()


def packed(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


class Release:
    """A small stand-in for the official release: its structure, few images, sums of its own."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.pixels = rng.integers(0, 256, (6 * N, 3072), dtype=np.uint8)
        self.labels = rng.integers(0, 10, 6 * N).tolist()
        self.files = {}
        for i, name in enumerate(cifar10.BATCHES):
            part = slice(i * N, (i + 1) * N)
            batch = {b"data": self.pixels[part], b"labels": self.labels[part]}
            self.files[name] = pickle.dumps(batch, protocol=2)
        # in an order of its own, as the official archive has, among files that nobody asked for
        self.archive = packed({"cifar-10-batches-py/readme.html": b"hello", **{
            f"cifar-10-batches-py/{name}": self.files[name] for name in reversed(self.files)}})

    def unpack(self, folder):
        folder = Path(folder)
        folder.mkdir(parents=True)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        return folder

    def is_loaded(self, *args, **kwargs):
        """Does cifar10.load(...) give exactly this?"""
        images, labels = cifar10.load(*args, **kwargs)
        assert images.dtype == torch.uint8 and labels.dtype == torch.int64
        assert images.shape == (6 * N, 3, 32, 32) and images.is_contiguous()
        return (images.flatten(1).tolist() == self.pixels.tolist()
                and labels.tolist() == self.labels)


@pytest.fixture
def release(monkeypatch, tmp_path):
    """The fake release, expected by the module; an empty working folder, no place, no source."""
    release = Release()
    monkeypatch.setattr(cifar10, "ARCHIVE", sums(release.archive))
    monkeypatch.setattr(cifar10, "BATCHES", {n: sums(raw) for n, raw in release.files.items()})
    monkeypatch.setattr(cifar10, "SOURCES", ())
    monkeypatch.setattr(cifar10, "TIMEOUT", 30)
    monkeypatch.setattr(cifar10, "SPEED", 0)
    monkeypatch.setattr(cifar10, "SPEED_WINDOW", 0.15)
    monkeypatch.delenv("STN_CIFAR_DATA", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy",
                 "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return release


# --- the search order


def test_folder_and_archive_give_the_same(release, tmp_path):
    release.unpack(tmp_path / "folder" / "cifar-10-batches-py")
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / "cifar-10-python.tar.gz").write_bytes(release.archive)
    for place in ("folder", "folder/cifar-10-batches-py", "archive",
                  "archive/cifar-10-python.tar.gz"):
        assert release.is_loaded(tmp_path / place) and release.is_loaded(str(tmp_path / place))
    assert os.listdir(tmp_path / "archive") == ["cifar-10-python.tar.gz"]  # nothing was unpacked


def test_data_root_then_the_variable_then_data(release, monkeypatch, tmp_path):
    """Taking away the first place gives the next."""
    root, variable, default = (release.unpack(Path(place) / "cifar-10-batches-py") for place in
                               (tmp_path / "root", tmp_path / "variable", "data"))
    monkeypatch.setenv("STN_CIFAR_DATA", str(variable.parent))
    assert cifar10.find(root.parent) == root
    assert cifar10.find() == variable
    monkeypatch.setenv("STN_CIFAR_DATA", "")  # empty is as good as unset
    assert cifar10.find() == cifar10.find("") == default
    default.rename("elsewhere")
    assert cifar10.find() is None


@pytest.mark.parametrize("place", ["cifar-10-batches-py/cifar-10-batches-py",
                                   "cifar-10/cifar-10-batches-py", "data/cifar-10-batches-py",
                                   "some folder"])
def test_nested_one_folder_too_deep_is_found(release, tmp_path, place):
    (tmp_path / "root" / ".empty").mkdir(parents=True)
    (tmp_path / "root" / "a file").write_text("of no interest")
    assert cifar10.find(tmp_path / "root", strict=False) is None
    folder = release.unpack(tmp_path / "root" / place)
    assert cifar10.find(tmp_path / "root") == folder
    shutil.move(folder, tmp_path / "root" / "three" / "folders" / "deep")
    with pytest.raises(DataError, match=r"data_root: .* does not hold"):
        cifar10.find(tmp_path / "root")


@pytest.mark.parametrize("typed", ["~/my data", "$PLACE/my data", " {0}/my data ", "'{0}/my data'",
                                   '"{0}/my data"'])
@pytest.mark.parametrize("by", ["data_root", "STN_CIFAR_DATA"])
def test_paths_as_people_type_them(release, monkeypatch, tmp_path, typed, by):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("PLACE", str(tmp_path))
    folder, typed = release.unpack(tmp_path / "my data"), typed.format(tmp_path)
    if by == "STN_CIFAR_DATA":
        monkeypatch.setenv(by, typed)
    assert cifar10.find(typed if by == "data_root" else None) == folder


@pytest.mark.parametrize("name", ["data_root", "STN_CIFAR_DATA"])
@pytest.mark.parametrize(("typed", "problem"), [
    ("typo", "does not hold cifar-10-batches-py/ or"), ("$NO_SUCH_VARIABLE/x", "is not known here"),
    ("~no_such_user_here/x", "is not known here"), (" ", "must name a file or a folder")])
def test_a_named_place_without_data_is_never_passed_over_in_silence(release, monkeypatch, capsys,
                                                                    name, typed, problem):
    release.unpack("data")
    if name == "STN_CIFAR_DATA":
        monkeypatch.setenv(name, typed)
    root = typed if name == "data_root" else None
    with pytest.raises(DataError, match=rf"{name}: .*{problem}.*; name a folder that does"):
        cifar10.load(root)
    assert release.is_loaded(root, strict=False)
    assert re.search(rf"NOTE: {name}: .*{problem}.*; looking further", capsys.readouterr().out)


# --- what may not be read is not what is not there


@pytest.fixture
def nobody():
    """(a folder, a context in which this process has no right that files do not give it)."""
    @contextlib.contextmanager
    def without_rights():
        try:
            os.seteuid(65534)
        except (OSError, AttributeError):
            pytest.skip("this process cannot give up its rights")
        try:
            yield
        finally:
            os.seteuid(0)

    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        root = hasattr(os, "geteuid") and os.geteuid() == 0
        yield Path(folder), without_rights if root else contextlib.nullcontext
        for path in [Path(folder), *Path(folder).rglob("*")]:
            path.chmod(0o755)  # so that it can be taken away


@pytest.mark.skipif(os.name == "nt", reason="Windows has other rights")
@pytest.mark.parametrize("locked", ["place/cifar-10-batches-py/test_batch",
                                    "place/cifar-10-python.tar.gz"])
@pytest.mark.parametrize("strict", [True, False])
def test_permission_denied_is_not_absence(release, nobody, locked, strict):
    folder, without_rights = nobody
    if locked.endswith("gz"):
        (folder / "place").mkdir()
        (folder / locked).write_bytes(release.archive)
    else:
        release.unpack(folder / "place/cifar-10-batches-py")
    with without_rights():
        assert release.is_loaded(folder / "place")  # this is what the lock takes away
    (folder / locked).chmod(0)
    with without_rights(), pytest.raises(DataError, match=r"cannot be read \(Permission") as caught:
        cifar10.load(folder / "place", strict)
    assert str(folder / locked) in str(caught.value)
    assert not isinstance(caught.value, NoDataError)  # which "auto" would answer with glyphs


@pytest.mark.skipif(os.name == "nt", reason="Windows has other rights")
def test_a_locked_folder_of_others_is_passed_by(release, nobody):
    folder, without_rights = nobody
    (folder / "lost+found").mkdir(mode=0)
    release.unpack(folder / "mine")
    with without_rights():
        assert release.is_loaded(folder)


# --- damage


def truncate(raw):
    return raw[:-100]


def flip_a_bit(raw):
    middle = len(raw) // 2
    return raw[:middle] + bytes([raw[middle] ^ 1]) + raw[middle + 1:]


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("damage", [truncate, flip_a_bit, lambda raw: b"", lambda raw: raw + b"x",
                                    None])
def test_a_damaged_batch_is_named_and_not_used(release, damage, strict):
    path = release.unpack("data") / "data_batch_3"
    path.unlink()
    if damage:
        path.write_bytes(damage(release.files["data_batch_3"]))
    with pytest.raises(DataError, match=r"data_batch_3 is missing, damaged, .*used") as caught:
        cifar10.load(strict=strict)
    assert not isinstance(caught.value, NoDataError)


@pytest.mark.parametrize("damage", [truncate, flip_a_bit])
def test_a_damaged_archive_is_named_and_not_used(release, damage):
    Path("data").mkdir()
    Path("data/cifar-10-python.tar.gz").write_bytes(damage(release.archive))
    with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz is missing, damaged"):
        cifar10.load()


class Payload:
    """Pickles as a call that makes a folder: the proof that unpickling ran code."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_nothing_is_unpickled_before_it_is_verified(release):
    raw = release.files["data_batch_1"]
    hostile = pickle.dumps(Payload(), protocol=2)
    hostile += bytes(len(raw) - len(hostile))  # of the right size
    (release.unpack("data") / "data_batch_1").write_bytes(hostile)
    with pytest.raises(DataError, match="data_batch_1 is missing, damaged"):
        cifar10.load()
    assert not Path("ran").exists()
    pickle.loads(hostile)  # it is a live one
    assert Path("ran").exists()


def test_size_is_seen_before_memory_is_taken(release, monkeypatch):
    path = release.unpack("data") / "data_batch_1"
    path.write_bytes(b"")
    os.truncate(path, 1 << 40)  # a sparse file: a terabyte that takes no space
    with pytest.raises(DataError, match="data_batch_1 is missing, damaged"):
        cifar10.load()


# --- sources, good and bad


class Server:
    """An HTTP server on loopback; `add(name, behaviour)` returns a source that behaves so."""

    def __init__(self):
        self.behaviours, self.requests, self.closing = {}, [], threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                name = self.path.rpartition("/")[2]
                server.requests.append(name)
                with contextlib.suppress(OSError):  # the client may hang up: it is here to
                    server.behaviours[name](self)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.handle_error = lambda *_: None  # of TLS that the client breaks off
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,))
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def add(self, name, behaviour):
        self.behaviours[name] = behaviour
        return name, f"{self.url}/{name}"

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
    """A behaviour: sends `content`, in pieces with pauses, declaring its length or None."""
    def behaviour(handler):
        before()
        handler.send_response(200)
        if length is not None:
            declared = len(content) if length == "its own" else length
            handler.send_header("Content-Length", str(declared))
        handler.end_headers()
        for start in range(0, len(content), piece or len(content)):
            handler.wfile.write(content[start:start + (piece or len(content))])
            time.sleep(pause)
    return behaviour


def raw(server, head, endless=b"", pause=0.0):
    """A behaviour: sends `head`, then `endless` again and again; keeps count in `raw.sent`."""
    def behaviour(handler):
        handler.wfile.write(head)
        while endless and not server.closing.is_set():
            handler.wfile.write(endless)
            raw.sent += len(endless)
            time.sleep(pause)
        if not endless:
            server.closing.wait()
    raw.sent = 0
    return behaviour


def redirect(to, server, body=b""):
    return raw(server, f"HTTP/1.1 302 Found\r\nLocation: {to}\r\n".encode()
               + (b"\r\n" if body else b"Content-Length: 0\r\n\r\n"), body)


def sources(monkeypatch, *pairs):
    monkeypatch.setattr(cifar10, "SOURCES", pairs)


def left_behind(place="data"):
    return sorted(os.listdir(place)) if os.path.isdir(place) else []


def dead_source(name="dead"):
    with socket.socket() as probe:  # a port that was free a moment ago: connections are refused
        probe.bind(("127.0.0.1", 0))
        return name, f"http://127.0.0.1:{probe.getsockname()[1]}/"


def test_the_first_source_that_delivers_is_used(release, server, monkeypatch, capsys):
    seen = []
    good = send(release.archive, before=lambda: seen.append(left_behind()))
    sources(monkeypatch, server.add("first", good), server.add("second", good))
    assert release.is_loaded()
    assert server.requests == ["first"]
    assert seen == [[]] and left_behind() == ["cifar-10-python.tar.gz"]
    assert "CIFAR-10 from first: 100%" in capsys.readouterr().err  # the progress bar
    assert release.is_loaded() and server.requests == ["first"]  # the second time it is there


@pytest.mark.parametrize("stream", [None, io.StringIO()])
def test_printing_never_ends_a_download(release, server, monkeypatch, stream):
    if stream is not None:
        stream.close()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(cifar10.sys, name, stream)
    sources(monkeypatch, dead_source(), server.add("good", send(release.archive)))
    assert release.is_loaded()


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"

BAD_SOURCES = {  # how a source may fail, and what is said of it
    "silent": (lambda r, s: raw(s, b""), "timed out"),
    "silent_later": (lambda r, s: raw(s, OK + b"\r\nsome"), "timed out"),
    "not_found": (lambda r, s: lambda h: h.send_error(404), "404"),
    "no_http": (lambda r, s: raw(s, b"nonsense\r\n\r\n"), "nonsense"),
    "other_bytes": (lambda r, s: send(flip_a_bit(r.archive)), "of MD5 "),
    "half": (lambda r, s: send(r.archive[:-1000], len(r.archive)), r"sent \d+ of \d+ bytes"),
    "half_undeclared": (lambda r, s: send(r.archive[:-1000], None), r"sent \d+ of \d+ bytes"),
    "error_page": (lambda r, s: send(b"<html>come back later</html>"), r"sent 28 of \d+ bytes"),
    "slow": (lambda r, s: send(r.archive, piece=5, pause=0.05), r"slow, \d kB/s"),
    "drip": (lambda r, s: raw(s, OK + b"\r\n", b"x", 0.01), "slow, 0 kB/s"),
    "endless_headers": (lambda r, s: raw(s, OK, b"X: y\r\n"), "more than 100 headers"),
    "bad_chunks": (lambda r, s: raw(s, CHUNKED + b"xyz\r\n"), "IncompleteRead|0 bytes read"),
    "redirect_loop": (lambda r, s: redirect(f"{s.url}/redirect_loop", s), "302"),
    "redirect_nowhere": (lambda r, s: redirect("http://[", s), "Invalid IPv6"),
    "redirect_port": (lambda r, s: redirect("http://127.0.0.1:port/", s), "nonnumeric port"),
    "redirect_idna": (lambda r, s: redirect("http://a" + "b" * 70 + "ü.invalid/", s), "."),
    "redirect_space": (lambda r, s: redirect("http://a b/", s), "."),
    "redirect_file": (lambda r, s: redirect("file:///etc/passwd", s), "302"),
    "redirect_https": (lambda r, s: redirect(s.url.replace("http", "https"), s), "SSL"),
}


@pytest.mark.parametrize("kind", BAD_SOURCES)
def test_a_bad_source_is_given_up_for_the_next(release, server, monkeypatch, capsys, kind):
    behave, symptom = BAD_SOURCES[kind]
    behave = behave(release, server)

    def bad(handler):
        cifar10.TIMEOUT = 30  # a busy machine must not delay the good one
        behave(handler)

    if "timed out" in symptom:
        monkeypatch.setattr(cifar10, "TIMEOUT", 0.4)
    if "slow" in symptom:
        monkeypatch.setattr(cifar10, "SPEED", 2000)
    sources(monkeypatch, server.add(kind, bad), server.add("good", send(release.archive)))
    assert release.is_loaded()
    assert set(server.requests[:-1]) == {kind} and server.requests[-1] == "good"
    assert re.search(rf"given up {kind} \(http.*{symptom}", capsys.readouterr().out)
    assert left_behind() == ["cifar-10-python.tar.gz"]


def test_a_redirect_is_followed(release, server, monkeypatch):
    sources(monkeypatch, server.add("old", redirect(f"{server.url}/new", server)))
    server.add("new", send(release.archive))
    assert release.is_loaded() and server.requests == ["old", "new"]


def test_a_source_may_send_in_chunks_of_no_declared_length(release, server, monkeypatch):
    def chunked(handler):
        handler.wfile.write(CHUNKED)
        for start in range(0, len(release.archive), 8192):
            piece = release.archive[start:start + 8192]
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        handler.wfile.write(b"0\r\n\r\n")

    sources(monkeypatch, server.add("chunked", chunked))
    assert release.is_loaded()


def test_what_a_source_sends_is_bounded(release, server, monkeypatch):
    buffers = 20_000_000  # what the kernels on both sides may have taken over
    sources(monkeypatch, server.add("pours", raw(server, OK + b"\r\n", bytes(100_000))))
    with pytest.raises(NoDataError, match="sends more than"):
        cifar10.load()
    assert raw.sent < len(release.archive) + buffers


def test_one_deadline_for_all_sources(release, server, monkeypatch):
    monkeypatch.setattr(cifar10, "DEADLINE", 0.5)
    drip = raw(server, OK + b"\r\n", b"x", 0.01)
    sources(monkeypatch, *(server.add(name, drip) for name in "abc"))
    started = time.monotonic()
    with pytest.raises(NoDataError, match=r"(?s)(\n.*the time for downloading is over.*){3}"):
        cifar10.load()
    assert time.monotonic() - started > 0.5


def test_slow_is_better_than_none(release, server, monkeypatch):
    """The last source may take its time."""
    monkeypatch.setattr(cifar10, "SPEED", 1e9)
    slow = send(release.archive, piece=20_000, pause=0.1)
    sources(monkeypatch, server.add("bad", send(b"?")), server.add("slow1", slow),
            server.add("slow2", slow))
    assert release.is_loaded()
    assert server.requests == ["bad", "slow1", "slow2"]


@pytest.mark.parametrize("hostile", [
    b"HTTP/1.1 404 \x1b[31mred\x07\r\n\r\n", b"\x1b]0;title\x07\r\n",
    b"HTTP/1.1 302 \r\nLocation: file:///\x1b[2J\r\nContent-Length: 0\r\n\r\n"])
def test_escape_codes_of_a_server_do_not_reach_the_terminal(release, server, monkeypatch, capsys,
                                                            hostile):
    sources(monkeypatch, server.add("hostile", raw(server, hostile)))
    with pytest.raises(NoDataError) as caught:
        cifar10.load()
    shown = capsys.readouterr().out + str(caught.value)
    assert "given up hostile" in shown and r"\x1b" in shown  # told, in letters
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", shown)


def test_no_network_is_one_clear_error(release, monkeypatch):
    sources(monkeypatch, dead_source("one"), dead_source("two"))
    with pytest.raises(NoDataError) as caught:
        cifar10.load()
    for name, url in cifar10.SOURCES:  # what each answered
        assert re.search(rf"{name} \({re.escape(url)}\): .*refused", str(caught.value))
    for remedy in ("place cifar-10-python.tar.gz", "STN_CIFAR_DATA", 'dataset="glyphs"'):
        assert remedy in str(caught.value)
    assert left_behind() == []


def test_through_a_proxy(release, server, monkeypatch):
    monkeypatch.setenv("http_proxy", server.url)
    server.add("far", send(release.archive))
    sources(monkeypatch, ("far", "http://far.invalid/far"))
    assert release.is_loaded() and server.requests == ["far"]


@pytest.mark.skipif(not shutil.which("openssl"), reason="there is no openssl to make a certificate")
def test_https_is_verified(release, server, monkeypatch, tmp_path):
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
                    "-keyout", "key.pem", "-out", "cert.pem", "-subj", "/CN=127.0.0.1",
                    "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain("cert.pem", "key.pem")
    server.http.socket = context.wrap_socket(server.http.socket, server_side=True)
    server.url = server.url.replace("http", "https")
    good = server.add("good", send(release.archive))
    sources(monkeypatch, good)
    with pytest.raises(NoDataError, match="CERTIFICATE_VERIFY_FAILED"):
        cifar10.load()
    monkeypatch.setenv("SSL_CERT_FILE", "cert.pem")
    assert release.is_loaded()


# --- keeping it


@pytest.mark.parametrize("problem", [errno.ENOSPC, errno.EROFS])
def test_a_full_disk_is_told_once_and_the_data_is_used(release, server, monkeypatch, capsys,
                                                       problem):
    def full(path, content):
        raise OSError(problem, f"{path}: cannot be written ({os.strerror(problem)})")

    monkeypatch.setattr(cifar10, "write_whole", full)
    sources(monkeypatch, *(server.add(name, send(release.archive)) for name in "ab"))
    assert release.is_loaded()
    assert server.requests == ["a"]
    assert capsys.readouterr().out.count(os.strerror(problem)) == 1


def test_a_file_where_the_folder_should_be_is_told(release, server, monkeypatch, capsys):
    sources(monkeypatch, server.add("good", send(release.archive)))
    Path("data").write_text("a file")
    assert release.is_loaded()
    assert re.search("not kept for the next time: .*data", capsys.readouterr().out)


def test_two_at_once(release, server, monkeypatch):
    """Both download at the same moment into the same folder; both get it, one archive is left."""
    barrier, results = threading.Barrier(2, timeout=30), []
    sources(monkeypatch, server.add("shared", send(release.archive, before=barrier.wait)))
    threads = [threading.Thread(target=lambda: results.append(release.is_loaded()))
               for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True, True] and server.requests == ["shared", "shared"]
    assert left_behind() == ["cifar-10-python.tar.gz"]
