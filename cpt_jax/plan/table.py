"""Formats a plan as a table for people to read."""

from collections.abc import Mapping, Sequence
from typing import Any

from cpt_jax.plan.embedding import AnyPlan, EmbeddingPlan
from cpt_jax.plan.forecast import PUBLISHED_MFU
from cpt_jax.plan.planning import Plan

_BINARY = (('GiB', 2**30), ('MiB', 2**20), ('KiB', 2**10))
_DECIMAL = (('EFLOP', 10**18), ('PFLOP', 10**15), ('TFLOP', 10**12), ('GFLOP', 10**9))
_TIMES = (('s', 1.0), ('ms', 1e-3), ('us', 1e-6))


def format_plan(plan: AnyPlan) -> str:
    """Returns a table of one plan, with its collectives and, if it does not fit, what to try."""
    if isinstance(plan, EmbeddingPlan):
        step = 'batch'
        program_rows = _list_embedding_rows(plan)
    else:
        step = 'step'
        program_rows = _list_training_rows(plan)
    title = plan.topology
    if plan.slices > 1:
        title += f', {plan.slices} slices'
    mesh = ' x '.join(f'{axis} {size}' for axis, size in plan.mesh.items())
    rows = [
        ('chips', f'{plan.chips}   mesh: {mesh}'),
        *program_rows,
        (
            'memory a chip',
            f'{_format_in_unit(plan.hbm_bytes_per_chip, _BINARY)} of '
            f'{_format_in_unit(plan.hbm_limit_bytes, _BINARY)}: {_format_verdict(plan)}',
        ),
        ('model', f'{_format_in_unit(plan.model_flops_per_step, _DECIMAL)} a {step}'),
        *_list_time_rows(plan, step),
        ('compiled in', f'{plan.compile_seconds:.0f} s by libtpu {plan.libtpu}, JAX {plan.jax}'),
    ]
    lines = [title, *(f'  {name:<14} {value}' for name, value in rows)]
    return '\n'.join(lines + _format_collectives(plan) + _format_notes(plan))


def _list_training_rows(plan: Plan) -> list[tuple[str, str]]:
    texts = 'texts' if plan.loss_form == 'next token' else 'pairs'
    return [
        ('parameters', f'{plan.params:,}{_describe_trained(plan)}'),
        (
            'batch',
            f'{plan.batch_pairs:,} {texts}, {plan.tokens_per_step:,} columns per step, '
            f'{plan.encode_chunks} encode_chunks',
        ),
        ('form', f'remat {plan.remat}, loss {plan.loss_form}'),
    ]


def _list_embedding_rows(plan: EmbeddingPlan) -> list[tuple[str, str]]:
    weights = _format_in_unit(plan.weight_bytes_per_chip, _BINARY)
    copies = 'every device has a copy'
    if plan.mesh['fsdp'] > 1:
        copies = f'{plan.mesh["fsdp"]} devices share a copy'
    return [
        (
            'parameters',
            f'{plan.params:,} in {plan.weights}, {weights} per chip: {copies}',
        ),
        (
            'batch',
            f'{plan.texts_per_step:,} texts of up to {plan.row_length:,} tokens, '
            f'{plan.tokens_per_step:,} columns',
        ),
    ]


def _describe_trained(plan: Plan) -> str:
    if not plan.frozen_bytes_per_chip:
        return ''
    trained = _format_in_unit(plan.trained_bytes_per_chip, _BINARY)
    frozen = _format_in_unit(plan.frozen_bytes_per_chip, _BINARY)
    return (
        f'; trained: {plan.trained_params:,}, {trained} per chip with optimizer state; frozen: '
        f'{frozen} per chip'
    )


def _format_verdict(plan: AnyPlan) -> str:
    return 'fits' if plan.fits else 'does not fit'


