"""Shards: tar files of many images in WebDataset's form, and the path of an image inside one.

Place in the flow: `generate` and `export` write shards; a record whose `image` is SHARD.tar/NAME is read as any file,
since its path (`locate`) opens what lies in the shard. A sample is an image KEY.png with KEY.cls and KEY.json beside
it: the number of its class and what is known of it (webdataset.github.io/webdataset).
"""

import io
import os
import stat
import tarfile
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from dermjax import buckets
from dermjax.run_folder import writing

SUFFIX = ".tar"
INDICES = 1024  # shards whose contents are remembered, about 300 kB each of 1,000 images


class Member(type(Path())):
    """The path SHARD.tar/NAME of a file inside a shard: what reads a file's bytes, size and times reads it too."""

    @property
    def parents(self) -> Sequence[Path]:
        """The folders above the file, the shard among them, as they are on disk."""
        return Path(self).parents

    @property
    def parent(self) -> Path:
        """The folder in the shard, or the shard itself."""
        return self.parents[0]

    def open(self, mode: str = "rb") -> io.BytesIO:
        """Opens the file to read; OSError where it is not there, or the shard is damaged."""
        if mode != "rb":
            raise ValueError(f"{self}: a file in a shard is read as bytes, not as {mode!r}")
        begin, size = self._place()
        with container(self).open("rb") as shard:
            shard.seek(begin)
            return io.BytesIO(shard.read(size))

    def read_bytes(self) -> bytes:
        """The bytes of the file."""
        return self.open().getvalue()

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """The status of the shard, with the size of the file; there are no links in shards."""
        _, (values, named) = os.stat(container(self)).__reduce__()  # named: times in nanoseconds, and more
        values = [*values]
        values[stat.ST_SIZE] = self._place()[1]
        return os.stat_result(values, named)

    def is_file(self) -> bool:
        """Whether the shard is there and has such a file."""
        try:
            return bool(self._place())
        except OSError:
            return False

    def _place(self) -> tuple[int, int]:
        shard = container(self)
        status = os.stat(shard)
        name = self.relative_to(shard).as_posix()
        try:
            return _index(str(shard), status.st_size, status.st_mtime_ns)[name]
        except (KeyError, tarfile.TarError) as error:
            raise FileNotFoundError(2, "not in the shard, or the shard is damaged", str(self)) from error


def locate(path: Path) -> Path:
    """The path as it is, or as a Member where it leads into a shard that is there; fetched if it is in a bucket."""
    shard = buckets.fetch(container(path))
    return Member(path) if shard != path and shard.is_file() else path


def container(path: Path) -> Path:
    """The file on disk that holds the bytes of a path: its shard, or itself."""
    return next((parent for parent in path.parents if parent.suffix == SUFFIX), path)


def write(path: Path, files: Iterable[tuple[str, bytes]]) -> None:
    """Writes a shard of named files, all of it or nothing; the same bytes for the same files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path) as file, tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)  # without owner and time
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@lru_cache(INDICES)
def _index(shard: str, size: int, changed: int) -> dict[str, tuple[int, int]]:
    """Where the files of a shard begin, and their sizes; anew where the shard's own size or time changes."""
    with tarfile.open(shard, "r:") as tar:
        return {member.name: (member.offset_data, member.size) for member in tar}
