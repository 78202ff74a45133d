"""The report page of a training: a single HTML file that contains its pictures."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rayapp.files.durable import replacing
from rayapp.training.case_scores import TOLERANCE, CaseScore

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24 }
table { border-collapse: collapse; margin: .5rem 0 1.5rem } td, th { padding: .2rem .8rem .2rem 0; text-align: left }
th { border-bottom: 1px solid #888 } td.number { text-align: right; font-variant-numeric: tabular-nums }
img { max-width: 100% } figure { margin: 1rem 0 } figcaption { color: #555 }
"""
_COLUMNS = ("Dice", f"Surface Dice at {TOLERANCE:g} mm", "HD95, mm", "Volume, ml", "Reference, ml")


def write_page(
    path: Path,
    *,
    title: str,
    facts: Mapping[str, Any],
    scores: Sequence[CaseScore],
    reasons: Mapping[str, Any],
    pictures: Mapping[str, Path],
) -> None:
    """Write the page.

    Args:
        path: The file.
        title: The page's title.
        facts: Facts about the training, in order.
        scores: Scores of all validation cases.
        reasons: The plan: each choice with its reason.
        pictures: PNG files by caption.
    """
    parts = [f"<h1>{escape(title)}</h1>", _table(("", ""), [(name, _text(value)) for name, value in facts.items()])]
    if scores:
        parts += ["<h2>Structures</h2>", _table(("", *_COLUMNS), _means(scores))]
        parts += ["<h2>Images, the worst first</h2>", _table(("Image", "Structure", *_COLUMNS), _each(scores))]
    parts += [_figure(caption, picture) for caption, picture in pictures.items() if picture.exists()]
    plan = [(name, _text(value)) for name, value in reasons.items()]
    parts += ["<h2>Plan</h2>", _table(("", ""), plan)] if plan else []
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    with replacing(path) as staged:
        staged.write_text(head + "\n".join(parts) + "</html>\n", encoding="utf-8")


def _means(scores: Sequence[CaseScore]) -> list[tuple[Any, ...]]:
    """Mean scores of each structure, for each measurement."""
    groups: dict[tuple[str, str], list[CaseScore]] = {}
    for score in scores:
        groups.setdefault((score.structure, score.measurement), []).append(score)
    several = len({measurement for _, measurement in groups}) > 1
    return [
        (f"{name}, {measurement}" if several else name, *map(_mean, zip(*map(_numbers, group), strict=True)))
        for (name, measurement), group in groups.items()
    ]


def _each(scores: Sequence[CaseScore]) -> list[tuple[Any, ...]]:
    """The scores of each case and structure for the last measurement, the one with the most prompts."""
    last = scores[-1].measurement
    ordered = sorted((score for score in scores if score.measurement == last), key=lambda score: score.dice)
    return [(score.image, score.structure, *_numbers(score)) for score in ordered]


def _numbers(score: CaseScore) -> tuple[float, ...]:
    return score.dice, score.surface_dice, score.hd95, score.volume, score.reference


def _mean(values: Sequence[float]) -> float:
    """The mean without NaN; NaN if there is none."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_text(one)}" for name, one in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    return str(value)


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    names = "".join(f"<th>{escape(column)}</th>" for column in columns)
    head = f"<tr>{names}</tr>" if any(columns) else ""
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f"<table>{head}{body}</table>"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f'<td class="number">{"" if math.isnan(value) else f"{value:.3f}"}</td>'
    return f"<td>{escape(str(value))}</td>"


def _figure(caption: str, picture: Path) -> str:
    data = base64.b64encode(picture.read_bytes()).decode()
    return (
        f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
