"""The machine that executes PTX: what it computes, and that it finds what a GPU may do otherwise or not at all."""

import pytest
import torch

pytest.importorskip("triton")
from tests.ptx.emulate import Fault, Seen, execute
from tests.ptx.machine import why_not
from tests.ptx.parse import parse

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())
REGISTERS = "\n".join(f".reg .{kind} %{name}<40>;" for kind, name in [
    ("pred", "p"), ("b16", "rs"), ("b32", "r"), ("b64", "rd")
])  # fmt: skip


def run(body, *tensors, threads=32, shared=1024, seed=0, grid=(1,)):
    """A kernel whose parameters are in %rd1, %rd2, ..., the thread in %r1 and four times it in %r2 and %rd9."""
    parameters = ", ".join(f".param .u64 k_param_{i}" for i in range(len(tensors)))
    loads = "\n".join(f"ld.param.b64 %rd{i + 1}, [k_param_{i}];" for i in range(len(tensors)))
    thread = "mov.u32 %r1, %tid.x;\nshl.b32 %r2, %r1, 2;\nmul.wide.u32 %rd9, %r1, 4;"
    begin = f".extern .shared .align 16 .b8 smem[];\n.visible .entry k({parameters})\n{{\n{REGISTERS}\n"
    kernel, seen = parse(f"{begin}{loads}\n{thread}\n{body}\nret;\n}}\n"), Seen()
    execute(kernel, shared, threads, grid, [t.data_ptr() for t in tensors], list(tensors), seed, seen)
    return seen


def each(operation, *inputs, out=torch.float32):
    """An instruction on every element of fp32 tensors, or of integers of 32 bits."""
    result, n = torch.zeros(inputs[0].shape, dtype=out), len(inputs)
    body = [f"add.s64 %rd{i + 20}, %rd{i + 1}, %rd9;" for i in range(n)]
    body += [f"ld.global.b32 %r{i + 20}, [%rd{i + 20}];" for i in range(n)]
    body += [operation.format(*(f"%r{i + 20}" for i in range(n))), f"add.s64 %rd30, %rd{n + 1}, %rd9;"]
    body += ["st.global.b32 [%rd30], %r10;"]
    run("\n".join(body), *inputs, result, threads=len(result))
    return result


EDGES = [0.0, -0.0, 1.0, -1.5, 65504.0, 65519.9, 65520.0, 1e-5, 6e-8, 2.9e-8, 3.4e38, -3.4e38, torch.inf, -torch.inf]


def numbers():
    g = torch.Generator().manual_seed(0)
    drawn = torch.randn(50, generator=g) * 2.0 ** torch.randint(-30, 20, (50,), generator=g)
    return torch.cat([drawn, torch.tensor(EDGES)])


@pytest.mark.parametrize(("kind", "dtype"), [("bf16", torch.bfloat16), ("f16", torch.float16)])
def test_numbers_are_rounded_as_torch_rounds_them(kind, dtype):
    x = numbers()
    got = each(f"cvt.rn.{kind}.f32 %rs1, {{0}};\ncvt.f32.{kind} %r10, %rs1;", x)
    assert torch.equal(got, x.to(dtype).float())
    packed = each(f"cvt.rn.{kind}x2.f32 %r10, {{0}}, 0f3F800000;", x, out=torch.int32)
    assert torch.equal(
        packed.view(dtype).view(-1, 2).float(), torch.stack([torch.ones_like(x), x.to(dtype).float()], 1)
    )


def test_tf32_is_the_nearest_and_ties_go_away_from_zero():
    inf = torch.inf
    x = torch.tensor([1 + 2**-11, 1 + 2**-12, -1 - 2**-11, 1 + 3 * 2**-11, 3.0, inf, -inf, 0.0] * 4)
    expected = torch.tensor([1 + 2**-10, 1.0, -1 - 2**-10, 1 + 2**-9, 3.0, inf, -inf, 0.0] * 4)
    assert torch.equal(each("cvt.rna.tf32.f32 %r10, {0};", x), expected)


