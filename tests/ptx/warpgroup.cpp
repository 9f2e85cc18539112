// wgmma of sm_90: four warps multiply matrices of the shared memory, each its own 16 rows, while they go on.
//
// Registers are as if the product were there at once, which ptxas sees to. Memory is read when the product begins, and
// must not have changed until it is waited for; what ordinary stores wrote must have been fenced.
#include <bit>

#include "machine.h"

struct Tf32 {
    static constexpr int BYTES = 4;
    static f32 number(u32 bits) { return std::bit_cast<f32>(bits & 0xffffe000); }
};

struct Bf16 {
    static constexpr int BYTES = 2;
    static f32 number(u32 bits) { return std::bit_cast<f32>(bits << 16); }
};

struct F16 {
    static constexpr int BYTES = 2;
    static f32 number(u32 x) {
        u32 size = x & 0x7fff;
        f32 found = size >= 0x7c00 ? std::bit_cast<f32>(size << 13 | 0x7f800000) : std::bit_cast<f32>(size << 13) * 0x1p112f;
        return x >> 15 ? -found : found;
    }
};

// Where a matrix descriptor has the number at a row (of M, or column of N) and k, in the canonical layouts of the ISA.
// T numbers are 16 bytes; the rows of a tile are 16, 32, 64 or 128 bytes, in which the address exchanges chunks of 16.
static u32 place(u64 descriptor, int row, int k, int bytes, bool is_transposed) {
    const u32 start = (descriptor & 0x3fff) << 4, leading = (descriptor >> 16 & 0x3fff) << 4;
    const u32 stride = (descriptor >> 32 & 0x3fff) << 4, mode = descriptor >> 62;
    const u32 wide = mode ? 256 >> mode : 16, swizzled = mode ? 16 >> mode : 1;  // chunks of a row
    u32 at;
    if (is_transposed) {  // rows of the memory are k
        u32 per_tile = wide / bytes, tile = mode ? leading : stride, group = mode ? stride : leading;
        at = start + row / per_tile * tile + k / 8 * group + k % 8 * wide + row % per_tile * bytes;
    } else {
        u32 inside = k * bytes;
        at = start + row / 8 * stride + row % 8 * wide + (mode ? inside : inside / 16 * leading + inside % 16);
    }
    return at ^ ((at >> 7 & (swizzled - 1)) << 4);
}

// Operands: D by registers, A by 4 registers or by descriptor, B's descriptor, whether D counts; size: columns; count:
// A's operands; offset: bits, is A transposed, is B.
template <class T>
static void multiply(Warp& w, const Instruction& in) {
    constexpr int K = 32 / T::BYTES, PACKED = 4 / T::BYTES;
    Program& p = *w.program;
    const s32* at = operands(w, in);
    const int n_out = in.size / 2;
    p.launch->counts.mma_flops += 2 * 16 * in.size * K;
    p.launch->counts.shared += 32 * (in.count == 1 ? 16 : 0) + 32 * in.size / 4;  // its rows; columns, once for all four
    if (p.launch->only_counts) {
        for (int i = 0; i < n_out; i++) memset(w.reg<f32>(at[i]), 0, 4 * LANES);
        return;
    }
    const s32* at_a = at + n_out;
    const u64 descriptor_b = w.reg<u64>(at_a[in.count])[0];
    const bool accumulates = w.file[at_a[in.count + 1]] & 1;
    f32 a[16][K];
    std::vector<f32> b(in.size * K);

    auto from_shared = [&](u64 descriptor, int row, int k, bool is_transposed) {
        u32 address = place(descriptor, row, k, T::BYTES, is_transposed), bits = 0;
        memcpy(&bits, p.at(w, in, 0, true, address, T::BYTES), T::BYTES);
        p.reads(w, in.line, true, address, T::BYTES);
        const Cell& c = *p.cell(true, address);
        if (c.wrote && c.wrote_when >= w.fenced && c.wrote_when >= p.warps[c.wrote_by].fenced)
            p.say("proxy", in.line, c.wrote_at, "no fence between a store and wgmma");
        w.products.push_back({address, u32(T::BYTES), in.line, {}});
        memcpy(w.products.back().data, &bits, T::BYTES);
        return T::number(bits);
    };
    for (int k = 0; k < K; k++) {
        for (int column = 0; column < in.size; column++) b[column * K + k] = from_shared(descriptor_b, column, k, in.offset & 2);
        for (int row = 0; row < 16; row++)
            if (in.count == 1) {
                a[row][k] = from_shared(w.reg<u64>(at_a[0])[0], w.id % 4 * 16 + row, k, in.offset & 1);
            } else {
                int lane = row % 8 * 4 + k / PACKED % 4, which = row / 8 + 2 * (k / (4 * PACKED));
                u32 bits = w.reg<u32>(at_a[which])[lane];
                a[row][k] = T::number(T::BYTES == 4 ? bits : bits >> 16 * (k % 2) & 0xffff);
            }
    }
    for (int i = 0; i < n_out; i++) {
        f32* out = w.reg<f32>(at[i]);
        for (int l = 0; l < LANES; l++) {
            const f32 *x = a[l / 4 + i / 2 % 2 * 8], *y = &b[(i / 4 * 8 + l % 4 * 2 + i % 2) * K];
            f64 total = accumulates ? out[l] : 0;
            for (int k = 0; k < K; k++) total += f64(x[k]) * y[k];
            out[l] = f32(total);
        }
    }
}

static void nothing(Warp&, const Instruction&) {}

static void fence(Warp& w, const Instruction&) { w.fenced = ++w.program->now; }

static void commit(Warp& w, const Instruction&) {
    w.product_groups.push_back(std::move(w.products));
    w.products.clear();
}

static void wait(Warp& w, const Instruction& in) {
    Program& p = *w.program;
    for (; w.product_groups.size() > size_t(in.offset); w.product_groups.pop_front())
        for (const Copy& c : w.product_groups.front()) {
            p.reads(w, c.line, true, c.to, c.n);
            if (memcmp(&p.shared[c.to], c.data, c.n))
                p.say("wgmma", c.line, p.cell(true, c.to)->wrote_at, "written while wgmma reads it");
        }
}

void add_warpgroup(std::vector<Operation>& all) {
    const std::vector<Operation> here = {
        {"wgmma.tf32", multiply<Tf32>, CONVERGENT, {}},
        {"wgmma.bf16", multiply<Bf16>, CONVERGENT, {}},
        {"wgmma.f16", multiply<F16>, CONVERGENT, {}},
        {"wgmma.fence.sync.aligned", nothing, CONVERGENT, {}},
        {"wgmma.commit_group.sync.aligned", commit, CONVERGENT, {}},
        {"wgmma.wait_group.sync.aligned", wait, CONVERGENT, {}},
        {"fence.proxy.async.shared::cta", fence, PLAIN, {}},
    };
    all.insert(all.end(), here.begin(), here.end());
}
