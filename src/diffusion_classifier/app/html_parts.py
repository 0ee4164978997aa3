"""HTML and tables of classifications."""

from __future__ import annotations

import html
from collections.abc import Collection, Mapping, Sequence

import pandas as pd

from ..search.classification import Classification

NUM_BARS = 20
"""Number of labels shown with a bar; further labels are counted."""

STYLE = """
.dark { --color-accent: var(--primary-400) !important }
.dc-bars { list-style: none; margin: 0; padding: 0 }
.dc-bars li { display: grid; grid-template-columns: minmax(5rem, 2fr) 3fr 4.5rem; gap: .6rem; align-items: center;
  padding: .15rem 0; margin: 0 }
.dc-bars meter { width: 100%; height: .8rem; appearance: none; background: var(--background-fill-secondary) }
.dc-bars meter::-webkit-meter-bar { border: 0; border-radius: 2px; background: var(--background-fill-secondary) }
.dc-bars meter::-webkit-meter-inner-element { height: .8rem }
.dc-bars meter::-webkit-meter-optimum-value { background: var(--color-accent) }
.dc-bars meter::-moz-meter-bar { background: var(--color-accent) }
.dc-bars .value { text-align: right; font-variant-numeric: tabular-nums }
.dc-bars .out .name { text-decoration: line-through }
.dc-bars .best { font-weight: 600 }
.dc-photo img { width: 100%; height: 100%; object-fit: contain; image-rendering: pixelated }
"""


def bars(shares: Mapping[str, float], out: Collection[str] = (), title: str = "") -> str:
    """Return a list of labels with a bar each, best first.

    Args:
        shares: label → probability.
        out: labels that the search has dropped.
        title: heading of the list.
    """
    order = sorted(shares.items(), key=lambda pair: (pair[0] in out, -pair[1]))
    lines = []
    for place, (label, share) in enumerate(order[:NUM_BARS]):
        name, kind = html.escape(label), "out" if label in out else "best" if place == 0 else ""
        value = "out" if label in out else f"{share:.1%}"
        meter = f'<meter min=0 max=1 value={share:.4f} aria-label="{name}"></meter>'
        lines.append(f'<li class="{kind}"><span class=name>{name}</span>{meter}<span class=value>{value}</span></li>')
    more = f"<p>and {len(order) - NUM_BARS:,} more</p>" if len(order) > NUM_BARS else ""
    return f"<h3>{html.escape(title)}</h3><ol class=dc-bars>{''.join(lines)}</ol>{more}"


def dropped(result: Classification) -> set[str]:
    """Return the labels dropped by the search: they were evaluated on fewer draws than the winner."""
    draws = (~result.errors.isnan()).sum(1)
    lost = (draws < draws[result.class_names.index(result.label or "")]).tolist()
    return {name for name, is_lost in zip(result.class_names, lost, strict=True) if is_lost}


def status(result: Classification, done: bool, notes: Sequence[str] = ()) -> str:
    """Return a line of HTML on the state of a search, with notes on the image."""
    left = len(result.class_names) - len(dropped(result))
    line = f"{result.num_evaluations:,} evaluations, {int((~result.errors.isnan()).any(0).sum()):,} draws"
    if not done:
        return f"{line}; {left} of {len(result.class_names)} labels remain …"
    line = f"<strong>{html.escape(result.label or '')}</strong> {result.score:.1%} · {line} · {result.seconds:.2f} s"
    if result.undecided:
        line += f" · undecided between {html.escape(', '.join(result.undecided))}"
    return " · ".join((line, *map(html.escape, notes)))


def leads(result: Classification) -> pd.DataFrame:
    """Return the error under the runner-up minus the error under the winner at each common draw: columns t, lead.

    The runner-up has the most draws in common with the winner and, among equals, the smallest margin.
    """
    winner = result.class_names.index(result.label or "")
    lead = result.errors.double() - result.errors[winner].double()
    known = ~lead.isnan()
    rivals = [k for k in range(len(lead)) if k != winner]
    rival = max(rivals, key=lambda k: (int(known[k].sum()), -float(result.margin[k])))
    draws = known[rival].nonzero().flatten()
    return pd.DataFrame({"t": result.t[draws].tolist(), "lead": lead[rival, draws].tolist()}).sort_values("t")
