"""Objects by path under one location: a directory, or a prefix of an object store.

A local object appears whole or not at all: it is written beside and renamed. Object
stores promise as much themselves. What may go wrong is told apart here, once: storage
that may answer later, and storage that a person has to mend.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, ClassVar

from pipeline.errors import DataError, PipelineError, RootError, StorageUnavailableError
from pipeline.layers.clouds import TRIES, pause_s, persistently, reach_clouds

PARTIAL = ".partial"
"""Folder of objects that are being written; what is left there is of no use."""

_COPIED = 1 << 20

_PASSING = {
    errno.EIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.EAGAIN,
    errno.EBUSY,
    errno.EMFILE,
}
_REMEDY = {
    errno.ENOSPC: "free space there or choose another root",
    errno.EDQUOT: "free space within the quota or choose another root",
    errno.EACCES: "give this user the right to it or choose another root",
    errno.EPERM: "give this user the right to it or choose another root",
    errno.EROFS: "mount it for writing or choose another root",
    errno.ENOTDIR: "a file stands where a folder is needed: move it or choose another root",
    errno.EXDEV: "keep every layer of a run on one file system",
}
_BUSY = {"SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "InternalError"}
_REGION = "the bucket is in another region: set AWS_DEFAULT_REGION to its own"
_TELLING = {
    "NoSuchBucket": "create the bucket, or name another one",
    "301": _REGION,
    "PermanentRedirect": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "IllegalLocationConstraintException": _REGION,
    "403": "check the credentials and their right to read and write there",
    "AccessDenied": "give this user the right to read and write there",
    "InvalidAccessKeyId": "the credentials are of no user: see docs/operations.md",
    "SignatureDoesNotMatch": "the credentials are wrong: see docs/operations.md",
    "ExpiredToken": "the credentials have expired: get new ones and start again",
    "RequestTimeTooSkewed": "set the clock of this machine",
}


def normalize(location: str) -> str:
    """Return a location as a cloud path; a plain path becomes ``file://`` and absolute."""
    location = location.removeprefix("precomputed://").rstrip("/")
    if "://" not in location:
        return "file://" + os.path.abspath(os.path.expanduser(location))
    if location.startswith("file://"):
        return "file://" + os.path.abspath(location.removeprefix("file://"))
    return location


def open_folder(location: str) -> Folder:
    """Open a folder by its location; nothing is created yet."""
    location = normalize(location)
    if location.startswith("file://"):
        return LocalFolder(location)
    return CloudFolder(location)


class Folder(ABC):
    """Objects by path, with ``/`` between folders."""

    is_local: ClassVar[bool] = False

    def __init__(self, location: str) -> None:
        self.location = location

    @abstractmethod
    def put(self, path: str, content: bytes, *, gzip: bool = False) -> None:
        """Write an object whole; ``gzip`` compresses it where a store can say so."""

    @abstractmethod
    def put_file(self, path: str, file: Path) -> None:
        """Write a file of this machine as an object, whole, without holding it."""

    @abstractmethod
    def get(
        self, path: str, start: int | None = None, stop: int | None = None
    ) -> bytes | None:
        """Return an object, or its bytes from start to stop; None where there is none.

        Raises
        ------
        DataError
            If it is stored compressed and does not decompress.
        """

    @abstractmethod
    def exists(self, path: str) -> bool:
        """Whether there is an object."""

    @abstractmethod
    def delete(self, paths: Iterable[str]) -> None:
        """Delete objects, those that are there."""

    @abstractmethod
    def delete_folder(self, path: str) -> None:
        """Delete every object below a folder."""

    @abstractmethod
    def paths(self, prefix: str) -> Iterator[str]:
        """Yield the paths that begin with a prefix, in order."""

    def map(self, function: Any, items: Iterable[Any]) -> list[Any]:
        """Apply a function that reads or writes to each item."""
        return [function(item) for item in items]


