"""Folders of images: which folders are the classes.

Everything that is found is used, or a note says that it is not; files that are not `images.visible` aside. Where a
folder could be understood in two ways, it is rejected with advice.
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
        files: M paths relative to the folder, in the order of their text.
        labels: (M,), indices into class_names; all -1 where there are no folders of classes.
        class_names: names of the folders of classes, those without images among them.
        notes: as in `sources.LabelledSource`.
    """

    files: tuple[Path, ...]
    labels: tuple[int, ...]
    class_names: tuple[str, ...]
    notes: tuple[str, ...]


def read_folder(source: str, split: str | None = None, *, allow_incomplete: bool = False) -> Folder:
    """Read the images of a folder, and their classes, which are the folders right in it.

    Images in folders further down belong to the class above them. Whatever is no image is left out, with a note.
    Classes are in the order of their names as text; if these are numbers, or differ in a number alone, in its order.

    Args:
        source: the folder, or one with a folder for each split.
        split: as in `find_split`.
        allow_incomplete: leave out images that lie beside the folders of classes, with a note.

    Raises:
        InputError: as `find_split`; it is not clear which folders are the classes; images lie beside these; names of
            classes look the same, or are no text.
    """
    notes: list[str] = []
    place = find_split(source, split, notes)
    classes = [folder for folder in place.folders if folder.holds_images or folder.is_empty]
    if len(classes) < 2:  # images whose classes are not known
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
    """Reject folders of which either level may be the classes, and splits within classes."""
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
    """Sort names as text, or by number if they are numbers or differ in a number alone."""
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
        InputError: a name is not UTF-8.
    """
    ordered = sorted(files, key=str)
    for path in ordered:
        try:
            str(path).encode()
        except UnicodeEncodeError as e:
            raise InputError(f"a name in {str(path.parent)!a} is not UTF-8, at {str(path)!a}") from e
    return ordered
