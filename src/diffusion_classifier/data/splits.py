"""Folders of images: which files are images, and which folders are splits.

A folder that could be read in two ways is rejected with advice. Two splits are never mixed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from ..errors import InputError
from .formats import is_image
from .images import visible

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Names that `datasets` gives to tables of captions or labels of the images beside them."""
WORDS = {
    "train": "train", "training": "train", "trainval": "train", "validation": "validation", "valid": "validation",
    "val": "validation", "dev": "validation", "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
"""Words for splits → names of splits in `datasets`."""
_SPLIT = re.compile(
    rf"({'|'.join(sorted(WORDS, key=len, reverse=True))})"
    r"([ _.-]?(set|data|images?|imgs?|split|folder|dir))?([ _-]?\d{4})?"
)
"""Names of splits: Train, test_set, val2017 …"""
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
_TABLES = (".csv", ".tsv", ".json", ".jsonl")
_SHOWN = 3


class Place:
    """A folder whose content is read on access. Links are followed, but not to a folder above."""

    def __init__(self, path: Path, above: frozenset[str] = frozenset()) -> None:
        self.path = path
        self.name = path.name
        self._above = above | {os.path.realpath(path)}

    @cached_property
    def _inside(self) -> tuple[list[Path], list[Path]]:
        """Paths of the sub-folders and of the files."""
        try:
            with os.scandir(self.path) as entries:
                found = sorted((e for e in entries if visible(e.name)), key=lambda e: e.name)
        except OSError as e:
            raise InputError(f"the folder {self.path} cannot be read: {e.strerror}") from e
        folders: list[Path] = []
        files: list[Path] = []
        for entry in found:
            if entry.is_dir():
                if not entry.is_symlink() or os.path.realpath(entry.path) not in self._above:
                    folders.append(self.path / entry.name)
            elif entry.is_file() or entry.is_symlink():  # a dangling link is reported when it is loaded
                files.append(self.path / entry.name)
        return folders, files

    @cached_property
    def folders(self) -> list[Place]:
        """The sub-folders."""
        return [Place(path, self._above) for path in self._inside[0]]

    @property
    def files(self) -> list[Path]:
        """The files, not those in sub-folders."""
        return self._inside[1]

    @cached_property
    def images(self) -> list[Path]:
        """The images, not those in sub-folders."""
        return [path for path in self.files if is_image(path)]

    @cached_property
    def others(self) -> list[Path]:
        """The other files, not those in sub-folders."""
        images = set(self.images)
        return [path for path in self.files if path not in images]

    @cached_property
    def with_images(self) -> list[Place]:
        """The sub-folders that hold images, at any depth."""
        return [place for place in self.folders if place.holds_images]

    @cached_property
    def holds_images(self) -> bool:
        """Whether there are images, at any depth."""
        return bool(self.images) or any(place.holds_images for place in self.folders)

    @cached_property
    def is_empty(self) -> bool:
        """Whether there is no file, at any depth."""
        return not self.files and all(place.is_empty for place in self.folders)

    @property
    def is_flat(self) -> bool:
        """Whether no sub-folder holds images."""
        return not self.with_images

    def walk(self) -> Iterator[Place]:
        """Yield this folder and all folders below it."""
        yield self
        for place in self.folders:
            yield from place.walk()


def folder_kind(root: Place) -> str:
    """Return the kind of data set in a folder: "parquet", "webdataset" or "imagefolder".

    Images in two or more folders are the data set, even if archives lie beside them.

    Raises:
        InputError: There are Parquet files beside such images.
    """
    tables: dict[str, Path] = {}
    with suppress(InputError):  # a folder that cannot be read is reported if its images are needed
        for path in (path for place in root.walk() for path in place.files if path.name.lower() not in METADATA):
            tables.setdefault(path.suffix.lower(), path)
            if ".parquet" in tables:
                break
    table = tables.get(".parquet") or tables.get(".tar")
    if table is None:
        return "imagefolder"
    if len(with_images := root.with_images) > 1:
        if table.suffix.lower() == ".tar":
            return "imagefolder"
        raise InputError(
            f"{root.path} holds both tables ({table}) and folders of images ({listed(p.name for p in with_images)}): "
            "give the file, or the folder of one of them"
        )
    return "parquet" if ".parquet" in tables else "webdataset"


def has_metadata(root: Place) -> bool:
    """Return whether a folder has a metadata file, at any depth, that describes the images.

    It has a column of file names; or it lacks the column, and there are no class folders beside it.
    """
    found = [path for place in root.walk() for path in place.files if path.name.lower() in METADATA]
    return any(map(_lists_files, found)) or (bool(found) and not root.with_images)


def is_image_folder(root: Place) -> bool:
    """Return whether a folder holds images, and no metadata that describes them."""
    return root.path.is_dir() and folder_kind(root) == "imagefolder" and not has_metadata(root)


def _lists_files(metadata: Path) -> bool:
    if metadata.suffix.lower() == ".parquet":
        return True
    with metadata.open("rb") as file:
        return b"file_name" in file.readline(65536)


def split_of(name: str) -> str | None:
    """Return the split that a folder name means: "train", "validation", "test", or None."""
    match = _SPLIT.fullmatch(name.strip().lower())
    return WORDS[match[1]] if match else None


def find_split(source: str, root: Place, split: str | None, notes: list[str]) -> Place:
    """Find the folder of a split. The class folders, if any, are its sub-folders.

    A folder that holds only another folder of folders is skipped, with a note.

    Args:
        source: The folder as it was given, for messages.
        root: The same folder.
        split: "train", "test" …. Default: the only split, or "test". Without split folders, all images are "train".
        notes: List to which sentences are added.

    Raises:
        InputError: The split does not exist or has no images; or split folders lie among other folders of images.
    """
    place, chosen = root, None
    while True:
        splits = _splits(place, notes)
        inner = place.with_images
        if splits and set(splits) != {chosen}:
            if chosen is not None:
                raise InputError(
                    f"{place.path} holds folders of splits ({listed(splits[s].name for s in splits)}) within a split: "
                    f"give the folder of one, such as {next(iter(splits.values())).path}"
                )
            place, chosen = _chosen(source, place, splits, split, notes)
        elif len(inner) == 1 and not place.images and inner[0].with_images and not inner[0].images:
            if any(other.is_empty for other in place.folders) and not _leads_to_splits(inner[0]):
                break  # a class without images, beside one with folders of its own
            note_others(source, place, inner, notes)
            notes.append(f"the images were read from {inner[0].path}, the only folder in {place.path} that holds any")
            place = inner[0]
        else:
            break
    if (
        chosen is None
        and split not in (None, "train", name := Path(source).resolve().name)
        and (split_of(split) is None or split_of(split) != split_of(name))
    ):
        raise InputError(f"{source} has no split {split!r}: its images are in no folder of that name")
    if not place.holds_images:
        raise InputError(_no_images(source, place, chosen))
    return place


def note_others(
    source: str, place: Place, used: Sequence[Place], notes: list[str], more_files: Sequence[Path] = ()
) -> None:
    """Add notes on folders without images and on files that are not images, which are left out.

    Args:
        source: The folder that was given; names are relative to it.
        place: The folder to describe.
        used: Its sub-folders that are not left out.
        notes: List to which the sentences are added.
        more_files: Files in deeper folders that are not images.
    """
    if left := [folder for folder in place.folders if folder not in used]:
        names = listed(relative([folder.path for folder in left], source))
        notes.append(
            f"{counted(left, 'folder holds no images and was', 'folders hold no images and were')} left out: {names}"
        )
    if files := [*place.others, *more_files]:
        names = listed(relative(files, source))
        notes.append(
            f"{counted(files, 'file is no image and was', 'files are no images and were')} left out: {names}"
            f"{_about_archives(files)}"
        )


def _splits(place: Place, notes: list[str]) -> dict[str, Place]:
    """Return split → folder, if the sub-folders are splits, otherwise an empty dictionary.

    Raises:
        InputError: Only some sub-folders with images are splits; or two are the same split.
    """
    named = [(split, folder) for folder in place.folders if (split := split_of(folder.name))]
    others = [folder for folder in place.with_images if split_of(folder.name) is None]
    if not named:
        _check_likely_splits(place)
        return {}
    if others:
        (_, first), *more = named
        if not more and len(others) > 1 and all(folder.is_flat for folder in (first, *others)):
            notes.append(f"the folder {first.path} was taken for a class, as those beside it, and not for a split")
            return {}
        raise InputError(
            f"{place.path} holds images in {listed(folder.name for folder in others)}, beside what looks like splits "
            f"({listed(folder.name for _, folder in named)}): give the folder of one split, such as {first.path}, or "
            "move the others elsewhere"
        )
    splits = dict(named)
    if len(splits) < len(named):
        raise InputError(
            f"{place.path} has more than one folder for a split ({listed(folder.name for _, folder in named)}): give "
            f"the folder of one split, such as {named[0][1].path}"
        )
    return splits if any(folder.holds_images for folder in splits.values()) else {}


def _leads_to_splits(place: Place) -> bool:
    inner = place.with_images
    return any(split_of(folder.name) for folder in inner) or (len(inner) == 1 and _leads_to_splits(inner[0]))


def _check_likely_splits(place: Place) -> None:
    """Raise if names look like splits that `split_of` does not recognise, such as seg_train."""
    inner = place.with_images
    words = [{WORDS[w] for w in re.split(r"[^a-z]+", _spaced(folder.name)) if w in WORDS} for folder in inner]
    deep = all(not folder.is_flat for folder in inner)
    if len(set().union(*words)) > 1 and (deep or all(words)):
        raise InputError(
            f"the folders in {place.path} look like splits ({listed(folder.name for folder in inner)}): give the "
            "folder of one of them, or rename them to train, validation and test"
        )


def _chosen(
    source: str, place: Place, splits: dict[str, Place], split: str | None, notes: list[str]
) -> tuple[Place, str]:
    wanted = (split_of(split) or split) if split else next(iter(splits)) if len(splits) == 1 else "test"
    if wanted not in splits:
        raise InputError(f"{source} has no split {wanted!r}; it has {', '.join(sorted(splits))}")
    if split is None and wanted != "test":
        notes.append(f"the split {wanted} was read, which is the only one in {place.path}")
    if place.images:
        notes.append(
            f"{counted(place.images, 'image lies', 'images lie')} beside the folders of splits in {place.path} and "
            f"were left out: {listed(path.name for path in place.images)}"
        )
    note_others(source, place, list(splits.values()), notes)
    own = {folder.name for folder in splits[wanted].folders}
    others = [{folder.name for folder in other.folders} for split, other in splits.items() if split != wanted]
    if lacking := sorted({name for names in others if names & own for name in names - own}):
        notes.append(
            f"{counted(lacking, 'folder of another split is', 'folders of other splits are')} not in {wanted}, and so "
            f"no class that can be predicted: {listed(lacking)}; an empty folder in {splits[wanted].path} makes one"
        )
    return splits[wanted], wanted


def _no_images(source: str, place: Place, chosen: str | None) -> str:
    if chosen is not None:
        return f"the split {chosen} of {source} holds no images: see the folder {place.path}"
    if place.is_empty:
        return f"{source}: the folder holds no files"
    files = [path for below in place.walk() for path in below.others]
    if table := next((path for path in files if path.suffix.lower() in _TABLES), None):
        return f"{source} is a folder without images: give the file, {table}"
    return f"{source} holds no images, but {listed(relative(files, source))}{_about_archives(files)}"


def _about_archives(files: Sequence[Path]) -> str:
    archives = any(path.suffix.lower() in _ARCHIVES for path in files)
    return "; archives are not opened: unpack them if they hold images" if archives else ""


def _spaced(name: str) -> str:
    """Return a name in lower case, with spaces before words that start with a capital, as in TrainSet."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()


def relative(files: Iterable[Path], source: str) -> tuple[Path, ...]:
    """Return the paths relative to the folder that was given."""
    return tuple(path.relative_to(source) for path in files)


def listed(things: Iterable[object]) -> str:
    """Join the first few names, with … if there are more."""
    names = list(map(str, things))
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def counted(things: Sequence[object], one: str, several: str) -> str:
    """Return the number of things, followed by the singular or plural words."""
    return f"{len(things)} {one if len(things) == 1 else several}"
