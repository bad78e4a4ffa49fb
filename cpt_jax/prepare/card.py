"""The card of a prepared data set: what it was made of, and what was left out."""

from collections.abc import Mapping
from typing import Any

_SCOPE = (
    'Personal data were not searched for or removed, and robots rules were not looked at: both are '
    'out of the scope of this program.'
)


def format_card(summary: Mapping[str, Any]) -> str:
    """Returns the card as Markdown.

    Args:
      summary: content of summary.json.
    """
    total = summary['total']
    lines = [
        '# Pairs of texts',
        '',
        'Written by `launch/prepare.py` of cpt_jax. Train on them with a source '
        "`{'kind': 'tfds', 'path': DIR}`.",
        '',
        _format_sentence(summary),
        '',
        '| source | files | MB | records | unreadable | dropped | pairs |',
        '| --- | --- | --- | --- | --- | --- | --- |',
        *(_format_row(name, found) for name, found in summary['sources'].items()),
        '',
        '## Dropped',
        '',
        *(_list_counts(total['dropped']) or ['Nothing.']),
        '',
        '## Could not be read',
        '',
        *(_list_unreadable(total) or ['Nothing.']),
        '',
        '## Texts of test sets',
        '',
        *_format_contamination(summary.get('decontamination')),
        '',
        *_format_consistency(summary.get('consistency')),
        '## Scope',
        '',
        _SCOPE,
        '',
    ]
    return '\n'.join(lines)


def _format_contamination(report: Mapping[str, Any] | None) -> list[str]:
    if report is None:
        return ['Not searched for: the data set was prepared without `--data_dir`.']
    lines = [
        'Pairs were removed that contain a whole test text of 5 to 13 words, or 13 consecutive '
        'words of a longer one, whatever its case and punctuation, and so were hard negatives, '
        'whose pairs stayed. Test texts below 5 words are too common to be removed.',
        '',
        '| test set | texts | below 5 words | searched | pairs removed | negatives | first |',
        '| --- | --- | --- | --- | --- | --- | --- |',
    ]
    for name, found in report['sets'].items():
        first = f'`{found["examples"][0][1]}`' if found['examples'] else ''
        lines.append(
            f'| {name} | {found["texts"]:,} | {found["short"]:,} | {_describe_scope(found)} | '
            f'{found["pairs"]:,} | '
            f'{found["negatives"]:,} | {first} |'
        )
    if report['not_covered']:
        lines += ['', f'Not covered: {", ".join(report["not_covered"])}.']
    return lines


def _describe_scope(found: Mapping[str, Any]) -> str:
    if not found['searched']:
        return 'nothing'
    return 'queries only' if found['queries_only'] else 'all texts'


def _format_consistency(report: Mapping[str, Any] | None) -> list[str]:
    if report is None:
        return []
    return [
        '## Consistency',
        '',
        f'A pair stayed if {report["model"]} ranks its y among the {report["top_k"]} best for its '
        f'x, in a random sample of {report["sample"]:,} y.',
        '',
        '| rank | pairs |',
        '| --- | --- |',
        *(f'| {name} | {number:,} |' for name, number in report['ranks'].items()),
        '',
    ]


def _format_sentence(summary: Mapping[str, Any]) -> str:
    parts = [f'{number:,} pairs in `{split}`' for split, number in summary['pairs'].items()]
    return f'{" and ".join(parts)}. Preparation {summary["preparation"]}.'


def _format_row(name: str, found: Mapping[str, Any]) -> str:
    bad = sum(found['unreadable'].values())
    dropped = sum(found['dropped'].values())
    pairs = sum(found['pairs'].values())
    return (
        f'| {name} | {found["files"]:,} | {found["bytes"] / 1e6:,.1f} | {found["records"]:,} | '
        f'{bad:,} | {dropped:,} | {pairs:,} |'
    )


def _list_counts(counts: Mapping[str, int]) -> list[str]:
    found = sorted(counts.items(), key=lambda item: -item[1])
    return [f'- {reason}: {number:,}' for reason, number in found if number]


def _list_unreadable(total: Mapping[str, Any]) -> list[str]:
    lines = [
        f'- {kind}: {number:,} (first: {total["examples"][kind][0]})'
        for kind, number in total['unreadable'].items()
    ]
    if total['cut_files']:
        lines.append(f'- files that could not be read to their end: {total["cut_files"]:,}')
    return lines
