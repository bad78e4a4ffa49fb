"""The page of an acceptance run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from cpt_jax.pod.acceptance.check import Check, count_failed


def render_acceptance(machine: Mapping[str, Any], checks: Sequence[Check]) -> str:
    """Returns the page as HTML.

    Args:
      machine: properties of the machine, by name.
      checks: results of the checks.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template('page.html.j2')
    return template.render(machine=machine, checks=checks, failed=count_failed(checks))
