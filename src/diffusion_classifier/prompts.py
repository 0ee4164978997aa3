"""Class names × template → prompts. No torch here."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from difflib import get_close_matches

from .exceptions import InputError


def parse_labels(labels: str | Sequence[str]) -> list[str]:
    """Candidate labels from a list or a comma-separated string.

    Raises:
        InputError: fewer than two, an empty one, one twice, or one that is not a string.
    """
    labels = labels.split(",") if isinstance(labels, str) else labels
    if strange := [name for name in labels if not isinstance(name, str)]:
        raise InputError(f"labels are words; got {strange[0]!r}")
    names = [name.strip() for name in labels]
    if empty := [i for i, name in enumerate(names) if not name]:
        raise InputError(f"label {empty[0] + 1} of {len(names)} is empty")
    if len(names) < 2:
        raise InputError(f"at least two labels are needed to choose from; got {', '.join(map(repr, names)) or 'none'}")
    seen: set[str] = set()
    for name in names:
        if name.lower() in seen:
            raise InputError(f"the label {name!r} is given twice")
        seen.add(name.lower())
    return names


def refuse_long(prompt: str, num_tokens: int, limit: int) -> None:
    """Complain of a prompt that would have to be cut short, which none is.

    Raises:
        InputError: it has more tokens, start and end included, than the model reads.
    """
    if num_tokens > limit:
        raise InputError(
            f"the prompt {prompt!r} is {num_tokens - limit} tokens too long: it has {num_tokens}, start and end "
            f"included, and this model reads {limit}"
        )


def fill_template(template: str, classnames: Sequence[str]) -> list[str]:
    """One prompt a class: the name in place of {}.

    Raises:
        InputError: the template has no {}, or other fields.
    """
    before, field, after = template.partition("{}")
    if not field or set("{}") & set(before + after):
        raise InputError(
            f"the template {template!r} must hold {{}} exactly once, where the label goes, and no other braces"
        )
    return [before + name + after for name in classnames]


def words_of(text: str) -> set[str]:
    """Its words, in small letters: runs of letters, and single digits, as CLIP's tokenizer parts a text."""
    return set(re.findall(r"[^\W\d_]+|\d", text.lower()))


def refuse_unknown_words(prompts: Sequence[str], known: Collection[str]) -> None:
    """Complain of words that a model has never read.

    Raises:
        InputError: a prompt has one.
    """
    for prompt in prompts:
        for word in sorted(words_of(prompt).difference(known)):
            near = get_close_matches(word, known, n=3)
            raise InputError(
                f"the prompt {prompt!r} has the word {word!r}, which this model was not trained with"
                + (f"; near it are {', '.join(near)}" if near else f"; its {len(known)} words are {', '.join(known)}")
            )