@pytest.mark.parametrize(
    ("instruction", "function"),
    [
        ("fma.rn.f32 %r10, {0}, {1}, {0};", lambda x, y: (x.double() * y.double() + x.double()).float()),
        ("max.f32 %r10, {0}, {1};", torch.fmax),
        ("min.f32 %r10, {0}, {1};", torch.fmin),
        ("setp.ltu.f32 %p1, {0}, {1};\nselp.f32 %r10, {0}, {1}, %p1;", lambda x, y: torch.where(x >= y, y, x)),
        ("sub.f32 %r10, {0}, {1};", torch.sub),
        ("ex2.approx.f32 %r10, {0};", lambda x, y: x.exp2()),
    ],
)
def test_floats(instruction, function):
    x = numbers().clamp(-1e18, 1e18)
    x[5], y = torch.nan, x.flip(0) + 1
    torch.testing.assert_close(each(instruction, x, y), function(x, y), equal_nan=True, rtol=3e-7, atol=0)


@pytest.mark.parametrize(
    ("instruction", "function"),
    [
        ("shr.s32 %r10, {0}, 35;", lambda x, y: x >> 31),
        ("shl.b32 %r10, {0}, 32;", lambda x, y: x * 0),
        ("bfe.s32 %r10, {0}, 3, 5;", lambda x, y: ((x >> 3) & 31 ^ 16) - 16),
        ("bfe.u32 %r10, {0}, 28, 9;", lambda x, y: (x >> 28) & 15),
        ("mul.hi.u32 %r10, {0}, {1};", lambda x, y: ((x.long() % 2**32) * (y.long() & 0xFFFF) >> 32).int()),
        ("prmt.b32 %r10, {0}, {1}, 0x5410;", lambda x, y: (x & 0xFFFF) | y << 16),
        ("div.s32 %r10, {0}, 7;", lambda x, y: torch.div(x, 7, rounding_mode="trunc").int()),
        ("shfl.sync.bfly.b32 %r10, {0}, 5, 31, -1;", lambda x, y: x[torch.arange(32) ^ 5]),
        ("shfl.sync.up.b32 %r10, {0}, 3, 0, -1;", lambda x, y: torch.cat([x[:3], x[:-3]])),
        ("shfl.sync.idx.b32 %r10, {0}, {1}, 31, -1;", lambda x, y: x[y.long() % 32]),
        ("redux.sync.min.s32 %r10, {0}, -1;", lambda x, y: x.min().expand(32)),
        ("mov.b32 {{%rs1, %rs2}}, {0};\nmov.b32 %r10, {{%rs2, %rs1}};", lambda x, y: x << 16 | (x >> 16 & 0xFFFF)),
    ],
)  # fmt: skip
def test_integers(instruction, function):
    g = torch.Generator().manual_seed(0)
    x = torch.randint(-(2**31), 2**31, (32,), generator=g).int()
    y = torch.randint(0, 2**16, (32,), generator=g).int()
    assert torch.equal(each(instruction, x, y, out=torch.int32), function(x, y))


def test_packed_numbers_are_compared_each():
    both = torch.tensor([[1.0, 2.0], [1.0, torch.nan]] * 16, dtype=torch.bfloat16)
    other = torch.tensor([[1.0, 3.0], [0.0, 1.0]] * 16, dtype=torch.bfloat16)
    pick = "selp.b32 %r3, 1, 0, %p1;\nselp.b32 %r4, 2, 0, %p2;\nor.b32 %r10, %r3, %r4;"
    x, y = (t.view(torch.int32).flatten() for t in (both, other))
    assert each(f"setp.ne.bf16x2 %p1|%p2, {{0}}, {{1}};\n{pick}", x, y, out=torch.int32).tolist() == [2, 1] * 16


