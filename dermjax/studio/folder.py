"""The folder that the studio shows, and the one rule of paths: what a browser names is inside of it, links followed."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from dermjax.data import records
from dermjax.data.records import Manifest, Record
from dermjax.errors import UserError
from dermjax.run_folder import open_for_append
from dermjax.studio.calls import Refused

DEEPEST = 3  # folders within folders in which runs are looked for
MANY = 2000  # folders that are looked into, the nearest to the root first
INNER = {"images", "masks", "checkpoints", "thumbnails", "model", "classifier", "moments", "contexts", "features"}
MANIFESTS_KEPT = 8


class Folder:
    """RUNS, and beside it a folder of photographs that its manifests may name; "none" for none."""

    def __init__(self, runs: str, photographs: str = "none"):
        self.root = Path(os.path.realpath(Path(runs).expanduser()))
        if not self.root.is_dir():
            raise UserError(f"{runs}: no such folder; give the folder that holds the runs")
        self.roots = [self.root]
        if photographs != "none":
            self.roots.append(Path(os.path.realpath(Path(photographs).expanduser())))
            if not self.roots[1].is_dir():
                raise UserError(f"--images={photographs}: no such folder")
        self._manifests: dict[Path, tuple[tuple, Manifest]] = {}

    def path(self, name: str) -> Path:
        """The file or folder of this name below the root; Refused where it leaves it, by dots or by a link, or is none.

        All that is wrong gets the same answer, so that nobody learns what lies elsewhere.
        """
        parts = name.split("/")
        refused = Refused("there is no such file in the folder of the runs", 404)
        if name.startswith("/") or "\\" in name or "\0" in name or any(part.startswith(".") for part in parts):
            raise refused
        try:
            path = Path(os.path.realpath(self.root / name, strict=True))
        except (OSError, ValueError):
            raise refused from None
        if not path.is_relative_to(self.root):
            raise refused
        return path

    def name(self, path: Path) -> str:
        """The name of a path below the root, "" for itself."""
        return "" if path == self.root else path.relative_to(self.root).as_posix()

    def folders(self) -> Iterator[tuple[Path, set[str]]]:
        """The folders below the root that may be runs, with the names of what is in them; links are not followed.

        Names that are no UTF-8 are left out: JSON cannot say them, nor a browser ask for them.
        """
        found = [self.root]
        for path in found:  # which grows as its folders are looked into
            _, inside, files = next(os.walk(path), ("", [], []))
            names = {each for each in (*inside, *files) if _is_utf8(each)}
            yield path, names
            if len(path.relative_to(self.root).parts) < DEEPEST:
                folders = [path / each for each in sorted(names & set(inside) - INNER) if each[0] != "."]
                found += [each for each in folders if not each.is_symlink()][: MANY - len(found)]

    def manifest(self, name: str) -> Manifest:
        """The manifest of a run, read anew when its file changes; Refused where its images lie outside of the roots."""
        path = self.path(f"{name}/{records.FILE}" if name else records.FILE)
        stat = path.stat()
        state = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        kept = self._manifests.get(path)
        if not kept or kept[0] != state:
            self._manifests.pop(path, None)
            manifest = records.read(path)
            if not any(manifest.root.is_relative_to(root) for root in self.roots):
                raise Refused(
                    "its images lie outside of the folder of the runs; start the studio with --images=DIR", 403
                )
            self._manifests[path] = kept = (state, manifest)
            while len(self._manifests) > MANIFESTS_KEPT:
                self._manifests.pop(next(iter(self._manifests)))
        return kept[1]

    def run_of(self, path: object) -> str | None:
        """The name of the run with the manifest that a config names by its path; None for one that is not here."""
        try:
            found = Path(path).resolve(strict=True) if isinstance(path, str) and path else Path(os.sep)
        except (OSError, ValueError):
            return None
        found = found if found.is_dir() else found.parent
        return self.name(found) if found.is_relative_to(self.root) and (found / records.FILE).is_file() else None

    def record(self, name: str, sha256: str) -> tuple[Manifest, Record]:
        """An image of a manifest by its digest; Refused where there is none, or its file lies outside of the roots."""
        manifest = self.manifest(name)
        record = next((each for each in manifest.records if each.sha256 == sha256), None)
        if record is None:
            raise Refused("there is no such image in this manifest", 404)
        self.check(manifest.unchecked_path(record))
        return manifest, record

    def check(self, image: Path) -> None:
        """Refused for an image that lies outside of the roots, as one may since its manifest was read."""
        if not any(Path(os.path.realpath(image)).is_relative_to(root) for root in self.roots):
            raise Refused("this image lies outside of the folder of the runs", 403)

    def say(self, sentence: str) -> str:
        """A message without the folders of this machine, which are nobody's business."""
        for root in self.roots:
            sentence = sentence.replace(f"{root}/", "").replace(str(root), "the folder of the runs")
        return sentence


def _is_utf8(name: str) -> bool:
    """Whether a name on the disk is text; Python puts halves of surrogate pairs in place of bytes that are none."""
    return not any("\ud800" <= each <= "\udfff" for each in name)


def append(path: Path, *lines: dict) -> None:
    """Adds lines of JSON to a file; when this returns they are on the disk, and a half-written last line is gone."""
    try:
        with open_for_append(path) as file:
            file.write(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise Refused(f"{path.name} cannot be written ({error.strerror}); nothing was saved", 507) from error
