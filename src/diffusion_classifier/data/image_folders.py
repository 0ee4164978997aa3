"""Folders of images in class folders.

Every visible file is either used or mentioned in a note. A folder that could be read in two ways is rejected with
advice.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from .splits import Place, counted, find_split, listed, note_others, relative, split_of


@dataclass(frozen=True)
class Folder:
    """Images in a folder.

    Args:
        files: (M,) paths relative to the folder, sorted as text.
        labels: (M,) indices into class_names; all -1 without class folders.
        class_names: Names of the class folders, including empty ones.
        notes: See `LabelledSource`.
    """

    files: tuple[Path, ...]
    labels: tuple[int, ...]
    class_names: tuple[str, ...]
    notes: tuple[str, ...]


def read_folder(source: str, root: Place, split: str | None = None, *, allow_incomplete: bool = False) -> Folder:
    """Read the images of a folder. The sub-folders are the classes.

    Images in deeper folders belong to the class above them. Files that are not images are left out, with a note.
    Classes are sorted by name as text, or numerically if the names are numbers or differ in a number only.

    Args:
        source: The folder as it was given, for messages.
        root: The same folder, or one with a folder for each split.
        split: See `find_split`.
        allow_incomplete: Leave out images that lie beside the class folders, with a note.

    Raises:
        InputError: There is no such split (see `find_split`); it is unclear which folders are the classes; images lie
            beside the class folders; or class names look the same or are not valid text.
    """
    notes: list[str] = []
    place = find_split(source, root, split, notes)
    classes = [folder for folder in place.folders if folder.holds_images or folder.is_empty]
    if len(classes) < 2:  # classes are unknown
        files = _as_text(path for folder in place.walk() for path in folder.images)
        if len(classes) == 1 and not place.images:
            notes.append(f"all images are in one folder, {classes[0].path}: their classes are taken to be unknown")
        _note_others(source, place, place.with_images, notes)
        return Folder(relative(files, source), (-1,) * len(files), (), tuple(notes))
    _check_levels(source, place)
    if place.images:
        beside = f"{counted(place.images, 'image lies', 'images lie')} beside the folders of classes in {place.path}"
        if not allow_incomplete:
            raise InputError(
                f"{beside}, and so in no class: {listed(path.name for path in place.images)}; move what does not "
                "belong there, or allow incomplete data (--allow-incomplete) to leave it out"
            )
        notes.append(f"{beside}, left out: {listed(path.name for path in place.images)}")
    names = _ordered([folder.name for folder in classes], notes)
    _check_names(place.path, names)
    label = {name: i for i, name in enumerate(names)}
    of_class = {path: label[folder.name] for folder in classes for below in folder.walk() for path in below.images}
    files = _as_text(of_class)
    _note_classes(classes, source, notes)
    _note_others(source, place, classes, notes)
    return Folder(relative(files, source), tuple(of_class[path] for path in files), names, tuple(notes))


def _check_levels(source: str, place: Place) -> None:
    """Raise if the classes may be on two levels, or a class contains splits."""
    inner = place.with_images
    for folder in inner:
        for below in folder.walk():
            if below is not folder and split_of(below.name) and below.holds_images:
                raise InputError(
                    f"{below.path} looks like a split within a class of {source}, and splits are not mixed: give a "
                    "folder that holds one split only"
                )
    lower = {below.name for folder in inner for below in folder.with_images}
    if not any(folder.images for folder in inner) and (
        len(lower) > 1 or any(len(folder.with_images) > 1 for folder in inner)
    ):
        shown = [below.path.relative_to(place.path) for folder in inner for below in folder.with_images]
        raise InputError(
            f"the classes of {place.path} may be the folders in it ({listed(folder.name for folder in inner)}) or "
            f"those one level below ({listed(shown)}): move the images so that one level is left, or list "
            "them in a CSV file with the columns image and label"
        )


def _ordered(names: Sequence[str], notes: list[str]) -> tuple[str, ...]:
    """Sort names as text, or numerically if they are numbers or differ in a number only."""
    as_text = tuple(sorted(names))
    matches = [re.fullmatch(r"([^0-9]*)([0-9]+)([^0-9]*)", name) for name in as_text]
    around = {(match[1], match[3]) for match in matches if match}
    if not all(matches) or len(around) > 1:
        return as_text
    ordered = tuple(sorted(as_text, key=lambda name: (int(re.sub(r"[^0-9]", "", name)), name)))
    if ordered != as_text:
        notes.append(
            f"the classes are in the order of the numbers in their names ({listed(ordered)}), not of text "
            f"({listed(as_text)})"
        )
    return ordered


def _check_names(folder: Path, names: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for name in names:
        if not name.strip() or any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
            raise InputError(
                f"the folder {name!a} in {folder} cannot be a class: its name is blank, has control characters such as "
                "a line break, or is not UTF-8"
            )
        same = seen.setdefault(unicodedata.normalize("NFC", name.strip()), name)
        if same != name:
            raise InputError(f"the folders {same!a} and {name!a} in {folder} look the same: rename or merge them")


def _note_classes(classes: Sequence[Place], source: str, notes: list[str]) -> None:
    if empty := [folder.name for folder in classes if not folder.holds_images]:
        notes.append(
            f"{counted(empty, 'class has', 'classes have')} no images and can be predicted all the same: "
            f"{listed(empty)}"
        )
    if deep := [below.path for folder in classes for below in folder.with_images]:
        names = listed(relative(deep, source))
        notes.append(f"images in folders within those of classes belong to the class above them: {names}")


def _note_others(source: str, place: Place, used: Sequence[Place], notes: list[str]) -> None:
    below = [path for folder in used for at in folder.walk() for path in at.others]
    note_others(source, place, used, notes, below)


def _as_text(files: Iterable[Path]) -> list[Path]:
    """Sort paths as text.

    Raises:
        InputError: A name is not UTF-8.
    """
    ordered = sorted(files, key=str)
    for path in ordered:
        try:
            str(path).encode()
        except UnicodeEncodeError as e:
            raise InputError(f"a name in {str(path.parent)!a} is not UTF-8, at {str(path)!a}") from e
    return ordered