def test_lanes_that_part_meet_again():
    """Each takes its own number of turns, and then all exchange what they have."""
    turns = "mov.b32 %r10, 0;\n$L1:\nsetp.ge.s32 %p1, %r10, %r1;\n@%p1 bra $L2;\nadd.s32 %r10, %r10, 1;\n"
    turns += "bra.uni $L1;\n$L2:"
    x = torch.zeros(32, dtype=torch.int32)
    run(f"{turns}\nredux.sync.add.s32 %r11, %r10, -1;\nadd.s64 %rd3, %rd1, %rd9;\nst.global.b32 [%rd3], %r11;", x)
    assert x.tolist() == [31 * 32 // 2] * 32
    early = "setp.lt.s32 %p1, %r1, 7;\n@%p1 bra $L1;\nredux.sync.add.s32 %r11, %r1, -1;\n$L1:\nbar.sync 0;"
    with pytest.raises(Fault, match="not all lanes of a warp come here"):
        run(f"{early}\nredux.sync.add.s32 %r11, %r1, -1;\nbra $L1;", x)


REVERSED = """
add.s64 %rd3, %rd1, %rd9;
ld.global.b32 %r3, [%rd3];
st.{0}.b32 [{1}], %r3;
{2}
xor.b32 %r4, %r2, 508;
cvt.u64.u32 %rd5, %r4;
add.s64 %rd6, %rd2, %rd5;
ld.{0}.b32 %r5, [{3}];
bar.sync 0;
st.global.b32 [%rd3], %r5;
"""


@pytest.mark.parametrize(("space", "to", "back"), [("shared", "%r2", "%r4"), ("global", "%rd7", "%rd6")])
@pytest.mark.parametrize("seed", range(3))
def test_a_missing_barrier_is_found(space, to, back, seed):
    for barrier, findings in (("bar.sync 0;", 0), ("", 1)):
        x, y = torch.arange(128.0), torch.zeros(128)
        body = "add.s64 %rd7, %rd2, %rd9;" + REVERSED.format(space, to, barrier, back)
        seen = run(body, x, y, threads=128, seed=seed)
        assert bool(seen.findings) == bool(findings)
        assert all("no barrier" in found for found in seen.findings)
        assert findings or torch.equal(x, torch.arange(128.0).flip(0))
        assert seen.launches[0].barriers == 2 - findings


COPIED = """
add.s64 %rd3, %rd1, %rd9;
cp.async.ca.shared.global [%r2], [%rd3], 4, %r3;
cp.async.commit_group;
{}
ld.shared.b32 %r4, [%r2];
add.s64 %rd4, %rd2, %rd9;
st.global.b32 [%rd4], %r4;
"""


def test_a_copy_that_nobody_waits_for_has_not_come():
    x, y = torch.randn(32), torch.zeros(32)
    seen = run("mov.b32 %r3, 4;" + COPIED.format("cp.async.wait_group 0;"), x, y)
    assert seen.findings == []
    assert seen.launches[0].shared == 2 * 128  # there and back
    assert torch.equal(x, y)
    assert run("mov.b32 %r3, 0;" + COPIED.format("cp.async.wait_group 0;"), x[:0], y).findings == []
    assert not y.any()  # no bytes are read, zeros are written
    for no_wait in ("", "cp.async.wait_group 1;"):
        assert "waited for" in run("mov.b32 %r3, 4;" + COPIED.format(no_wait), x, y).findings[0]
        assert y.isnan().all()


@pytest.mark.parametrize(
    ("address", "bits", "turns"),
    [
        ("shl.b32 %r4, %r1, 2;", 32, 1),  # neighbours
        ("shl.b32 %r4, %r1, 3;", 32, 2),  # every other word
        ("shl.b32 %r4, %r1, 7;", 32, 32),  # one bank
        ("mov.b32 %r4, 4;", 32, 1),  # one word
        ("shl.b32 %r4, %r1, 3;", 64, 2),
    ],
)
def test_the_shared_memorys_turns_are_those_of_its_busiest_bank(address, bits, turns):
    load = "mov.b64 %rd3, 0;\nst.shared.b64 [%r4], %rd3;" if bits == 64 else "ld.shared.b32 %r3, [%r4];"
    seen = run(f"{address}\n{load}", torch.zeros(32), shared=4096)
    assert seen.launches[0].shared == 128 * turns


def test_what_is_outside_or_not_aligned_ends_the_kernel():
    x = torch.zeros(40)[4:36]
    load = "add.s64 %rd3, %rd1, {};\n@%p1 ld.global{} [%rd3 + {}];"
    on = "setp.eq.b32 %p1, %r1, 0;"
    assert run(on + load.format("0", ".v4.b32 {%r3, %r4, %r5, %r6},", 128), x).launches[0].loaded == 16
    for offset, what in ((160, "outside"), (-32, "outside"), (4, "misaligned")):
        with pytest.raises(Fault, match=f"PTX line .*thread 0: 16 bytes at .*{what}"):
            run(on + load.format("0", ".v4.b32 {%r3, %r4, %r5, %r6},", offset), x)
    with pytest.raises(Fault, match="thread 31: 4 bytes at 1024 of the shared memory: outside"):
        run("mad.lo.s32 %r3, %r1, 4, 900;\nst.shared.b32 [%r3], %r1;", x)
    run("setp.eq.b32 %p1, %r1, 99;" + load.format("%rd9", ".b32 %r3,", 1 << 20), x)  # nobody does it


def test_what_was_never_written_is_no_number():
    x = torch.zeros(32)
    run("add.s64 %rd3, %rd1, %rd9;\nld.shared.b32 %r3, [%r2];\nst.global.b32 [%rd3], %r3;", x)
    assert x.isnan().all()
    run("add.s64 %rd3, %rd1, %rd9;\nst.global.b32 [%rd3], %r9;", x.zero_())
    assert x.isnan().all()


def test_programs_that_need_each_others_numbers_are_found():
    body = "mov.u32 %r3, %ctaid.x;\nadd.s64 %rd3, %rd1, %rd9;\n{}st.global.b32 [%rd3], %r3;"
    assert "another program wrote" in run(body.format(""), torch.zeros(32), grid=(3,)).findings[0]
    apart = "mul.wide.u32 %rd4, %r3, 128;\nadd.s64 %rd3, %rd3, %rd4;\n"
    assert run(body.format(apart), torch.zeros(96), grid=(3,)).findings == []


WGMMA = """
mul.wide.u32 %rd5, %r1, 16;
add.s64 %rd6, %rd1, %rd5;
ld.global.v4.b32 {{%r3, %r4, %r5, %r6}}, [%rd6];
and.b32 %r7, %r1, 1;
shl.b32 %r7, %r7, 7;
bfe.u32 %r8, %r1, 1, 3;
mad.lo.s32 %r7, %r8, 16, %r7;
shr.u32 %r8, %r1, 4;
mad.lo.s32 %r7, %r8, 256, %r7;
st.shared.v4.b32 [%r7], {{%r3, %r4, %r5, %r6}};
add.s64 %rd7, %rd2, %rd5;
setp.lt.u32 %p1, %r1, 16;
@%p1 ld.global.v4.b32 {{%r3, %r4, %r5, %r6}}, [%rd7];
@%p1 st.shared.v4.b32 [%r7+2048], {{%r3, %r4, %r5, %r6}};
{fence}
bar.sync 0;
mov.b64 %rd10, 0x1000080000;
mov.b64 %rd11, 0x1000080080;
wgmma.fence.sync.aligned;
wgmma.mma_async.sync.aligned.m64n8k8.f32.tf32.tf32 {{%r10, %r11, %r12, %r13}}, %rd10, %rd11, 0, 1, 1;
wgmma.commit_group.sync.aligned;
{first}
{second}
shr.u32 %r20, %r1, 2;
bfe.u32 %r21, %r1, 5, 2;
and.b32 %r20, %r20, 7;
mad.lo.s32 %r20, %r21, 16, %r20;
and.b32 %r22, %r1, 3;
shl.b32 %r22, %r22, 1;
mad.lo.s32 %r20, %r20, 8, %r22;
mul.wide.u32 %rd12, %r20, 4;
add.s64 %rd13, %rd3, %rd12;
st.global.v2.b32 [%rd13], {{%r10, %r11}};
st.global.v2.b32 [%rd13+256], {{%r12, %r13}};
"""


def test_a_warpgroups_product_reads_what_is_fenced_and_stays():
    """[64, 8] [8, 8]ᵀ in tiles of 8 rows of 16 bytes."""
    x, y, out = torch.randn(64, 8).bfloat16().float(), torch.randn(8, 8).bfloat16().float(), torch.zeros(64, 8)
    wait, store, fence = (
        "wgmma.wait_group.sync.aligned 0;",
        "st.shared.b32 [%r7], 77;",
        "fence.proxy.async.shared::cta;",
    )
    good = run(
        WGMMA.format(fence=fence, first=wait, second="bar.sync 0;\n" + store), x, y, out, threads=128, shared=4096
    )
    assert good.findings == []
    assert good.launches[0].mma_flops == 2 * 64 * 8 * 8
    torch.testing.assert_close(out, x @ y.T)
    for parts, found in (((fence, store, wait), "written while wgmma reads it"), (("", wait, ""), "no fence")):
        given = dict(zip(("fence", "first", "second"), parts))
        seen = run(WGMMA.format(**given), x, y, out, threads=128, shared=4096)
        assert any(found in text for text in seen.findings)


def test_an_instruction_that_is_not_known_is_named():
    with pytest.raises(NotImplementedError, match=r"k, PTX line \d+: tanh.approx.f32"):
        run("tanh.approx.f32 %r3, %r1;", torch.zeros(1))
