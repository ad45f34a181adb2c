"""Public data by name: downloaded whole, gone on with where it broke off, checked, and kept."""

from __future__ import annotations

import shutil
import sys
import zlib
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote_plus
from urllib.request import Request, urlopen
from zipfile import BadZipFile, ZipFile

from tqdm import tqdm

from recbole_jepa4rec import __version__
from recbole_jepa4rec.base.command import did_you_mean
from recbole_jepa4rec.base.files import atomic_write, file_digest, hold
from recbole_jepa4rec.base.yaml_files import find_properties, read_yaml

FOLDER = Path("downloads")
TABLE = "downloads.yaml"
_PATIENCE = 60  # seconds in which a server may say nothing
_STEP = 1 << 20  # bytes read at once
_MAGIC = {".gz": b"\x1f\x8b", ".zip": b"PK"}


def public_data() -> dict[str, dict[str, Any]]:
    """What can be downloaded, by source; ``properties/downloads.yaml`` says what it holds."""
    return read_yaml(find_properties() / TABLE)


def name_of(source: str, words: Sequence[Path]) -> str:
    """The name that a public data set has at its source; it may be left out where there is one.

    Raises:
        ValueError: if it is not one of the names there.
    """
    names = public_data()[source]["names"]
    if not words and len(names) == 1:
        return names[0]
    name = " ".join(map(str, words))
    if name not in names:
        what = f"unknown name {name!r}{did_you_mean(name, names)}" if words else "expected a name"
        raise ValueError(f"{source} --download: {what}; allowed: {', '.join(names)}")
    return name


def download(source: str, name: str, folder: Path) -> tuple[list[Path], list[dict[str, str]]]:
    """The files of a public data set, fetched as far as they are not there.

    Args:
        source: such as ``movielens``.
        name: what ``name_of`` gave.
        folder: keeps the files, in a folder for each source.

    Returns:
        The files as the source takes them, and ``address`` and ``digest`` of each download.

    Raises:
        ValueError: for a file that is not what was published or came before.
        OSError: if a file cannot be fetched or written.
    """
    known = public_data()[source]
    files, origins = [], []
    for address in known["addresses"]:
        address = address.format(name=name)
        path = folder / source / unquote_plus(address.rpartition("/")[2])
        published = known.get("digests", {}).get(name)
        origins.append({"address": address, "digest": _fetch(address, path, published, known)})
        members = known.get("members", {}).get(name)
        files += _unpack(path, members, path.with_suffix("")) if members else [path]
    return files, origins


def _fetch(address: str, path: Path, published: str | None, known: Mapping[str, Any]) -> str:
    """Have a file at ``path`` that is what it should be; returns its digest.

    Where none is published, the first download's is written to ``NAME.sha256`` beside the file.
    """
    record = path.with_name(f"{path.name}.sha256")
    expected = published
    if not published and record.is_file():
        expected = f"sha256:{record.read_text(encoding='utf-8').split()[0]}"
    algorithm = expected.partition(":")[0] if expected else "sha256"
    if path.is_file():
        found = f"{algorithm}:{file_digest(path, algorithm)}"
        if expected not in (None, found):
            raise ValueError(f"{path}: expected {expected}, found {found}; remove it and try again")
    else:
        part = _download(address, path, known["page"])
        found = f"{algorithm}:{file_digest(part, algorithm)}"
        fault = _strange(part, path.suffix)
        if not fault and expected not in (None, found):
            whose = "as published" if published else f"as {record} has it of the first download"
            fault = f"expected {expected}, {whose}, found {found}"
        if fault:
            part.unlink()
            raise ValueError(f"{address}: {fault}; nothing was kept")
        part.replace(path)
    if expected is None:
        with atomic_write(record, "w") as file:
            file.write(f"{found.partition(':')[2]}  {path.name}\n")
        print(f"{path}: no digest is published; {record} keeps {found}", file=sys.stderr)
    return found


def _download(address: str, path: Path, page: str) -> Path:
    """Fetch what is not there yet of a file; returns the part that is now whole, of another name.

    A part's name holds what the server says of the file, so that no other version is gone on with.
    """
    try:
        answer = _ask(address)
    except (OSError, HTTPException) as error:
        raise OSError(
            f"{address} cannot be fetched ({error or type(error).__name__}); put the file at "
            f"{path} by other means, see {page}"
        ) from error
    with answer:
        size = int(answer.headers.get("Content-Length") or 0)
        version = str([answer.headers.get(key) for key in ("ETag", "Last-Modified")] + [size])
        mark = blake2b(version.encode(), digest_size=8).hexdigest()
        part = path.with_name(f".{path.name}.{mark}.part")
        if not size:
            raise ValueError(f"{address}: expected a server that says how long the file is")
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "ab") as file:
            if not hold(file):
                raise ValueError(f"{path}: another process is downloading it")
            print(f"{address}: {size / 1e6:,.1f} MB to {path}", file=sys.stderr)
            try:
                _receive(address, answer, file, size)
            except (OSError, HTTPException) as error:
                reason = f"{error}" or type(error).__name__
                raise OSError(
                    f"{address} broke off after {file.tell():,} of {size:,} bytes ({reason}); the "
                    "same command goes on from there"
                ) from error
    return part


def _ask(address: str, start: int = 0) -> Any:
    """The server's answer: the file, or what follows its first ``start`` bytes."""
    headers = {"User-Agent": f"recbole-jepa4rec/{__version__}"}
    if start:
        headers["Range"] = f"bytes={start}-"
    return urlopen(Request(address, headers=headers), timeout=_PATIENCE)


def _receive(address: str, answer: Any, file: IO[bytes], size: int) -> None:
    """Append to a file what it lacks; from its start where the server cannot go on."""
    if 0 < file.tell() < size:
        answer.close()
        answer = _ask(address, file.tell())
    with answer:
        if file.tell() < size and answer.status != 206:
            file.truncate(0)
        bar = tqdm(total=size, initial=file.tell(), unit="B", unit_scale=True, disable=None)
        with bar:
            while file.tell() < size and (some := answer.read(_STEP)):
                file.write(some)
                bar.update(len(some))
    if file.tell() != size:
        raise OSError("the connection was closed")


def _strange(part: Path, suffix: str) -> str:
    """What is wrong with the first bytes of a file, if they are not those of its kind."""
    with open(part, "rb") as file:
        start = file.read(8)
    if start.startswith(_MAGIC[suffix]):
        return ""
    return f"expected a {suffix} file, found {start!r} at its start"


def _unpack(path: Path, members: Sequence[str], folder: Path) -> list[Path]:
    """Some files of a zip, in a folder of its name.

    Raises:
        ValueError: if it is no zip file that holds them whole.
    """
    folder.mkdir(exist_ok=True)
    files = [folder / member.rpartition("/")[2] for member in members]
    try:
        with ZipFile(path) as archive:
            for member, file in zip(members, files, strict=True):
                with archive.open(member) as packed, atomic_write(file) as unpacked:
                    shutil.copyfileobj(packed, unpacked, _STEP)
    except (BadZipFile, KeyError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: expected a zip file with {', '.join(members)}") from error
    return files
