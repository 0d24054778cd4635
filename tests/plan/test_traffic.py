"""What compiled HLO moves through main memory and between devices: hand-made programs whose bytes are known."""

import pytest

from mgie_jax.plan.hlo import Module
from mgie_jax.plan.traffic import Mesh, traffic

MIB = 2**20
ALONE = Mesh(("data", "fsdp", "tensor"), (1, 1, 1))
EIGHT = Mesh(("data", "fsdp", "tensor"), (2, 2, 2))


def of(body, mesh=ALONE, computations="", turns=1, partitions=8):
    text = f"HloModule m, num_partitions={partitions}\n{computations}\nENTRY %main (x: f32[]) -> f32[] {{\n{body}\n}}\n"
    return traffic(Module.parse(text), mesh, turns)


def moved(body, computations="", turns=1):
    return of(body, computations=computations, turns=turns).hbm_bytes


BIG, SMALL = "f32[8,256,128]{2,1,0:T(8,128)}", "f32[1,256,128]{2,1,0:T(8,128)}"  # 1 MiB and an eighth of it


def test_operands_are_read_and_results_written():
    assert moved(f"  %x = {BIG} parameter(0)\n  ROOT %y = {BIG} negate(%x)") == 2 * MIB


def test_padding_is_moved():
    shape = "f32[8,256,1]{2,1,0:T(8,128)}"
    assert moved(f"  %x = {shape} parameter(0)\n  ROOT %y = {shape} negate(%x)") == 2 * MIB


def test_what_lies_on_the_chip_is_not_moved():
    chip = BIG.replace(")}", ")S(1)}")
    body = f"  %x = {BIG} parameter(0)\n  %y = {chip} negate(%x)\n  ROOT %z = {chip} negate(%y)"
    assert moved(body) == MIB
    start = f"({chip}, {BIG}, u32[]{{:S(2)}})"
    copy = f"  %x = {BIG} parameter(0)\n  %s = {start} copy-start(%x)\n  ROOT %y = {chip} copy-done(%s)"
    assert moved(copy) == MIB


def test_slices_count_as_what_is_taken():
    body = f"  %x = {BIG} parameter(0)\n  %i = s32[] parameter(1)\n"
    assert moved(body + f"  ROOT %y = {SMALL} dynamic-slice(%x, %i, %i, %i)") == pytest.approx(MIB / 4, abs=16)
    assert moved(body + f"  ROOT %y = {SMALL} slice(%x), slice={{[0:1], [0:256], [0:128]}}") == MIB / 4


def test_updates_count_as_what_is_put():
    body = f"  %x = {BIG} parameter(0)\n  %u = {SMALL} parameter(1)\n  %i = s32[] parameter(2)\n"
    assert moved(body + f"  ROOT %y = {BIG} dynamic-update-slice(%x, %u, %i, %i, %i)") == pytest.approx(MIB / 4, abs=16)


SLICING = f"""
%inner (p: {BIG}) -> {BIG} {{
  %p = {BIG} parameter(0)
  ROOT %b = {BIG} bitcast(%p)
}}

%sliced (q: {BIG}, i: s32[], u: {SMALL}) -> {BIG} {{
  %q = {BIG} parameter(0)
  %i = s32[] parameter(1)
  %u = {SMALL} parameter(2)
  %zero = s32[] constant(0)
  %part = {SMALL} dynamic-slice(%q, %i, %zero, %zero), dynamic_slice_sizes={{1,256,128}}
  %sum = {SMALL} add(%part, %u)
  ROOT %put = {BIG} dynamic-update-slice(%q, %sum, %i, %zero, %zero)
}}
"""
STACK = f"  %x = {BIG} parameter(0)\n  %i = s32[]{{:S(6)}} parameter(1)\n  %u = {SMALL} parameter(2)\n"


def test_a_fusion_is_one_instruction():
    body = STACK + f"  ROOT %y = {BIG} fusion(%x, %i, %u), kind=kLoop, calls=%sliced"
    assert moved(body, SLICING) == 3 * MIB / 8  # the slice is read, its summand too, the sum is put back


VIEW = f"""
%tiled (p: {BIG}) -> {BIG} {{
  %p = {BIG} parameter(0)
  ROOT %b = {BIG.replace("8,128)", "4,128)")} copy(%p)
}}

%sliced (q: {BIG}, i: s32[]) -> {SMALL} {{
  %q = {BIG} parameter(0)
  %i = s32[] parameter(1)
  %f = {BIG.replace("8,128)", "4,128)")} fusion(%q), kind=kLoop, ALIASED calls=%tiled
  ROOT %s = {SMALL} dynamic-slice(%f, %i, %i, %i), dynamic_slice_sizes={{1,256,128}}
}}
"""