class LocalFolder(Folder):
    """A directory.

    Objects are kept plain, so that any reader of the format opens them: a directory has
    no header to say that one is compressed. Those that CloudVolume left with ``.gz``
    behind their name are read as well.
    """

    is_local = True

    def __init__(self, location: str) -> None:
        super().__init__(location)
        self.path = Path(location.removeprefix("file://"))

    def put(self, path: str, content: bytes, *, gzip: bool = False) -> None:  # noqa: D102
        self._put(path, io.BytesIO(content))

    def put_file(self, path: str, file: Path) -> None:  # noqa: D102
        with open(file, "rb") as source:
            self._put(path, source)

    def _put(self, path: str, source: IO[bytes]) -> None:
        target = self.path / path
        with storage_errors(str(target)):
            partial = self.path / PARTIAL
            partial.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=partial)
            try:
                with os.fdopen(handle, "wb") as f:
                    shutil.copyfileobj(source, f, _COPIED)
                os.chmod(temporary, 0o666 & ~_UMASK)
                try:
                    os.replace(temporary, target)
                except FileNotFoundError:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(temporary, target)
            except BaseException:
                with suppress(OSError):
                    os.unlink(temporary)
                raise

    def get(  # noqa: D102
        self, path: str, start: int | None = None, stop: int | None = None
    ) -> bytes | None:
        target = self.path / path
        with storage_errors(str(target)):
            try:
                with open(target, "rb") as f:
                    if start is not None:
                        f.seek(start)
                    return f.read() if stop is None else f.read(stop - (start or 0))
            except (FileNotFoundError, IsADirectoryError):
                pass
            except NotADirectoryError:
                return None
            try:
                content = target.with_name(f"{target.name}.gz").read_bytes()
            except FileNotFoundError:
                return None
            return decompressed(content, str(target))[start:stop]

    def exists(self, path: str) -> bool:  # noqa: D102
        target = self.path / path
        return target.is_file() or target.with_name(f"{target.name}.gz").is_file()

    def delete(self, paths: Iterable[str]) -> None:  # noqa: D102
        for path in paths:
            for name in (path, f"{path}.gz"):
                with storage_errors(str(self.path / name)):
                    (self.path / name).unlink(missing_ok=True)

    def delete_folder(self, path: str) -> None:  # noqa: D102
        with storage_errors(str(self.path / path)), suppress(FileNotFoundError):
            shutil.rmtree(self.path / path)

    def paths(self, prefix: str) -> Iterator[str]:  # noqa: D102
        with storage_errors(str(self.path / prefix)):
            yield from sorted(self._walk(prefix))

    def _walk(self, prefix: str) -> Iterator[str]:
        for folder, folders, names in os.walk(self.path / os.path.dirname(prefix)):
            if PARTIAL in folders:
                folders.remove(PARTIAL)
            below = os.path.relpath(folder, self.path)
            for name in names:
                path = name if below == "." else f"{below}/{name}"
                path = path.removesuffix(".gz")
                if path.startswith(prefix):
                    yield path


class CloudFolder(Folder):
    """A prefix of an object store, or of a web server to read from."""

    def __init__(self, location: str) -> None:
        super().__init__(location)
        reach_clouds()
        from cloudfiles import CloudFiles

        self._files = CloudFiles(location, progress=False)
        if self._files.protocol == "file":
            # CloudFiles takes what it does not know for the name of a file.
            raise RootError(
                f"{location} is not a place that can be read; give a path, gs://, s3:// or "
                "https://"
            )

    def put(self, path: str, content: bytes, *, gzip: bool = False) -> None:  # noqa: D102
        self._put(path, compressed(content) if gzip else content, gzip=gzip)

    def put_file(self, path: str, file: Path) -> None:  # noqa: D102
        with open(file, "rb") as source:
            self._put(path, source)

    def _put(self, path: str, content: bytes | IO[bytes], *, gzip: bool = False) -> None:
        def put() -> None:
            with storage_errors(f"{self.location}/{path}"):
                if not isinstance(content, bytes):
                    content.seek(0)
                self._files.put(
                    path,
                    content,
                    content_type=_content_type(path),
                    compress="gzip" if gzip else None,
                    cache_control="no-cache",
                    raw=True,
                )

        if self._files.protocol in ("http", "https"):
            raise RootError(
                f"{self.location} can only be read; choose a root on a path, gs:// or s3://"
            )
        persistently(put)

    def get(  # noqa: D102
        self, path: str, start: int | None = None, stop: int | None = None
    ) -> bytes | None:
        from cloudfiles.exceptions import DecompressionError

        wanted: Any = path
        if start is not None or stop is not None:
            wanted = {"path": path, "start": start or 0, "end": stop}

        def get() -> bytes | None:
            with storage_errors(f"{self.location}/{path}"):
                try:
                    content: bytes | None = self._files.get(wanted)
                except DecompressionError as error:
                    raise _damaged(f"{self.location}/{path}", error) from error
                return content

        return persistently(get)

    def exists(self, path: str) -> bool:  # noqa: D102
        def exists() -> bool:
            with storage_errors(f"{self.location}/{path}"):
                return bool(self._files.exists(path))

        return persistently(exists)

    def delete(self, paths: Iterable[str]) -> None:  # noqa: D102
        named = list(paths)

        def delete() -> None:
            with storage_errors(self.location):
                self._files.delete(named)

        persistently(delete)

    def delete_folder(self, path: str) -> None:  # noqa: D102
        self.delete(self.paths(f"{path}/"))

    def paths(self, prefix: str) -> Iterator[str]:  # noqa: D102
        # A listing that breaks off is begun anew, and goes on after what was yielded.
        last, tried = "", 0
        while True:
            try:
                with storage_errors(f"{self.location}/{prefix}"):
                    for path in self._files.list(prefix=prefix):
                        if path > last:
                            yield path
                            last, tried = path, 0
                return
            except StorageUnavailableError:
                tried += 1
                if tried == TRIES:
                    raise
                time.sleep(pause_s(tried))

    def map(self, function: Any, items: Iterable[Any]) -> list[Any]:  # noqa: D102
        with ThreadPoolExecutor(max_workers=16) as pool:
            return list(pool.map(function, items))


