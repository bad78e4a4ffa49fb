"""Jinja templates of pages and cards, next to the code that fills them."""

from pathlib import Path

import jinja2


def open_templates(*folders: Path, is_html: bool) -> jinja2.Environment:
    """Returns the templates in folders, in which a missing value is an error.

    Args:
      folders: folders that are searched in order.
      is_html: whether values are escaped for HTML.
    """
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders),
        autoescape=is_html,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
