"""Pages for people: one HTML or Markdown file from one jinja template, the same way for every report and card."""

from collections.abc import Callable
from pathlib import Path

import jinja2


def fill(template: Path, filters: dict[str, Callable], /, **values) -> str:
    """Returns the text of a template whose every name is one of `values`; HTML is escaped, a missing name raises."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        autoescape=jinja2.select_autoescape(["html.jinja"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template(template.name).render(**values)
