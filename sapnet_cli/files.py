"""Files, on this machine or behind URLs of anything that fsspec knows (s3, gs, hf, sftp, ...), whole or not there."""

from __future__ import annotations

import glob
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TextIO, cast
from urllib.parse import unquote, urlsplit

from sapnet_cli.errors import UsageError

LOCAL_SCHEMES = ("file://", "local://")

OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "oss", "hf", "memory"}
"""What is written there appears when it is whole; elsewhere it is written beside and renamed."""

WEB = {"http", "https"}
"""Whose addresses quote what is special, and may have a query (a token, say) behind the name."""


def is_url(name: str) -> bool:
    """Whether a name is a URL, not a path on this machine."""
    return "://" in name and not name.startswith(LOCAL_SCHEMES)


def open_path(name: str) -> Path:
    """A path on this machine, or of a URL, which then reads and writes through fsspec.

    Raises:
        UsageError: nothing here knows such URLs; its text says what to install.
    """
    for scheme in LOCAL_SCHEMES:
        name = name.removeprefix(scheme)
    if not is_url(name):
        return Path(name)
    try:
        from upath import UPath
    except ImportError as error:
        raise UsageError(f"{name}: URLs need a package that is not here: pip install 'sapnet-cli[remote]'") from error
    try:
        path = UPath(name)
        path.fs  # noqa: B018  # now imports what it needs
    except (ImportError, ValueError) as error:  # which says what package, or which protocol
        raise UsageError(f"{name}: {error}") from error
    return cast(Path, path)


def identity(path: Path) -> Path:
    """What is equal for two names of one file: where links lead, if not in a circle; of URLs, the URL."""
    return path if _is_remote(path) else Path(os.path.realpath(path))


def find_remote(path: Path) -> Iterator[tuple[Path, PurePosixPath]]:
    """The files that a URL's path means, of a file, a folder or a pattern, with their paths below the folder.

    Raises:
        UsageError: nothing is there, or it cannot be reached.
    """
    folder = path
    system, root = path.fs, path.path  # type: ignore[attr-defined]
    pattern = glob.has_magic(_without_query(path))
    try:
        if not pattern and system.isfile(root):
            yield path, PurePosixPath(name_here(path))
            return
        found = system.glob(root) if pattern else system.find(root)
    except Exception as error:  # each store has errors of its own
        raise UsageError(f"{path}: cannot be reached: {_describe(error)}") from error
    if not found:
        raise UsageError(f"{path}: nothing is there{', or it cannot be reached' if _is_remote(path) else ''}")
    if pattern:
        for _ in range(len(PurePosixPath(root).parts) - len(fixed_parts(PurePosixPath(root)))):
            folder = folder.parent
    for each in sorted(found):
        source = folder / str(PurePosixPath(each).relative_to(PurePosixPath(folder.path)))  # type: ignore[attr-defined]
        yield source, PurePosixPath(*(_unquoted(source, part) for part in source.relative_to(folder).parts))


def name_here(path: Path) -> str:
    """The name of a file, as it is called on this machine: in a web address it is quoted, and a query may follow."""
    return _unquoted(path, PurePosixPath(_without_query(path)).name) or path.name


def _without_query(path: Path) -> str:
    return urlsplit(str(path)).path if _on_the_web(path) else str(path)


def _unquoted(path: Path, part: str) -> str:
    """A part of a path as it is called here; it stays quoted where that were no name of a file."""
    name = unquote(part) if _on_the_web(path) else part
    return part if name in (".", "..") or "/" in name or os.sep in name or "\0" in name else name


def fixed_parts(pattern: PurePosixPath | Path) -> list[str]:
    """The parts of a pattern before its first wildcard."""
    parts: list[str] = []
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        parts.append(part)
    return parts


def read(path: Path) -> bytes:
    """The whole of a file.

    Raises:
        OSError: it is not there, or cannot be read.
    """
    with _os_errors(path):
        return path.read_bytes()


def standard_stream(stream: TextIO | None) -> BinaryIO:
    """The bytes of standard input or output.

    Raises:
        OSError: it was closed (`<&-`, `>&-`), as it may be under a daemon.
    """
    if stream is None:
        raise OSError("standard input or output is closed")
    return stream.buffer


def size_in_bytes(path: Path) -> int:
    """The size of a file; 0 of a pipe, or where a store does not say.

    Raises:
        OSError: it is not there, or this cannot be known.
    """
    with _os_errors(path):
        return path.stat().st_size


def exists(path: Path) -> bool:
    """Whether a file is there.

    Raises:
        OSError: this cannot be known.
    """
    with _os_errors(path):
        return path.exists()


def make_folder(path: Path) -> None:
    """Makes the folder of a file that will be written, where it is not there.

    Raises:
        OSError: it cannot be made, or nothing can be written into it.
    """
    path = _followed(path)
    with _os_errors(path):
        if not _in_object_store(path):
            path.parent.mkdir(parents=True, exist_ok=True)
    if not _is_remote(path) and not os.access(path.parent, os.W_OK):
        raise PermissionError(f"cannot write into {path.parent}: no permission")


def write_atomically(path: Path, content: bytes | str) -> None:
    """Writes beside the target and renames, so that the target is never half a file; its permissions and owner stay.

    Where the target is a link, that stays, and the file that it names is written.

    What replaces a file is on the disk before that goes: a power cut leaves the one or the other. Text is written in
    UTF-8; what is none, since a name of a file may be in any encoding, with backslashes.

    Raises:
        OSError: no permission, no space, or the like, and its `filename` is the target; nothing is left behind.
    """
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    if _is_remote(path):
        with _os_errors(path):
            _upload(path, data)
        return
    path = _followed(path)
    temporary = path.with_name(_temporary_name())
    try:
        replaces = path.exists()
        with temporary.open("xb") as file:
            file.write(data)
            if replaces:
                file.flush()
                os.fsync(file.fileno())
        if replaces:
            before = path.stat()
            with suppress(AttributeError, OSError):  # root may, in a container, say
                os.chown(temporary, before.st_uid, before.st_gid)
            temporary.chmod(before.st_mode & 0o777)
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):  # which has the name of the other file, or, of a full disk, none
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _followed(path: Path) -> Path:
    """What is written where a path is to be: what it names, if it is a link."""
    return identity(path) if not _is_remote(path) and path.is_symlink() else path


def _upload(path: Any, data: bytes) -> None:
    system = path.fs
    if _in_object_store(path):
        system.pipe_file(path.path, data)
        return
    temporary = path.with_name(_temporary_name()).path
    try:
        system.pipe_file(temporary, data)
        system.mv(temporary, path.path)
    except BaseException:
        with suppress(Exception):
            system.rm_file(temporary)
        raise


def _is_remote(path: Path) -> bool:
    return not isinstance(path, Path)


def _on_the_web(path: Any) -> bool:
    return _is_remote(path) and path.protocol in WEB


def _in_object_store(path: Any) -> bool:
    return _is_remote(path) and path.protocol in OBJECT_STORES


def _temporary_name() -> str:
    return f".sapnet-{secrets.token_hex(8)}.tmp"


@contextmanager
def _os_errors(path: Path) -> Iterator[None]:
    """Makes whatever a store raises an `OSError`, which says of which file."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and (error.filename or not _is_remote(path)):
            raise
        raise OSError(f"{path}: {_describe(error)}") from error


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
