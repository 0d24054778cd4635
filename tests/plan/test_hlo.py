"""HLO text is read as XLA writes it: shapes with their padding and place, loops with the turns they take."""

import jax
import jax.numpy as jnp
import pytest

from mgie_jax.plan.hlo import Module, arrays

LOOP = """HloModule jit_f, is_scheduled=true, num_partitions=4

%compare_fusion (p0: s32[], p1: s32[]) -> pred[] {
  %p0 = s32[]{:T(128)} parameter(0)
  %p1 = s32[]{:T(128)} parameter(1)
  ROOT %less = pred[]{:T(512)} compare(%p0, %p1), direction=LT
}

%body (state: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %state = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %copied = s32[]{:T(128)S(6)} copy(%i)
  %step = s32[]{:T(128)} constant(STEP)
  %next = s32[]{:T(128)} add(%copied, %step)
  %x = f32[8,128]{1,0:T(8,128)} get-tuple-element(%state), index=1
  %y = f32[8,128]{1,0:T(8,128)} negate(%x), metadata={op_name="jit(f)/while/body/neg" stack_frame_id=1}
  ROOT %out = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) tuple(%next, /*index=1*/%y)
}

%condition (state.1: (s32[], f32[8,128])) -> pred[] {
  %state.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  %limit = s32[]{:T(128)} constant(10)
  ROOT %go = pred[]{:T(512)} fusion(%i.1, %limit), kind=kLoop, calls=%compare_fusion
}, execution_thread="sparsecore"

ENTRY %main (x0: f32[8,128]) -> f32[8,128] {
  %x0 = f32[8,128]{1,0:T(8,128)} parameter(0)
  %begin = s32[]{:T(128)} constant(START)
  %begun = s32[]{:T(128)} copy(%begin)
  %init = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) tuple(%begun, %x0)
  %loop = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) while(%init), condition=%condition, body=%body
  ROOT %result = f32[8,128]{1,0:T(8,128)} get-tuple-element(%loop), index=1
}
"""


@pytest.mark.parametrize(
    "shape, nbytes, padded, space",
    [
        ("f32[]", 4, 4, 0),
        ("bf16[4,256,1024]{2,1,0:T(8,128)(2,1)}", 2 * 2**20, 2 * 2**20, 0),
        ("f32[3,77]{1,0:T(8,128)S(1)}", 4 * 3 * 77, 4 * 8 * 128, 1),
        ("f32[77,3]{0,1:T(8,128)}", 4 * 3 * 77, 4 * 8 * 128, 0),  # tiles lie along the layout, not the dimensions
        ("s32[5]{0:T(128)}", 20, 512, 0),
        ("u4[3]{0}", 2, 2, 0),
        ("f8e4m3fn[2,3]{1,0}", 6, 6, 0),
        ("token[]", 0, 0, 0),
    ],
)
def test_arrays_as_they_lie_in_memory(shape, nbytes, padded, space):
    (array,) = arrays(shape)
    assert (array.nbytes, array.padded_bytes, array.space) == (nbytes, padded, space)


def test_a_tuple_is_its_arrays():
    shape = "((bf16[24,2048]{1,0:T(8,128)(2,1)S(1)}), f32[2]{0}, /*index=2*/u32[]{:S(2)})"
    assert [(x.dtype, x.dims) for x in arrays(shape)] == [("bf16", (24, 2048)), ("f32", (2,)), ("u32", ())]


def test_computations_and_what_an_instruction_says():
    module = Module.parse(LOOP)
    assert module.partitions == 4 and module.entry.name == "main" and module.entry.root == "result"
    assert set(module.computations) == {"compare_fusion", "body", "condition", "main"}
    body = module.computations["body"]
    assert body.instructions["out"].operands == ("next", "y") and body.parameters == {0: "state"}
    assert body.instructions["y"].op_name == "jit(f)/while/body/neg"
    assert [user.name for user in body.users["i"]] == ["copied"]


def test_other_text_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        Module.parse("HloModule nothing\n")


@pytest.mark.parametrize("start, step, turns", [(0, 1, 10), (2, 1, 8), (0, 3, 4), (11, 1, 0), (0, 0, None)])
def test_turns_of_a_loop(start, step, turns):
    module = Module.parse(LOOP.replace("START", str(start)).replace("STEP", str(step)))
    assert module.turns(module.entry, module.entry.instructions["loop"]) == turns


def test_turns_that_xla_knows():
    text = LOOP.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"7"},"known_init_step":{}}')
    module = Module.parse(text)
    assert module.turns(module.entry, module.entry.instructions["loop"]) == 7


def test_a_loop_that_ends_by_its_data_has_no_known_turns():
    text = LOOP.replace("compare(%p0, %p1), direction=LT", "and(%p0, %p1)")
    module = Module.parse(text)
    assert module.turns(module.entry, module.entry.instructions["loop"]) is None


def test_real_loops():
    def program(x):
        x = jax.lax.scan(lambda x, _: (jnp.tanh(x), None), x, None, length=5)[0]
        x = jax.lax.fori_loop(3, 9, lambda i, x: x + i, x)
        return jax.lax.while_loop(lambda x: x.sum() > 0, lambda x: x - 1, x)

    module = Module.parse(jax.jit(program).lower(jnp.ones((64, 64))).compile().as_text())
    loops = [(c, i) for c in module.computations.values() for i in c if i.opcode == "while"]
    assert sorted((module.turns(*loop) for loop in loops), key=str) == [5, 6, None]


def test_the_attributes_of_a_kernel_may_be_of_several_lines():
    """As Pallas writes them: what comes after is still of the same computation."""
    text = """HloModule jit_g

ENTRY %main (x: f32[8,128]) -> f32[8,128] {
  %x = f32[8,128]{1,0} parameter(0)
  %kernel = f32[8,128]{1,0} custom-call(%x), custom_call_target="tpu", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 512}"
}}, metadata={op_name="jit(g)/pallas_call"}
  ROOT %y = f32[8,128]{1,0} negate(%kernel)
}
"""
    entry = Module.parse(text).entry
    assert list(entry.instructions) == ["x", "kernel", "y"]
    assert entry.instructions["kernel"].op_name == "jit(g)/pallas_call"
