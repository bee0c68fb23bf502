"""The table of a plan: what will be made, how much of it each class gets, and how it is asked for."""

from collections import Counter
from collections.abc import Sequence

from dermjax.generation.plan import Request

EXAMPLES = 3  # prompts a class


def text(asked: Sequence[Request], size: int, batch: int, devices: int) -> str:
    """Returns the table: a column a class, a row a sampler and a word, then examples of prompts."""
    first = asked[0]
    labels = sorted({request.label for request in asked})
    rows = [("", *labels, "all"), _row("images", asked, labels, lambda request: True)]
    for sampler in sorted({request.sampler for request in asked}):
        rows.append(_row(sampler, asked, labels, lambda request, name=sampler: request.sampler == name))
    for gap in sorted({gap for request in asked for gap, _ in request.words}):
        said = Counter(dict(request.words).get(gap, "") for request in asked)
        for word in sorted(said, key=lambda word: (-said[word], word)):
            title = f"{gap} {word or '(not said)'}"
            rows.append(_row(title, asked, labels, lambda r, gap=gap, word=word: dict(r.words).get(gap, "") == word))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    table = ["  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
             for row in rows]  # fmt: skip
    told = f"{size} px, {first.steps} steps, guidance {first.guidance:g}, seeds from {min(r.seed for r in asked)}"
    shared = f"batches of {batch} on {devices} device{'s' if devices > 1 else ''} of this process"
    return "\n".join([f"{told}, {shared}", *table, *_examples(asked, labels)])


def _row(title: str, asked: Sequence[Request], labels: Sequence[str], counts) -> tuple[str, ...]:
    hit = [request.label for request in asked if counts(request)]
    return (title, *(str(hit.count(label)) for label in labels), str(len(hit)))


def _examples(asked: Sequence[Request], labels: Sequence[str]) -> list[str]:
    """Returns the first different prompts of each class, each with its negative one."""
    lines = []
    for label in labels:
        pairs = dict.fromkeys((request.prompt, request.negative) for request in asked if request.label == label)
        for prompt, negative in list(pairs)[:EXAMPLES]:
            lines.append(f"{label}: {prompt}" + (f"   not: {negative}" if negative else ""))
        if len(pairs) > EXAMPLES:
            lines.append(f"{label}: and {len(pairs) - EXAMPLES} more prompts")
    return lines
