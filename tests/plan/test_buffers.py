"""Buffers as XLA has assigned them, read from its dumps: of a program for this CPU, and of one written by hand."""

import jax
import jax.numpy as jnp
import pytest

from mgie_jax.plan import buffers
from mgie_jax.plan.hlo import Module

HLO = """HloModule m

%body (s: (s32[], f32[64,128])) -> (s32[], f32[64,128]) {
  %s = (s32[], f32[64,128]) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[64,128] get-tuple-element(%s), index=1
  %y = f32[64,128] tanh(%x), metadata={op_name="jit(f)/while/body/tanh"}
  ROOT %t = (s32[], f32[64,128]) tuple(%i, %y)
}

%go (s.1: (s32[], f32[64,128])) -> pred[] {
  %s.1 = (s32[], f32[64,128]) parameter(0)
  ROOT %p = pred[] custom-call(%s.1), custom_call_target="whether"
}

ENTRY %main (a: f32[64,128]) -> f32[64,128] {
  %a = f32[64,128] parameter(0)
  %zero = s32[] constant(0)
  %b = f32[64,128] negate(%a), metadata={op_name="jit(f)/neg"}
  %c = f32[64,128] copy(%b)
  %init = (s32[], f32[64,128]) tuple(%zero, %c)
  %w = (s32[], f32[64,128]) while(%init), condition=%go, body=%body, metadata={op_name="jit(f)/while"}
  ROOT %out = f32[64,128] get-tuple-element(%w), index=1
}
"""
ASSIGNED = """BufferAssignment:
allocation 0: size 32768, parameter 0, shape |f32[64,128]| at ShapeIndex {}, maybe-live-out:
 value: <0 a @0> (size=32768,offset=0): f32[64,128]{1,0:T(8,128)}
allocation 1: size 4096, output shape is |f32[8,128]|, maybe-live-out:
 value: <9 out @0> (size=4096,offset=0): f32[8,128]{1,0}
allocation 2: size 512, thread-local:
 value: <1 p @0> (size=512,offset=0): pred[]
allocation 3: size 66048, preallocated-temp:
 value: <2 b @0> (size=32768,offset=0): f32[64,128]{1,0:T(8,128)}
 value: <3 c @0> (size=32768,offset=32768): f32[64,128]{1,0:T(8,128)}
 value: <4 s{1} (phi) @0> (size=32768,offset=32768): f32[64,128]{1,0:T(8,128)}
 value: <5 w{1} (phi) @0> (size=32768,offset=32768): f32[64,128]{1,0:T(8,128)}
 value: <6 y @0> (size=32768,offset=0): f32[64,128]{1,0:T(8,128)}
 value: <7 init{} @0> (size=512,offset=65536): (s32[], f32[64,128]{1,0})
allocation 4: size 1000000, color 1, preallocated-temp:
 value: <8 zero @1> (size=512,offset=0): s32[]{:S(1)}
"""
LIVE = """HloLiveRange (max 9):
  InstructionSequence:
    0:a
  BufferLiveRange:
    a{}:0-9
    b{}:1-2
    c{}:2-4
    s{1}:4-6
    w{1}:7-9
    y{}:5-6
    init{}:3-4
  Live ranges at 2 (peak):
    b{}: 1 bytes (cumulative: 1 bytes)
"""


@pytest.fixture
def dump(tmp_path):
    for name, text in ((buffers.HLO, HLO), (buffers.ASSIGNMENT, ASSIGNED), (buffers.LIVE, LIVE)):
        (tmp_path / f"module_0000.jit_f.after_{name}").write_text(text)
    return tmp_path


def test_memory_by_part(dump):
    found = buffers.assignment(dump, Module.parse(buffers.dumped(dump, buffers.HLO)))
    assert (found.outputs, found.aliased, found.temporaries) == (32768 + 4096, 32768, 66048)


def test_what_is_alive_at_once_where_most_is_and_what_it_is_called(dump):
    """At the loop's body: what it carries and what it makes; a value that others share memory with counts once."""
    found = buffers.assignment(dump, Module.parse(HLO))
    assert [(b.name, b.nbytes, b.kind, b.shape) for b in found.alive] == [
        ("jit(f)/neg", 32768, "temporary", (64, 128)), ("jit(f)/neg", 32768, "temporary", (64, 128))
    ]  # fmt: skip
    later = LIVE.replace("b{}:1-2", "b{}:1-1").replace("s{1}:4-6", "s{1}:5-6")
    (dump / f"module_0000.jit_f.after_{buffers.LIVE}").write_text(later)
    found = buffers.assignment(dump, Module.parse(HLO))
    assert [b.name for b in found.alive] == ["jit(f)/while/body/tanh"] * 2


def test_a_compiler_that_left_nothing(tmp_path):
    assert buffers.dumped(tmp_path, buffers.HLO) == ""
    assert buffers.assignment(tmp_path, Module.parse(HLO)) == buffers.Assignment(0, 0, 0, ())


def test_a_real_program(tmp_path):
    def program(x, w):
        return jnp.sort(jnp.tanh(x @ w) @ w, axis=0).sum(0)

    x, w = jnp.ones((256, 64)), jnp.ones((64, 64))
    compiled = jax.jit(program).lower(x, w).compile(compiler_options=buffers.options(tmp_path))
    module = Module.parse(buffers.dumped(tmp_path, buffers.HLO))
    found = buffers.assignment(tmp_path, module)
    memory = compiled.memory_analysis()
    assert (found.outputs, found.aliased) == (memory.output_size_in_bytes, memory.alias_size_in_bytes)
    assert found.temporaries == memory.temp_size_in_bytes
    assert sum(buffer.nbytes for buffer in found.alive) <= found.temporaries
    assert found.alive[0].nbytes == 256 * 64 * 4 and found.alive[0].name.startswith("jit(program)/")
