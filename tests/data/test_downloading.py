"""Fetching images by URL, from a server of the test's own."""

import collections
import csv
import gzip
import http.server
import socketserver
import threading
import time

import pytest
from small_tars import picture

from ccl_jax.data import fetching
from ccl_jax.data.converting import Settings
from ccl_jax.data.downloading import UrlTable
from ccl_jax.data.fetching import Fetcher, FetchError, FetchOptions, is_public
from ccl_jax.data.prepared import PreparedSource
from ccl_jax.data.preparing import prepare
from ccl_jax.data.records import BadRecord

NETWORK = {"allow_private": True, "retries": 1, "attempt_timeout": 5.0, "max_bytes": 50_000}
IMAGE = picture(0)


class Handler(http.server.BaseHTTPRequestHandler):
    """/KIND/... answers as the kind says."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        server, kind = self.server, self.path.split("/")[1]
        with server.lock:
            server.seen[self.path] += 1
            server.agents.add(self.headers["User-Agent"])
            server.busy += 1
            server.most_busy = max(server.most_busy, server.busy)
        try:
            getattr(self, f"do_{kind}")()
        finally:
            with server.lock:
                server.busy -= 1

    def answer(self, status=200, data=b"", kind="image/jpeg", length=None, **headers):
        self.send_response(status)
        if kind:
            self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def do_ok(self):
        self.answer(data=picture(int(self.path.split("/")[2])))

    def do_slow(self):
        time.sleep(0.05)
        self.do_ok()

    def do_untyped(self):
        self.answer(data=IMAGE, kind="application/octet-stream")

    def do_missing(self):
        self.answer(404)

    def do_page(self):
        self.answer(data=b"<html>", kind="text/html; charset=utf-8")

    def do_disguised(self):
        self.answer(data=b"<html>")

    def do_cut(self):
        self.answer(data=IMAGE[:200])

    def do_short(self):
        self.answer(data=IMAGE, length=len(IMAGE) + 10)
        self.close_connection = True

    def do_large(self):
        self.answer(data=bytes(60_000))

    def do_endless(self):
        """No length, so that only counting the bytes can end it."""
        self.send_response(200)
        self.send_header("Content-Type", "image/jpeg")
        self.end_headers()
        try:
            for _ in range(1000):
                self.wfile.write(bytes(10_000))
        except OSError:
            pass
        self.close_connection = True

    def do_flaky(self):
        """Busy at the first time of asking."""
        if self.server.seen[self.path] < 2:
            self.answer(503, Retry_After="0")
        else:
            self.answer(data=IMAGE)

    def do_moved(self):
        self.answer(302, Location="/ok/7")

    def do_circle(self):
        self.answer(301, Location=self.path)

    def do_inward(self):
        self.answer(302, Location="http://10.1.2.3/secret")

    def do_elsewhere(self):
        self.answer(302, Location="file:///etc/passwd")

    def do_optout(self):
        self.answer(data=IMAGE, X_Robots_Tag="otherbot: nofollow, noai")

    def do_silent(self):
        self.server.done.wait(20)

    def do_drip(self):
        """A byte now and then: no single wait is long."""
        self.send_response(200)
        self.send_header("Content-Type", "image/jpeg")
        self.send_header("Content-Length", "9999")
        self.end_headers()
        try:
            while not self.server.done.wait(0.02):
                self.wfile.write(b"x")
        except OSError:
            pass


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.done = threading.Event()
        self.seen = collections.Counter()
        self.agents = set()
        self.busy = self.most_busy = 0
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        """Clients that hang up are what is tested."""


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.done.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def fetch(server):
    """Fetches a path of the server with options."""
    fetchers = []

    def fetch(path, **options):
        fetchers.append(Fetcher(FetchOptions(**{**NETWORK, **options})))
        url = path if "://" in path else f"{server.url}/{path}"
        return fetchers[-1].submit(url).result(30)

    yield fetch
    for fetcher in fetchers:
        fetcher.close()


def table(path, rows, header=None):
    lines = ([header] if header else []) + rows
    path.write_text("".join("\t".join(line) + "\n" for line in lines))
    return str(path)


def download(path, folder, workers=2, **changes):
    options = {"max_bad_share": 1.0, "network": NETWORK, **changes}
    source = {"kind": "download", "path": path}
    return prepare(Settings(source, str(folder), **options), workers=workers)


@pytest.mark.parametrize(
    "path", ["ok/0", "untyped/0", "moved/0", "flaky/0"], ids=lambda path: path[:-2]
)
def test_images_are_fetched(fetch, path):
    assert fetch(path) == (picture(7) if path.startswith("moved") else IMAGE)


@pytest.mark.parametrize(
    "path, reason, detail",
    [
        ("missing/0", "http 404", ""),
        ("page/0", "not an image", "text/html"),
        ("large/0", "too large", "60000 bytes, over 50000"),
        ("endless/0", "too large", "over 50000 bytes"),
        ("circle/0", "too many redirects", "circle"),
        ("elsewhere/0", "invalid url", "neither http nor https: file:"),
        ("optout/0", "opted out", "noai"),
        ("short/0", "connection failed", ""),
        ("http://127.0.0.1:1/", "connection failed", "127.0.0.1:1"),
        ("http://nowhere.invalid/x", "host not found", "nowhere.invalid"),
        ("ftp://x.org/a.jpg", "invalid url", "neither http nor https"),
        ("http://[bad/", "invalid url", ""),
        ("http:///path", "invalid url", "no host"),
        ("http://" + "x" * 300 + ".org/", "invalid url|host not found", ""),
    ],
)
def test_failures_have_a_reason(fetch, path, reason, detail):
    with pytest.raises(FetchError) as caught:
        fetch(path, retries=0)
    assert caught.value.reason in reason.split("|") and detail in caught.value.detail


@pytest.mark.parametrize("path", ["silent/0", "drip/0"])
def test_nothing_outlasts_its_deadline(fetch, path):
    start = time.monotonic()
    with pytest.raises(FetchError) as caught:
        fetch(path, deadline=0.5, attempt_timeout=10.0, retries=5)
    assert caught.value.reason == "timeout" and time.monotonic() - start < 5
    with pytest.raises(FetchError) as caught:
        fetch(path, deadline=30.0, attempt_timeout=0.3, retries=0)
    assert (caught.value.reason, caught.value.detail) == ("timeout", "0.3 s")


def test_only_what_may_pass_is_tried_again(server, fetch):
    for path, times in (("missing/1", 1), ("page/1", 1), ("short/1", 2)):
        with pytest.raises(FetchError):
            fetch(path)
        assert server.seen[f"/{path}"] == times


def test_the_agent_names_itself(server, fetch):
    fetch("ok/1")
    fetch("ok/2", user_agent="a lab, mail@example.org")
    assert server.agents == {fetching.USER_AGENT, "a lab, mail@example.org"}
    assert "ccl_jax/" in fetching.USER_AGENT


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "localhost", "10.1.2.3", "192.168.0.1", "172.16.0.1", "169.254.169.254",
        "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]", "[fe80::1]", "[fd00::1]", "2130706433",
        "127.1", "0x7f000001", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "224.0.0.1", "100.64.0.1",
    ],
)  # fmt: skip
def test_private_addresses_are_refused(server, fetch, host):
    with pytest.raises(FetchError) as caught:
        fetch(f"http://{host}:{server.server_port}/ok/0", allow_private=False, retries=0)
    # Unusual spellings of an address are not understood everywhere: that reaches nothing either.
    assert caught.value.reason in ("private address", "host not found", "invalid url")
    assert not server.seen


def test_a_redirect_to_a_private_address_is_refused(server, fetch, monkeypatch):
    public = fetching.is_public
    monkeypatch.setattr(fetching, "is_public", lambda a: a == "127.0.0.1" or public(a))
    with pytest.raises(FetchError) as caught:
        fetch("inward/0", allow_private=False)
    assert (caught.value.reason, caught.value.detail) == ("private address", "10.1.2.3")


def test_public_addresses_are_those_of_the_registry():
    assert all(map(is_public, ["8.8.8.8", "2606:4700::1111", "64:ff9b::808:808", "2002:808:808::"]))


def test_connections_are_many_but_few_to_one_host(server, tmp_path):
    rows = [(f"a caption {i}", f"{server.url}/slow/{i}") for i in range(40)]
    path = table(tmp_path / "t.tsv", rows)
    for per_host in (3, 16):
        server.most_busy = 0
        urls = UrlTable(path, **NETWORK, connections=32, per_host=per_host)
        found = list(urls.read_many(range(40)))
        urls.close()
        assert [index for index, _ in found] == list(range(40))
        assert [record.image for _, record in found] == [picture(i) for i in range(40)]
        assert per_host // 2 < server.most_busy <= per_host


def test_a_table_becomes_a_prepared_set(server, tmp_path, capfd):
    kinds = "ok moved missing page disguised cut large optout flaky ok".split()
    rows = [(f"caption {i}", f"{server.url}/{kind}/{i}") for i, kind in enumerate(kinds)]
    rows += [("  ", f"{server.url}/ok/10"), ("no url", ""), ("only one column",)]
    path = table(tmp_path / "Train_GCC.tsv", rows)
    manifest = download(path, tmp_path / "set", shards=4)
    source = PreparedSource(tmp_path / "set")
    assert [source[i].captions for i in range(4)] == [
        ("caption 0",), ("caption 1",), ("caption 8",), ("caption 9",)
    ]  # fmt: skip
    images = [source[i].image for i in range(4)]
    assert images == [picture(0), picture(7), IMAGE, picture(9)]
    assert source[0].key == f"{server.url}/ok/0"
    assert manifest["skipped"] == {
        "unreadable image": 2, "http 404": 1, "not an image": 1, "too large": 1, "opted out": 1,
        "empty caption": 1, "invalid url": 1, "invalid row": 1,
    }  # fmt: skip
    with open(tmp_path / "set" / "skipped-train.csv", newline="") as file:
        skipped = list(csv.DictReader(file))
    assert [row["index"] for row in skipped] == [str(i) for i in (2, 3, 4, 5, 6, 7, 10, 11, 12)]
    assert (skipped[0]["caption"], skipped[0]["url"]) == rows[2]
    assert "13 of 13 records" in capfd.readouterr().err

    # The table of failures is itself one to download, once the server is well again.
    retried = UrlTable(str(tmp_path / "set" / "skipped-train.csv"), **NETWORK)
    assert len(retried) == 9 and retried.describe(0) == dict(zip(("caption", "url"), rows[2],
                                                                 strict=True))  # fmt: skip
    retried.close()


def test_a_download_goes_on_where_it_stopped(server, tmp_path):
    rows = [(f"caption {i}", f"{server.url}/ok/{i}") for i in range(30)]
    path = table(tmp_path / "t.tsv", rows)
    download(path, tmp_path / "set", shards=10)
    assert all(server.seen[f"/ok/{i}"] == 1 for i in range(30))
    whole = {p.name: p.read_bytes() for p in (tmp_path / "set").glob("*.array_record-*")}
    (tmp_path / "set" / "manifest-train.json").unlink()
    for report in sorted((tmp_path / "set" / ".prepare-train").glob("shard-*"))[7:]:
        report.unlink()  # as if it had been killed with seven shards done
    # Further or other connections are no other run.
    download(path, tmp_path / "set", shards=10, network={**NETWORK, "connections": 2})
    assert [server.seen[f"/ok/{i}"] for i in range(30)] == [1] * 21 + [2] * 9
    assert {p.name: p.read_bytes() for p in (tmp_path / "set").glob("*.array_record-*")} == whole


def test_images_shrink_on_the_way(server, tmp_path):
    path = table(tmp_path / "t.tsv", [("a", f"{server.url}/ok/0")])
    manifest = download(path, tmp_path / "set", resize=15)
    assert manifest["resized"] == 1


def test_without_a_network_it_stops_soon(tmp_path, monkeypatch):
    monkeypatch.setattr("ccl_jax.data.downloading._HOPELESS", 20)
    rows = [("a caption", f"http://127.0.0.1:1/{i}") for i in range(1000)]
    path = table(tmp_path / "t.tsv", rows)
    with pytest.raises(ValueError, match=r"none of the first \d+ images .*is there a network"):
        download(path, tmp_path / "set", shards=2, network={**NETWORK, "retries": 0})


@pytest.mark.parametrize("form", ["csv", "csv.gz", "jsonl", "parquet", "tsv with header"])
def test_tables_of_all_kinds(tmp_path, form):
    rows = {"TEXT": ["a, b", "über"], "URL": ["http://x.org/1", "http://x.org/2"]}
    if form == "parquet":
        pa = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pa.table({**rows, "n": [1, 2]}), tmp_path / "t.parquet")
    else:
        lines = {
            "csv": "n,TEXT,URL\n1,\"a, b\",http://x.org/1\n2,über,http://x.org/2\n",
            "jsonl": '{"TEXT": "a, b", "URL": "http://x.org/1"}\n'
            '{"TEXT": "über", "URL": "http://x.org/2"}\n',
            "tsv with header": "URL\tTEXT\nhttp://x.org/1\ta, b\nhttp://x.org/2\tüber\n",
        }[form.removesuffix(".gz")].encode()  # fmt: skip
        data = gzip.compress(lines) if form.endswith(".gz") else lines
        (tmp_path / f"t.{form.split()[0]}").write_bytes(data)
    (path,) = tmp_path.iterdir()
    urls = UrlTable(path, index_dir=tmp_path)
    found = [urls.describe(i) for i in range(len(urls))]
    urls.close()
    assert [row["caption"] for row in found] == rows["TEXT"]
    assert [row["url"] for row in found] == rows["URL"]


@pytest.mark.parametrize(
    "text, options, message",
    [
        ("a\tb\nc\td\n", {}, "has no column url, URL, .* it has a, b"),
        ("a\tb\n1\thttp://x.org\n", {"url": "c"}, "has no column c: name the one with the urls"),
        ("1\tx\thttp://x.org\n", {}, "no header and 3 columns: name them with column_names"),
        ("a\thttp://x.org/1\n", {"connections": 0}, "connections must be positive"),
        ("a\thttp://x.org/1\n", {"retries": -1}, "retries must not be negative"),
    ],
)
def test_tables_that_are_none_are_explained(tmp_path, text, options, message):
    (tmp_path / "t.tsv").write_text(text)
    with pytest.raises(ValueError, match=message):
        UrlTable(tmp_path / "t.tsv", **options)
    with pytest.raises(ValueError, match="ends in none of .csv"):
        (tmp_path / "t.txt").write_text(text)
        UrlTable(tmp_path / "t.txt")


def test_one_record_is_fetched_by_its_index(server, tmp_path):
    rows = [("a", f"{server.url}/ok/5"), ("b", f"{server.url}/missing/0")]
    urls = UrlTable(table(tmp_path / "t.tsv", rows), **NETWORK)
    assert (len(urls), urls[0].image, urls[0].captions) == (2, picture(5), ("a",))
    with pytest.raises(BadRecord, match="http 404"):
        urls[1]
    with pytest.raises(IndexError):
        urls[2]
    urls.close()