@pytest.mark.parametrize("aliased, read", [("output_to_operand_aliasing={{}: (0, {})},", MIB / 8), ("", MIB)])
def test_another_tiling_is_no_copy_where_it_lies_where_it_lay(aliased, read):
    body = f"  %x = {BIG} parameter(0)\n  %i = s32[] parameter(1)\n"
    body += f"  ROOT %y = {SMALL} fusion(%x, %i), kind=kLoop, calls=%sliced"
    assert moved(body, VIEW.replace("ALIASED", aliased)) == pytest.approx(read + MIB / 8, abs=16)


def test_loops_multiply():
    loop = f"""
%body (s: (s32[], {BIG}, {SMALL})) -> (s32[], {BIG}, {SMALL}) {{
  %s = (s32[]{{:S(6)}}, {BIG}, {SMALL}) parameter(0)
  %i.1 = s32[]{{:S(6)}} get-tuple-element(%s), index=0
  %q.1 = {BIG} get-tuple-element(%s), index=1
  %u.1 = {SMALL} get-tuple-element(%s), index=2
  %y = {BIG} fusion(%q.1, %i.1, %u.1), kind=kLoop, calls=%sliced
  ROOT %t = (s32[]{{:S(6)}}, {BIG}, {SMALL}) tuple(%i.1, %y, %u.1)
}}

%go (s.1: (s32[], {BIG}, {SMALL})) -> pred[] {{
  %s.1 = (s32[]{{:S(6)}}, {BIG}, {SMALL}) parameter(0)
  ROOT %unknown = pred[] custom-call(%s.1), custom_call_target="whether"
}}
"""
    known = 'backend_config={"known_trip_count":{"n":"5"}}'
    state = f"(s32[], {BIG}, {SMALL})"
    body = STACK + f"  %t.1 = {state} tuple(%i, %x, %u)\n  ROOT %w = {state} while(%t.1)"
    turned = body + f", condition=%go, body=%body, {known}"
    assert moved(turned, SLICING + loop) == 5 * 3 * MIB / 8
    by_data = body + ", condition=%go, body=%body"
    assert moved(by_data, SLICING + loop, turns=3) == 3 * 3 * MIB / 8


def test_of_branches_the_one_that_moves_most_counts():
    branch = f"""
%%NAME (p: {BIG}) -> {BIG} {{
  %p = {BIG} parameter(0)
  ROOT %r = {BIG} OPCODE(%p)
}}
""".replace("%%", "%")
    branches = branch.replace("NAME", "busy").replace("OPCODE", "negate")
    branches += branch.replace("NAME", "idle").replace("OPCODE", "bitcast")
    body = f"  %i = s32[] parameter(0)\n  %x = {BIG} parameter(1)\n  ROOT %y = {BIG} conditional(%i, %x, %x), "
    assert moved(body + "branch_computations={%idle, %busy}", branches) == 2 * MIB


# Between devices.

HALF = "bf16[64,1024]{1,0}"  # 128 KiB
WHOLE = "bf16[128,1024]{1,0}"
ADD = """
%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}
"""
FSDP, TENSOR = "replica_groups={{0,2},{1,3},{4,6},{5,7}}", "replica_groups=[4,2]<=[8]"


def collectives(body, computations=ADD, mesh=EIGHT, partitions=8):
    found = of(body, mesh, computations, partitions=partitions).collectives
    return {(c.kind, c.axes, c.dcn, c.payload, c.sent): times for c, times in found.items()}


@pytest.mark.parametrize(
    "line, expected",
    [
        (f"{WHOLE} all-gather(%x), {FSDP}, dimensions={{0}}", ("all-gather", ("fsdp",), 256, 128)),
        (f"{HALF} all-reduce(%x), {TENSOR}, to_apply=%add", ("all-reduce", ("tensor",), 128, 128)),
        (f"{HALF} all-reduce(%x), replica_groups={{}}, to_apply=%add",
         ("all-reduce", ("data", "fsdp", "tensor"), 128, 224)),
        (f"bf16[32,1024]{{1,0}} reduce-scatter(%x), {FSDP}, dimensions={{0}}, to_apply=%add",
         ("reduce-scatter", ("fsdp",), 128, 64)),
        (f"{HALF} all-to-all(%x), {TENSOR}, dimensions={{0}}", ("all-to-all", ("tensor",), 128, 64)),
        (f"{HALF} collective-permute(%x), source_target_pairs={{{{0,4}},{{4,0}}}}",
         ("collective-permute", ("data",), 128, 128)),
    ],
)  # fmt: skip
def test_collectives(line, expected):
    kind, axes, payload, sent = expected
    body = f"  %x = {HALF} parameter(0)\n  ROOT %y = {line}, channel_id=1"
    assert collectives(body) == {(kind, axes, False, payload * 1024, sent * 1024): 1}


