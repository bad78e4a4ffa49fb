"""Makes the tables and plots of docs/experiments.md from the rows of the experiments, and a page.

Nothing is run: the rows in benchmarks/experiments are read.

Example:
  python benchmarks/sweep_report.py --page runs/experiments/index.html
"""

import base64
from pathlib import Path

from absl import flags

import cpt_jax.evals.report.page
from cpt_jax.cli.program import run_program
from cpt_jax.storage.atomic_write import write_atomically
from cpt_jax.storage.templates import open_templates
from experiment import FOLDER, RUNS
from experiment_plots import draw
from experiment_tables import Findings, collect, fill_page, format_markdown

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / 'docs' / 'experiments.md'
PLOTS = DOCUMENT.with_suffix('')


def main() -> None:
    found = collect_all()
    PLOTS.mkdir(exist_ok=True)
    for findings in found:
        if findings.arms:
            write_atomically(PLOTS / f'{findings.name}.svg', draw(findings))
    write_atomically(DOCUMENT, fill_document(DOCUMENT.read_text(), found))
    page = Path(_PAGE.value)
    page.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(page, render_page(found))
    rows = sum(len(findings.rows) for findings in found)
    print(f'{rows} rows of {len(found)} experiments: {DOCUMENT.relative_to(ROOT)}, {page}')


def collect_all() -> list[Findings]:
    """Returns the results of all experiments in benchmarks/experiments."""
    return [collect(path) for path in sorted(FOLDER.glob('*.py'))]


def fill_document(text: str, found: list[Findings]) -> str:
    """Returns the text of docs/experiments.md with the tables of the experiments."""
    parts = {one.name: format_markdown(one, f'{PLOTS.name}/{one.name}.svg') for one in found}
    return fill_page(text, parts)


def render_page(found: list[Findings]) -> str:
    """Returns one HTML page with the tables and plots of all experiments."""
    report = Path(cpt_jax.evals.report.page.__file__).parent
    environment = open_templates(Path(__file__).parent, report, is_html=True)
    environment.filters |= {'draw_uri': _draw_uri}
    return environment.get_template('sweep_report.html.j2').render(found=found)


def _draw_uri(findings: Findings) -> str:
    return 'data:image/svg+xml;base64,' + base64.b64encode(draw(findings)).decode()


if __name__ == '__main__':
    _PAGE = flags.DEFINE_string('page', f'{RUNS}/index.html', 'Path of the page to write.')
    run_program(main)