def _list_time_rows(plan: AnyPlan, step: str) -> list[tuple[str, str]]:
    """Returns rows with lower bounds of the time per step; [] if the program does not fit."""
    flops = plan.compiled_flops_per_step
    seconds = plan.lower_bound_seconds
    mfu = plan.mfu_bound
    if flops is None or seconds is None or mfu is None:
        return []
    ratio = flops / plan.model_flops_per_step
    bounds = {
        'arithmetic': plan.compute_seconds or 0.0,
        'memory': plan.memory_seconds or 0.0,
        'network': plan.network_seconds or 0.0,
    }
    limit = max(bounds, key=lambda name: bounds[name])
    bound = f'{format_seconds(seconds)} at least'
    if isinstance(plan, EmbeddingPlan):
        bound += f', {plan.texts_per_second_bound:,.0f} texts a second at most'
    return [
        (
            'program',
            f'{_format_in_unit(flops, _DECIMAL)} a {step}, {ratio:.2f} x the model',
        ),
        (
            'at least',
            ', '.join(f'{name} {format_seconds(value)}' for name, value in bounds.items()),
        ),
        (
            f'a {step}',
            f'{bound}, limited by {limit}; MFU {100 * mfu:.1f} % at most',
        ),
        ('forecast', _describe_forecast(plan)),
    ]


def _describe_forecast(plan: AnyPlan) -> str:
    seconds = format_seconds(plan.forecast_seconds or 0.0)
    text = f'{seconds}, MFU {100 * (plan.mfu_forecast or 0.0):.1f} %'
    if published := PUBLISHED_MFU.get(plan.topology.partition(':')[0]):
        text += (
            f' (MaxText measured {100 * published.low:.0f} to {100 * published.high:.0f} % on this '
            f'chip: {published.models})'
        )
    return text


def _format_collectives(plan: AnyPlan) -> list[str]:
    if not plan.collectives:
        return []
    head = ('collective', 'executions', 'sites', 'loops', 'devices', 'network', 'payload per chip')
    rows = [
        (
            _describe_collective(row),
            f'{row["count"]:,}',
            str(row['sites']),
            str(row['loops']),
            str(row['group']),
            row['network'],
            _format_in_unit(row['bytes'], _BINARY),
        )
        for row in plan.collectives
    ]
    return ['', *(f'  {line}' for line in align_columns([head, *rows]))]


def _describe_collective(row: Mapping[str, Any]) -> str:
    name = row['kind']
    if row['summed']:
        name += ' (as a sum)'
    if row['gradient']:
        name += ' of gradients'
    return name


def _format_notes(plan: AnyPlan) -> list[str]:
    notes = []
    if isinstance(plan, Plan) and plan.rows_assumed:
        notes.append(
            f'All texts are assumed to have their maximum length: {plan.rows} rows per device and '
            f'chunk. For an exact plan, set --config.data.rows=N to the number of rows that a run '
            f'with your data prints at its start.'
        )
    notes += [f'Notable: {note}.' for note in plan.notable or ()]
    if plan.uncounted:
        notes.append(f'Not counted in the arithmetic: {", ".join(plan.uncounted)}.')
    if any(row['summed'] for row in plan.collectives or ()):
        notes.append(
            '(as a sum): an all-gather compiled as an all-reduce of arrays that are zero outside '
            "the device's own part; it sends twice the bytes of a plain all-gather."
        )
    if not plan.fits and isinstance(plan, EmbeddingPlan):
        notes.append(
            'To try: more chips; a larger --fsdp (devices that share one copy of the parameters).'
        )
    elif not plan.fits:
        notes.append(
            'To try: more chips; a larger --config.mesh.fsdp (splits parameters and optimizer '
            'state) or --config.mesh.tensor; a larger --config.train.encode_chunks or '
            '--config.model.remat=full (activations); --config.loss.form=chunked (similarities); '
            'or --sweep, which tries them.'
        )
    return ['', *(f'  {note}' for note in notes)] if notes else []


def align_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns lines with aligned columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    first, *rest = widths
    return [
        '  '.join(
            [
                row[0].ljust(first),
                *(cell.rjust(width) for cell, width in zip(row[1:], rest, strict=True)),
            ]
        )
        for row in rows
    ]


def format_seconds(seconds: float) -> str:
    """Returns a duration as text, in minutes from 120 seconds on."""
    return _format_in_unit(seconds, _TIMES) if seconds < 120 else f'{seconds / 60:.0f} min'


def _format_in_unit(value: float, units: Sequence[tuple[str, float]]) -> str:
    """Returns a value as text, in the largest unit in which it is at least 1."""
    name, size = next((unit for unit in units if value >= unit[1]), units[-1])
    if value / size < 10_000:
        return f'{value / size:.4g} {name}'
    return f'{value / size:,.0f} {name}'
