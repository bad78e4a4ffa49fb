"""A plan for people to read."""

from collections.abc import Sequence

from cpt_jax.plan.embedding import AnyPlan, EmbeddingPlan
from cpt_jax.plan.planning import Plan

_BINARY = (('GiB', 2**30), ('MiB', 2**20), ('KiB', 2**10))
_DECIMAL = (('EFLOP', 10**18), ('PFLOP', 10**15), ('TFLOP', 10**12), ('GFLOP', 10**9))
_TIMES = (('s', 1.0), ('ms', 1e-3), ('us', 1e-6))


def show(plan: AnyPlan) -> str:
    """Lines for one plan, of training or of embedding, with its collectives and, where it does not
    fit, what to try.
    """
    step = 'batch' if isinstance(plan, EmbeddingPlan) else 'step'
    where = plan.topology + (f', {plan.slices} slices' if plan.slices > 1 else '')
    mesh = ' x '.join(f'{axis} {size}' for axis, size in plan.mesh.items())
    rows = [
        ('chips', f'{plan.chips}   mesh: {mesh}'),
        *(_embedding(plan) if isinstance(plan, EmbeddingPlan) else _training(plan)),
        (
            'memory a chip',
            f'{_unit(plan.hbm_bytes_per_chip, _BINARY)} of '
            f'{_unit(plan.hbm_limit_bytes, _BINARY)}: {_verdict(plan)}',
        ),
        ('model', f'{_unit(plan.model_flops_per_step, _DECIMAL)} a {step}'),
        *_times(plan, step),
        ('compiled in', f'{plan.compile_seconds:.0f} s by libtpu {plan.libtpu}, JAX {plan.jax}'),
    ]
    lines = [f'{where}', *(f'  {name:<14} {value}' for name, value in rows)]
    return '\n'.join(lines + _collectives(plan) + _notes(plan))


def _training(plan: Plan) -> list[tuple[str, str]]:
    texts = 'texts' if plan.loss_form == 'next token' else 'pairs'
    return [
        ('parameters', f'{plan.params:,}{_trained(plan)}'),
        (
            'batch',
            f'{plan.batch_pairs:,} {texts}, {plan.tokens_per_step:,} columns a step, '
            f'{plan.encode_chunks} encode_chunks',
        ),
        ('form', f'remat {plan.remat}, loss {plan.loss_form}'),
    ]


def _embedding(plan: EmbeddingPlan) -> list[tuple[str, str]]:
    copies = (
        f'{plan.mesh["fsdp"]} devices share a copy'
        if plan.mesh['fsdp'] > 1
        else 'every device has a copy'
    )
    return [
        (
            'parameters',
            f'{plan.params:,} in {plan.weights}, {_unit(plan.weight_bytes_per_chip, _BINARY)} a '
            f'chip: {copies}',
        ),
        (
            'batch',
            f'{plan.texts_per_step:,} texts of up to {plan.row_length:,} tokens, '
            f'{plan.tokens_per_step:,} columns',
        ),
    ]


def _trained(plan: Plan) -> str:
    if not plan.frozen_bytes_per_chip:
        return ''
    trained = _unit(plan.trained_bytes_per_chip, _BINARY)
    frozen = _unit(plan.frozen_bytes_per_chip, _BINARY)
    return (
        f', {plan.trained_params:,} of them trained: {trained} a chip with optimizer state; the '
        f'others, frozen: {frozen} a chip'
    )


def _verdict(plan: AnyPlan) -> str:
    return 'fits' if plan.fits else 'does not fit'


def _times(plan: AnyPlan, step: str) -> list[tuple[str, str]]:
    """Lower bounds of a step's time; none of a program that does not fit."""
    flops, least, mfu = plan.compiled_flops_per_step, plan.lower_bound_seconds, plan.mfu_bound
    if flops is None or least is None or mfu is None:
        return []
    ratio = flops / plan.model_flops_per_step
    bounds = {
        'arithmetic': plan.compute_seconds or 0.0,
        'memory': plan.memory_seconds or 0.0,
        'network': plan.network_seconds or 0.0,
    }
    limit = max(bounds, key=lambda name: bounds[name])
    texts = (
        f', {plan.texts_per_second_bound:,.0f} texts a second at most'
        if isinstance(plan, EmbeddingPlan)
        else ''
    )
    return [
        (
            'program',
            f'{_unit(flops, _DECIMAL)} a {step}, {ratio:.2f} x the model',
        ),
        ('at least', ', '.join(f'{name} {time_text(value)}' for name, value in bounds.items())),
        (
            f'a {step}',
            f'{time_text(least)} at least{texts}, limited by {limit}; MFU {100 * mfu:.1f} % at '
            'most',
        ),
    ]


def _collectives(plan: AnyPlan) -> list[str]:
    if not plan.collectives:
        return []
    head = ('collective', 'times', 'places', 'loops', 'devices', 'over', 'payload a chip')
    rows = [
        (
            row['kind']
            + (' (as a sum)' if row['summed'] else '')
            + (' of gradients' if row['gradient'] else ''),
            f'{row["count"]:,}', str(row['sites']), str(row['loops']), str(row['group']),
            row['network'], _unit(row['bytes'], _BINARY),
        )
        for row in plan.collectives
    ]  # fmt: skip
    return ['', *(f'  {line}' for line in align_columns([head, *rows]))]


def _notes(plan: AnyPlan) -> list[str]:
    notes = []
    if isinstance(plan, Plan) and plan.rows_assumed:
        notes.append(
            f'Every text is taken to be as long as it may be: {plan.rows} rows a device and chunk. '
            'A run prints how many its data needs: --config.data.rows=N makes this exact.'
        )
    if plan.uncounted:
        notes.append(f'Not in the arithmetic: {", ".join(plan.uncounted)}.')
    if any(row['summed'] for row in plan.collectives or ()):
        notes.append(
            '(as a sum): arrays that are zero but for one part are added up, which sends twice '
            'the bytes of a plain all-gather.'
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
    """Lines in which columns stand below each other: the first to the left, the others to the
    right.
    """
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


def time_text(seconds: float) -> str:
    """In the unit that suits."""
    return _unit(seconds, _TIMES) if seconds < 120 else f'{seconds / 60:.0f} min'


def _unit(value: float, units: Sequence[tuple[str, float]]) -> str:
    """With the largest unit that leaves at least 1."""
    name, size = next((unit for unit in units if value >= unit[1]), units[-1])
    return f'{value / size:.4g} {name}' if value / size < 10_000 else f'{value / size:,.0f} {name}'
