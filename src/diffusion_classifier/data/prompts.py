"""Lists of labels, and prompts made of class names and templates. Does not import torch."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Collection, Sequence
from difflib import get_close_matches

from ..errors import InputError

_LIST = re.compile(r"\[[^\[\]]*\]|\{[^{}]*\}|\(\s*['\"][^()]*\)")
"""A list, set or tuple written as text by a program."""
_NUMBER = re.compile(r"((class|label)[\s_-]*|[+-])?\d+([.,]\d+)?", re.IGNORECASE)
_OPENING, _CLOSING = ("'", "‘", "“", "„", "«"), ("'", "’", "”", "“", "»")
"""Quotes that have no meaning in CSV."""


def split_labels(text: str) -> list[str]:
    """Split labels at commas, as a line of CSV: a label that contains a comma is in double quotes.

    Raises:
        InputError: Double quotes enclose a part of a label, other quotes enclose labels, there are several lines, or
            the text is a list as written by Python, JSON or pandas.
    """
    text = text.strip()
    if _LIST.fullmatch(text):
        raise InputError(f"labels are separated by commas, without brackets around them; got {text!r}")
    try:
        rows = list(csv.reader([text], skipinitialspace=True, strict=True))
    except csv.Error as e:
        what = "it has several lines" if len(text.splitlines()) > 1 else "its double quotes do not enclose whole labels"
        raise InputError(
            f"labels are one line, separated by commas, a label that has one in double quotes; {what}: {text!r}"
        ) from e
    labels = [label.strip() for label in rows[0]] if rows and rows[0] else [""]
    for i, label in enumerate(labels):
        if label.startswith(_OPENING) and any(other.endswith(_CLOSING) for other in labels[i:]):
            raise InputError(f"only double quotes can enclose a label, where it has a comma; got {label} in {text}")
    return labels


def parse_labels(labels: str | Sequence[str], *, cased: bool = False) -> list[str]:
    """Check candidate labels and return them without surrounding spaces.

    Args:
        labels: A list, or text for `split_labels`.
        cased: Whether labels that differ only in capitals are distinct, as for classes of a data set.

    Raises:
        InputError: There are fewer than two labels, or one is empty, not a string, or given twice; or see
            `split_labels`.
    """
    labels = split_labels(labels) if isinstance(labels, str) else labels
    if strange := [name for name in labels if not isinstance(name, str)]:
        raise InputError(f"labels are words; got {strange[0]!r}")
    names = [name.strip() for name in labels]
    if empty := [i for i, name in enumerate(names) if not name]:
        raise InputError(f"label {empty[0] + 1} of {len(names)} is empty")
    if len(names) < 2:
        raise InputError(f"at least two labels are needed to choose from; got {', '.join(map(repr, names)) or 'none'}")
    seen: dict[str, str] = {}
    for name in names:
        key = name if cased else name.lower()
        if (same := seen.get(key)) is not None:
            other = f": it differs from {same!r} in capitals only" if same != name else ""
            raise InputError(f"the label {name!r} is given twice{other}")
        seen[key] = name
    return names


def distinct_names(class_names: Sequence[str], ids: Sequence[int] | None = None, *, cased: bool = False) -> list[str]:
    """Return names of classes, where each of several that share a name gets its index, as in "crane (134)".

    Args:
        class_names: names of all classes.
        ids: indices of the classes to name. Default: all.
        cased: whether names that differ in capitals only count as different.
    """
    ids = range(len(class_names)) if ids is None else ids
    keys = [name if cased else name.lower() for name in class_names]
    count = Counter(keys[i] for i in ids)
    return [f"{class_names[i]} ({i})" if count[keys[i]] > 1 else class_names[i] for i in ids]


def check_names_are_words(names: Sequence[str], source: str) -> None:
    """Raise if all class names are numbers, because prompts made of them mean nothing.

    Args:
        names: All class names.
        source: Name of the data set.

    Raises:
        InputError: All names are numbers, such as 3 and class_3.
    """
    if all(map(_NUMBER.fullmatch, names)):
        raise InputError(
            f"the class names of {source} are numbers, {', '.join(names[:3])} …, which mean nothing to a text-to-image "
            "model: give their names, --class-names; or, if numbers are meant, a --template such as "
            "'the number {}'"
        )


def check_prompt_length(prompt: str, num_tokens: int, limit: int) -> None:
    """Raise if a prompt is too long, because prompts are never truncated.

    Raises:
        InputError: The prompt has more tokens, start and end included, than the model reads.
    """
    if num_tokens > limit:
        raise InputError(
            f"the prompt {prompt!r} is {num_tokens - limit} tokens too long: it has {num_tokens}, start and end "
            f"included, and this model reads {limit}"
        )


def fill_template(template: str, classnames: Sequence[str]) -> list[str]:
    """Return one prompt per class, with its name in place of {}.

    Raises:
        InputError: The template does not have exactly one {}, or has other braces.
    """
    before, field, after = template.partition("{}")
    if not field or set("{}") & set(before + after):
        raise InputError(
            f"the template {template!r} must hold {{}} exactly once, where the label goes, and no other braces"
        )
    return [before + name + after for name in classnames]


def words_of(text: str) -> set[str]:
    """Return the words of a text in lower case: runs of letters, and single digits, as in CLIP's tokenizer."""
    return set(re.findall(r"[^\W\d_]+|\d", text.lower()))


def check_known_words(prompts: Sequence[str], known: Collection[str]) -> None:
    """Raise if a prompt has a word that the model was not trained with.

    Raises:
        InputError: A prompt has an unknown word.
    """
    for prompt in prompts:
        for word in sorted(words_of(prompt).difference(known)):
            near = get_close_matches(word, known, n=3)
            raise InputError(
                f"the prompt {prompt!r} has the word {word!r}, which this model was not trained with"
                + (f"; near it are {', '.join(near)}" if near else f"; its {len(known)} words are {', '.join(known)}")
            )
