"""Folders in a bucket (s3://, gs://, by way of fsspec), each mirrored by a temporary folder of this process.

Place in the flow: `local(url)` -> a path, as all other code knows them -> what `run_folder.writing` completes is put
into the bucket as one object, and is there for others from that moment on, complete. Small files of a folder are
fetched at once, images and shards when they are read. The mirror has the bucket's own tree, TEMPORARY/s3/BUCKET/KEY, so
that a manifest's relative root leads to the same images. It is removed when the process ends: set TMPDIR to a disk with
room for what a process makes.
"""

import atexit
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import url2pathname

from dermjax.errors import UserError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

URL = re.compile(r"([a-z][a-z0-9+]*)://(.+)")
PACKAGES = {"s3": "s3fs", "gs": "gcsfs"}
SCHEMES = (*PACKAGES, "memory")  # a manifest's root may name one, so that it reaches no other servers
IMAGES = re.compile(r"(.*/)?(images|shards|masks|sketches|regions)/.*")  # fetched when they are read
PARTS = re.compile(r"(.*/)?part-\d+-of-\d+/.*")
ASKED_AGAIN = 1.0  # seconds until a file that was not there is asked for again: a shard is, for each of its images
_fetching, _absent = threading.Lock(), {}
_mirrors: dict[Path, tuple[str, "AbstractFileSystem"]] = {}  # the folder of a scheme's buckets


def is_url(text: str) -> bool:
    """Returns whether a text names something in a bucket, or a file by its URL."""
    return bool(URL.fullmatch(text))


def path_here(name: str, value: Any) -> Path:
    """Returns a path of this machine, with the user's folder in place of ~.

    Raises UserError, which begins with the name of the argument, for what is no path or lies in a bucket.
    """
    if not isinstance(value, str | os.PathLike) or not str(value):
        raise UserError(f"{name} {value!r}: is no path; give one")
    if is_url(str(value)):
        raise UserError(f"{name} {value}: lies in a bucket; give a path of this machine")
    return Path(value).expanduser()


def is_small(key: str) -> bool:
    """Returns whether a file is fetched with its folder: no image, no shard, and nothing of a part."""
    return not (IMAGES.fullmatch(key) or PARTS.fullmatch(key))


def local(url: str, wanted: Callable[[str], bool] = is_small) -> Path:
    """Returns the path that mirrors a URL, its files fetched whose key, relative to the URL, is wanted.

    Raises:
      UserError: an unknown scheme, a missing package, or a bucket that cannot be read.
    """
    path = mirror(url)
    if not mirrors(path):
        return path
    fs = _filesystem(path)
    try:
        for found in fs.find(url):
            name = _key(fs, found)
            relative = name.removeprefix(_key(fs, url)).strip("/")
            if not relative or wanted(relative):
                _get(fs, found, path / relative if relative else path)
    except Exception as error:  # each file system has its own errors for what is not there or not allowed
        raise UserError(f"{url}: cannot be read ({_line(error)})") from error
    return path


def mirror(url: str) -> Path:
    """Returns the path that mirrors a URL, nothing of it fetched; UserError as `local`, but for what cannot be read."""
    scheme, key = URL.fullmatch(url).groups()
    return Path(url2pathname(key)) if scheme == "file" else _tree(scheme, url) / key.strip("/")


def shown(path: Path) -> str:
    """Returns a path for people: the URL that it mirrors, if it mirrors one."""
    return (_mirrors and _url(path)) or str(path)


def shown_in(text: str) -> str:
    """Returns a text for people, with URLs in place of the paths in it that mirror them."""
    for folder, (scheme, _) in _mirrors.items():
        text = text.replace(f"{folder}/", f"{scheme}://")
    return text


def as_given(value: Any) -> Any:
    """Returns a value of a config, the URLs in place of the paths that mirror them wherever they stand in it: a mirror
    lies elsewhere in every process."""
    if isinstance(value, Mapping):
        return {key: as_given(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(as_given, value))
    return (_mirrors and isinstance(value, str) and _url(Path(value))) or value


def fetch(path: Path) -> Path:
    """Returns a path, the file there fetched where it mirrors one of a bucket and is not here yet."""
    if _mirrors and not path.exists() and (url := _url(path)):
        with _fetching:
            if not path.exists() and time.monotonic() > _absent.get(path, 0.0):
                fs = _filesystem(path)
                if fs.isfile(url):
                    _get(fs, url, path)
                else:
                    _absent[path] = time.monotonic() + ASKED_AGAIN
    return path


def put(path: Path) -> None:
    """Puts a complete file into the bucket that it mirrors, if it mirrors one."""
    if _mirrors and (url := _url(path)):
        try:
            _filesystem(path).put_file(str(path), url)
        except Exception as error:  # as above
            raise UserError(f"{url}: cannot be written ({_line(error)}); the same command goes on") from error


def put_all(folder: Path) -> None:
    """Puts the files of a folder that were not written at once: what is appended to."""
    if _mirrors and _url(folder):
        for path in sorted(folder.iterdir()):
            if path.is_file() and not path.name.startswith("."):
                put(path)


def remove(path: Path) -> None:
    """Removes a file, and its object where it mirrors one."""
    path.unlink(missing_ok=True)
    if _mirrors and (url := _url(path)) and _filesystem(path).exists(url):
        _filesystem(path).rm_file(url)


def mirrors(path: Path) -> bool:
    """Returns whether a path mirrors something in a bucket."""
    return bool(_mirrors and _url(path))


def _tree(scheme: str, url: str) -> Path:
    """Returns the folder that mirrors all buckets of a scheme."""
    for path, (known, _) in _mirrors.items():
        if known == scheme:
            return path
    if scheme not in SCHEMES:
        raise UserError(f"{url}: nothing reads {scheme}://; give s3:// or gs://, or a folder")
    import fsspec  # here, since it takes a tenth of a second and most runs need none

    try:
        fs = fsspec.filesystem(scheme, **({"use_listings_cache": False} if scheme in PACKAGES else {}))
    except ImportError as error:
        package = PACKAGES.get(scheme, str(error))
        raise UserError(f"{url}: {package} is missing; pip install 'dermjax[buckets]'") from error
    home = Path(tempfile.mkdtemp(prefix="dermjax-mirror-")).resolve()
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    _mirrors[home / scheme] = scheme, fs
    return home / scheme


def _url(path: Path) -> str:
    """Returns the URL that a path mirrors, "" for none."""
    path = Path(os.path.abspath(path))
    found = (f"{scheme}://{path.relative_to(root).as_posix()}" for root, (scheme, _) in _mirrors.items()
             if path.is_relative_to(root))  # fmt: skip
    return next(found, "")


def _filesystem(path: Path) -> "AbstractFileSystem":
    return next(fs for root, (_, fs) in _mirrors.items() if path.is_relative_to(root))


def _key(fs: "AbstractFileSystem", url: str) -> str:
    return fs._strip_protocol(url).strip("/")


def _get(fs: "AbstractFileSystem", url: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    fs.get_file(url, str(part))
    os.replace(part, path)


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