def compressed(content: bytes) -> bytes:
    """Compress with gzip, the same bytes for the same content."""
    import deflate

    return bytes(deflate.gzip_compress(content, 6))


def decompressed(content: bytes, name: str) -> bytes:
    """Decompress gzip.

    Raises
    ------
    DataError
        If the content is damaged.
    """
    import gzip
    import zlib

    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(name, error) from error


def checksum(content: bytes) -> str:
    """Return ``crc32c:<hexadecimal>:<bytes>`` of an object, uncompressed."""
    from crc32c import crc32c

    return f"crc32c:{crc32c(content):08x}:{len(content)}"


@contextmanager
def storage_errors(place: str) -> Iterator[None]:
    """Turn what file systems and clouds raise into errors that say what to do.

    Raises
    ------
    StorageUnavailableError
        If the storage may answer later.
    RootError
        If a person has to mend it.
    """
    try:
        yield
    except PipelineError:
        raise
    except Exception as error:
        known = _passing(error)
        if known is None:
            raise
        if known:
            raise StorageUnavailableError(
                f"{place}: the storage did not answer ({_brief(error)}); try again later"
            ) from error
        remedy = "check the location, the credentials and the rights to it"
        if isinstance(error, OSError) and error.errno is not None:
            remedy = _REMEDY.get(error.errno, remedy)
        remedy = _TELLING.get(_cloud_code(error), remedy)
        raise RootError(f"{place}: {_brief(error)}; {remedy}") from error


def _passing(error: Exception) -> bool | None:
    """Whether trying again may help; None where the error is not of the storage."""
    import botocore.exceptions  # type: ignore[import-untyped]
    import botocore.parsers  # type: ignore[import-untyped]
    import google.api_core.exceptions
    import google.auth.exceptions
    import requests
    import urllib3
    from cloudfiles.exceptions import IntegrityError

    status: int | None = None
    if isinstance(error, requests.HTTPError) and error.response is not None:
        status = error.response.status_code
    elif isinstance(error, botocore.exceptions.ClientError):
        if _cloud_code(error) in _BUSY:
            return True
        if _cloud_code(error) == "404":
            # It did not say what is not there: the answer was torn.
            return True
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    elif isinstance(error, google.api_core.exceptions.GoogleAPICallError):
        status = error.code
    if status is not None:
        return status in (408, 429) or status >= 500
    if isinstance(
        error,
        (
            requests.RequestException,
            urllib3.exceptions.HTTPError,
            botocore.exceptions.HTTPClientError,
            botocore.exceptions.ConnectionError,
            botocore.exceptions.IncompleteReadError,
            botocore.parsers.ResponseParserError,
            google.api_core.exceptions.RetryError,
            google.auth.exceptions.TransportError,
            IntegrityError,
            ConnectionError,
            TimeoutError,
        ),
    ):
        return True
    if isinstance(error, OSError):
        return error.errno in _PASSING
    if isinstance(
        error,
        (
            botocore.exceptions.BotoCoreError,
            botocore.exceptions.ClientError,
            google.auth.exceptions.GoogleAuthError,
            google.api_core.exceptions.GoogleAPIError,
        ),
    ):
        return False
    return None


def _cloud_code(error: Exception) -> str:
    response = getattr(error, "response", None)
    found = response.get("Error", {}) if isinstance(response, dict) else {}
    return str(found.get("Code", ""))


def _brief(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return " ".join(str(error).split()) or type(error).__name__


def _damaged(name: str, error: Exception) -> DataError:
    return DataError(
        f"{name} does not decompress ({error}); delete it and run its stage again"
    )


def _content_type(path: str) -> str:
    name = path.rsplit("/", 1)[-1]
    if name.endswith(".json") or name in ("info", "provenance"):
        return "application/json"
    return "application/octet-stream"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


_UMASK = _umask()
