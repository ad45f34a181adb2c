"""Public data by name, from a server on the loopback address."""

import gzip
import hashlib
import json
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import pytest

from recbole_jepa4rec.base.yaml_files import as_yaml
from recbole_jepa4rec.convert import download
from recbole_jepa4rec.convert.command_line import SOURCES
from tests.convert.conftest import tables

REVIEWS = [
    {"user_id": f"u{user}", "parent_asin": f"i{item}", "timestamp": 10 * user + item, "rating": 5}
    for user in range(3)
    for item in range(4)
]
GOODS = [{"parent_asin": f"i{item}", "title": f"thing {item}"} for item in range(4)]


def json_lines(records):
    return gzip.compress("".join(f"{json.dumps(each)}\n" for each in records).encode(), mtime=0)


class Server(ThreadingHTTPServer):
    """Files by path; ``breaks`` says after how many bytes the next answer ends."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.asked, self.breaks = {}, [], []
        self.address = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.server.asked.append((self.path, start))
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", hashlib.md5(content).hexdigest())
        self.end_headers()
        most = self.server.breaks.pop(0) if self.server.breaks else len(content)
        self.wfile.write(content[start : start + most])
        self.close_connection = True

    def log_message(self, *words):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    server = Server()
    at = f"{server.address}/raw"
    known = {
        "amazon2023": {
            "page": "the page",
            "addresses": [f"{at}/{{name}}.jsonl.gz", f"{at}/meta_{{name}}.jsonl.gz"],
            "names": ["Books", "Toys"],
        },
        "movielens": {
            "page": "the page",
            "addresses": [f"{at}/{{name}}.zip"],
            "names": ["ml-1m"],
            "digests": {"ml-1m": f"md5:{hashlib.md5(archive()).hexdigest()}"},
            "members": {"ml-1m": ["ml-1m/ratings.dat", "ml-1m/movies.dat"]},
        },
    }
    (tmp_path / "known").mkdir()
    (tmp_path / "known" / download.TABLE).write_text(as_yaml(known))
    monkeypatch.setattr(download, "find_properties", lambda: tmp_path / "known")
    server.files = {
        "/raw/Books.jsonl.gz": json_lines(REVIEWS),
        "/raw/meta_Books.jsonl.gz": json_lines(GOODS),
        "/raw/ml-1m.zip": archive(),
    }
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def archive():
    file = BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        ratings = "".join(f"{user}::{item}::5::{item}\n" for user in (1, 2) for item in (1, 2, 3))
        for name, text in (("ratings", ratings), ("movies", "1::A::B|C\n2::D::B\n3::E::B\n")):
            packed.writestr(zipfile.ZipInfo(f"ml-1m/{name}.dat"), text)
    return file.getvalue()


@pytest.fixture
def convert(run, tmp_path):
    """Convert with downloads kept in ``kept``."""
    return lambda *words: run(*words, "--download", "--download-to", tmp_path / "kept")


def kept(tmp_path):
    """What lies under ``kept``, but for parts of downloads that broke off."""
    files = (path for path in (tmp_path / "kept").rglob("*") if path.is_file())
    return {path.name for path in files if path.suffix != ".part"}


def test_reviews_and_metadata_are_fetched_once(server, convert, tmp_path):
    status, _, errors = convert("amazon2023", "Books")
    assert status == 0, errors
    inter, item, statistics = tables(tmp_path / "made")
    assert len(inter) == 12 and item[0][:2] == ["i0", "thing 0"]
    digest = hashlib.sha256(server.files["/raw/Books.jsonl.gz"]).hexdigest()
    origin = {"address": f"{server.address}/raw/Books.jsonl.gz", "digest": f"sha256:{digest}"}
    assert statistics["downloads"][0] == origin
    record = tmp_path / "kept" / "amazon2023" / "Books.jsonl.gz.sha256"
    assert record.read_text() == f"{digest}  Books.jsonl.gz\n"
    assert f"no digest is published; {record} keeps sha256:{digest}" in errors
    server.files, asked = {}, len(server.asked)
    status, _, errors = convert("amazon2023", "Books", "--force")
    assert status == 0 and len(server.asked) == asked, errors


def test_a_download_that_broke_off_is_gone_on_with(server, convert, tmp_path):
    size = len(server.files["/raw/Books.jsonl.gz"])
    server.breaks = [30]
    status, _, errors = convert("amazon2023", "Books")
    assert status == 1 and errors.splitlines()[-1].startswith(
        f"error: {server.address}/raw/Books.jsonl.gz broke off after 30 of {size} bytes ("
    )
    assert kept(tmp_path) == set() and not (tmp_path / "made").exists()
    assert convert("amazon2023", "Books")[0] == 0
    assert ("/raw/Books.jsonl.gz", 30) in server.asked
    assert (tmp_path / "kept" / "amazon2023" / "Books.jsonl.gz").stat().st_size == size


def test_another_version_is_not_gone_on_with(server, convert, tmp_path):
    server.breaks = [30]
    assert convert("amazon2023", "Books")[0] == 1
    server.files["/raw/Books.jsonl.gz"] = content = json_lines(REVIEWS[1:])
    assert convert("amazon2023", "Books")[0] == 0
    assert (tmp_path / "kept" / "amazon2023" / "Books.jsonl.gz").read_bytes() == content


def test_what_is_published_is_held_against_its_digest(server, convert, tmp_path):
    assert convert("movielens", "ml-1m")[0] == 0
    assert tables(tmp_path / "made")[1][0] == ["1", "A", "B, C"]
    assert kept(tmp_path) == {"ml-1m.zip", "ratings.dat", "movies.dat"}
    path = tmp_path / "kept" / "movielens" / "ml-1m.zip"
    path.write_bytes(b"PK" + path.read_bytes())
    status, _, errors = convert("movielens", "--force")
    assert status == 2 and errors.startswith(f"error: {path}: expected md5:")


@pytest.mark.parametrize(
    ("source", "file", "content", "message"),
    [
        ("movielens", "ml-1m.zip", b"PK another", "expected md5:"),
        ("movielens", "ml-1m.zip", b"<html>", "expected a .zip file, found b'<html>' at its start"),
        ("amazon2023", "Books.jsonl.gz", b"<html>", "expected a .gz file, found b'<html>'"),
        ("amazon2023", "Books.jsonl.gz", b"", "expected a server that says how long"),
    ],
)
def test_nothing_is_kept_of_what_is_wrong(
    server, convert, tmp_path, source, file, content, message
):
    server.files[f"/raw/{file}"] = content
    status, _, errors = convert(source, "Books" if source == "amazon2023" else "ml-1m")
    assert status == 2
    assert errors.splitlines()[-1].startswith(f"error: {server.address}/raw/{file}: {message}")
    assert not list((tmp_path / "kept").rglob(".*.part")) and kept(tmp_path) == set()


def test_a_later_download_is_held_against_the_first(server, convert, tmp_path):
    assert convert("amazon2023", "Books")[0] == 0
    (tmp_path / "kept" / "amazon2023" / "Books.jsonl.gz").unlink()
    server.files["/raw/Books.jsonl.gz"] = json_lines(REVIEWS[1:])
    status, _, errors = convert("amazon2023", "Books", "--force")
    assert status == 2 and "Books.jsonl.gz.sha256 has it of the first download, found" in errors
    assert "Books.jsonl.gz" not in kept(tmp_path)


def test_a_closed_network_is_one_line_with_the_address(server, convert, tmp_path):
    server.files = {}
    status, _, errors = convert("amazon2023", "Toys")
    at = tmp_path / "kept" / "amazon2023" / "Toys.jsonl.gz"
    assert status == 1 and errors == (
        f"error: {server.address}/raw/Toys.jsonl.gz cannot be fetched (HTTP Error 404: Not Found); "
        f"put the file at {at} by other means, see the page\n"
    )
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["amazon2023", "Boks"], "unknown name 'Boks' (did you mean 'Books'?); allowed: Books, T"),
        (["amazon2023"], "expected a name; allowed: Books, Toys"),
        (["movielens", "ml-1m", "x"], "unknown name 'ml-1m x' (did you mean 'ml-1m'?)"),
    ],
)
def test_an_unknown_name_is_refused(server, convert, words, message):
    status, _, errors = convert(*words)
    assert status == 2 and errors.startswith(f"error: {words[0]} --download: {message}")


def test_every_address_that_ships_is_whole():
    for source, known in download.public_data().items():
        assert source in SOURCES and known["page"].startswith("https://")
        assert len(known["addresses"]) <= SOURCES[source].most
        assert all(address.startswith("https://") for address in known["addresses"])
        for key in ("digests", "members"):
            assert known.get(key, {}).keys() <= {*known["names"]}
