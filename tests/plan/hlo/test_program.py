import pytest
from jax.sharding import PartitionSpec as P

from cpt_jax.plan.hlo.program import HBM, VMEM, Array, HloError, flatten_shape, parse_program

TEXT = """HloModule m, is_scheduled=true

FileNames
1 "a.py"

%add.1 (a: f32[], b: f32[]) -> f32[] {
  %b = f32[] parameter(1)
  %a = f32[] parameter(0)
  ROOT %sum = f32[] add(%a, %b), metadata={op_name="jit(f)/add, calls=%nothing"}
}

%fused (p: bf16[8,128]) -> (bf16[8,128], /*index=1*/f32[8]) {
  %p = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %c = bf16[] constant(0)
  %r = f32[8]{0:T(128)} reduce(%p, %c), dimensions={1}, to_apply=%add.1
  ROOT %t = (bf16[8,128]{1,0:T(8,128)(2,1)S(1)}, /*index=1*/f32[8]{0:T(128)}) tuple(%p, /*index=1*/%r)
}

ENTRY %main (x: bf16[8,128], y: pred[3]) -> f32[8] {
  %x = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0), sharding={replicated}
  %y = pred[3]{0} parameter(1)
  %words = s32[2]{0} constant({7, 8})
  %copy-start = (bf16[8,128]{1,0:T(8,128)(2,1)S(1)}, bf16[8,128]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%x)
  %copy-done = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} copy-done(%copy-start)
  %fusion = (bf16[8,128]{1,0:T(8,128)(2,1)S(1)}, f32[8]{0:T(128)}) fusion(%copy-done), kind=kLoop, calls=%fused, config={"a":"b, c={"}
  ROOT %out = f32[8]{0:T(128)} get-tuple-element(%fusion), index=1
}, execution_thread="main"
"""


def test_computations_instructions_and_shapes_are_parsed():
    module = parse_program(TEXT)
    assert list(module.computations) == ['add.1', 'fused', 'main'] and module.entry.name == 'main'
    entry = module.entry.instructions
    assert entry['x'].shape == Array('bf16', (8, 128), HBM) and entry['y'].shape.bytes == 3
    assert [array.space for array in flatten_shape(entry['copy-start'].shape)] == [VMEM, HBM, 2]
    assert entry['fusion'].shape == (Array('bf16', (8, 128), VMEM), Array('f32', (8,), HBM))
    assert entry['fusion'].shape[0].bytes == 2048
    assert entry['fusion'].operands == ('copy-done',) and entry['fusion'].get_called_names(
        'calls', 'to_apply'
    ) == ['fused']
    assert module.entry.root.name == 'out' and module.entry.root.get_attribute('index') == '1'
    assert entry['words'].literal == '{7, 8}' and entry['words'].operands == ()
    fused = module.computations['fused']
    assert [parameter.name for parameter in fused.parameters] == ['p']
    assert [user.name for user in fused.users['p']] == ['r', 't']
    assert fused.get_operand(fused.root, 1).get_called_names('to_apply') == ['add.1']
    assert [parameter.name for parameter in module.computations['add.1'].parameters] == ['a', 'b']


def test_attributes_end_at_the_next_outer_comma():
    instruction = parse_program(TEXT).entry.instructions['fusion']
    assert (
        instruction.get_attribute('kind') == 'kLoop'
        and instruction.get_attribute('calls') == '%fused'
    )
    assert instruction.get_attribute('config') == '"a":"b, c={"'
    assert instruction.get_attribute('condition') is None


def test_op_names_are_parsed():
    module = parse_program(TEXT)
    assert module.computations['add.1'].root.op_name == 'jit(f)/add, calls=%nothing'
    assert module.entry.root.op_name == ''


@pytest.mark.parametrize(
    ('dtype', 'expected'),
    [
        ('f32', 40),
        ('bf16', 20),
        ('s4', 5),
        ('pred', 10),
        ('f8e4m3fn', 10),
        ('token', 0),
        ('c64', 80),
    ],
)
def test_bytes_of_all_types(dtype, expected):
    assert Array(dtype, (10,)).bytes == expected and Array(dtype, ()).size == 1


@pytest.mark.parametrize(
    'broken',
    [
        TEXT.replace('ENTRY ', ''),
        TEXT.replace('  %y = ', '  what is this '),
        TEXT.replace('ROOT %sum', '%sum'),
        TEXT.replace(' pred[3]{0} parameter(1)', ' pred parameter(1)'),
    ],
)
def test_malformed_text_is_an_error(broken):
    with pytest.raises(HloError):
        parse_program(broken)


def test_compiled_program_is_parsed(devices, program):
    module = program(devices, lambda a, b: (a @ b).sum(0), ((64, 32), P()), ((32, 128), P()))
    assert [flatten_shape(parameter.shape)[0].dims for parameter in module.entry.parameters] == [
        (64, 32),
        (32, 128),
    ]
    assert flatten_shape(module.entry.root.shape)[0].dims == (128,)
