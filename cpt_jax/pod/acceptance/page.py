"""The page of an acceptance run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cpt_jax.pod.acceptance.check import Check, count_failed
from cpt_jax.storage.templates import open_templates


def render_acceptance(machine: Mapping[str, Any], checks: Sequence[Check]) -> str:
    """Returns the page as HTML.

    Args:
      machine: properties of the machine, by name.
      checks: results of the checks.
    """
    environment = open_templates(Path(__file__).parent, is_html=True)
    template = environment.get_template('page.html.j2')
    return template.render(machine=machine, checks=checks, failed=count_failed(checks))
