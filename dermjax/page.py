"""Pages for people: one HTML file from one jinja template, the same way for every report."""

from collections.abc import Callable
from pathlib import Path

import jinja2


def fill(template: Path, filters: dict[str, Callable], /, **values) -> str:
    """Returns the HTML of a template whose every name is one of `values`; text is escaped, a missing name raises."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template(template.name).render(**values)