@pytest.mark.parametrize(
    "body",
    [
        f"  %s = ({HALF}, {WHOLE}) all-gather-start(%x), channel_id=1, {FSDP}, dimensions={{0}}\n"
        f"  ROOT %y = {WHOLE} all-gather-done(%s)",
        f"  %s = (({HALF}), {WHOLE}, u32[]) async-start(%x), calls=%wrapped\n"
        f"  %t = (({HALF}), {WHOLE}, u32[]) async-update(%s), calls=%wrapped\n"
        f"  ROOT %y = {WHOLE} async-done(%t), calls=%wrapped",
        f"  %s = {WHOLE} fusion(%x), kind=kLoop, calls=%spread\n  ROOT %y = {WHOLE} fusion(%x), calls=%spread.1",
    ],
    ids=["start and done", "wrapped", "spread over fusions"],
)
def test_a_collective_in_pieces_counts_once(body):
    gather = f"all-gather(%p), channel_id=1, {FSDP}, dimensions={{0}}"
    within = "".join(
        f"\n%{name} (p: {HALF}) -> {WHOLE} {{\n  %p = {HALF} parameter(0)\n  ROOT %g = {WHOLE} {gather}\n}}\n"
        for name in ("wrapped", "spread", "spread.1")
    )
    found = collectives(f"  %x = {HALF} parameter(0)\n{body}", within)
    assert found == {("all-gather", ("fsdp",), False, 256 * 1024, 128 * 1024): 1}


def test_a_fusion_that_reduces_and_slices_is_a_reduce_scatter():
    inside = f"""
%all-reduce-scatter.1 (p: {HALF}) -> bf16[32,1024] {{
  %p = {HALF} parameter(0)
  %r = {HALF} all-reduce(%p), channel_id=3, {TENSOR}, to_apply=%add
  %zero = s32[] constant(0)
  ROOT %d = bf16[32,1024]{{1,0}} dynamic-slice(%r, %zero, %zero), dynamic_slice_sizes={{32,1024}}
}}
"""
    body = f"  %x = {HALF} parameter(0)\n  ROOT %y = bf16[32,1024]{{1,0}} fusion(%x), kind=kCustom, calls="
    found = collectives(body + "%all-reduce-scatter.1", ADD + inside)
    assert found == {("reduce-scatter", ("tensor",), False, 128 * 1024, 64 * 1024): 1}


@pytest.mark.parametrize(
    "transfer, kind, payload, sent",
    [
        ("ALL_REDUCE", "all-reduce", 128, 128),
        ("ALL_GATHER", "all-gather", 256, 128),
        ("ONE_TO_ONE", "collective-permute", 128, 128),
    ],
)
def test_between_slices_what_the_host_sends_counts(transfer, kind, payload, sent):
    """Each slice has its own program of four devices; numbers of devices are places in the slice's mesh."""
    megascale = (
        'frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",'
        f'_xla_megascale_transfer_type="{transfer}"}}'
    )
    body = f"""  %x = {HALF} parameter(0)
  %token = token[] after-all()
  %y = {HALF} all-reduce(%x), channel_id=1, replica_groups={{{{0,2}},{{1,3}}}}, to_apply=%add
  %s = ({HALF}, u32[], token[]) send(%y, %token), channel_id=2, is_host_transfer=true, {megascale}
  %r = ({HALF}, u32[], token[]) recv(%token), channel_id=3, is_host_transfer=true, {megascale}
  %d = token[] send-done(%s), channel_id=2, is_host_transfer=true
  ROOT %z = ({HALF}, token[]) recv-done(%r), channel_id=3, is_host_transfer=true"""
    found = collectives(body, mesh=Mesh(("data", "fsdp", "tensor"), (2, 2, 2), slices=2), partitions=4)
    assert found == {
        ("all-reduce", ("fsdp",), False, 128 * 1024, 128 * 1024): 1,
        (kind, ("data",), True, payload * 1024, sent * 1024): 1,
    }


def test_groups_of_one_are_no_collective():
    body = f"  %x = {HALF} parameter(0)\n  ROOT %y = {HALF} all-reduce(%x), replica_groups=[8,1]<=[8], to_apply=%add"
    assert collectives(body) == {}
