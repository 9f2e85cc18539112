// What the lanes of a warp do together: exchange numbers, and multiply small matrices that lie in their registers.
#include <bit>

#include "machine.h"

enum Exchange { UP, DOWN, BUTTERFLY, INDEX };

// Operands: what comes, number, lane or distance, bounds, members.
template <Exchange HOW>
static void shuffle(Warp& w, const Instruction& in) {
    const s32* at = operands(w, in);
    u32 out[LANES];
    for (int l = 0; l < LANES; l++) {
        int b = w.reg<u32>(at[2])[l] & 31, c = w.reg<u32>(at[3])[l], segment = c >> 8 & 31;
        int lowest = l & segment, highest = lowest | (c & 31 & ~segment), from = l;
        if (HOW == UP && l - b >= highest) from = l - b;
        if (HOW == DOWN && l + b <= highest) from = l + b;
        if (HOW == BUTTERFLY && (l ^ b) <= highest) from = l ^ b;
        if (HOW == INDEX && (lowest | (b & ~segment)) <= highest) from = lowest | (b & ~segment);
        out[l] = w.reg<u32>(at[1])[from];
    }
    put(w, at[0], out);
}

template <s32 (*F)(s32, s32)>
static void reduce(Warp& w, const Instruction& in) {
    const s32* at = operands(w, in);
    s32 total = w.reg<s32>(at[1])[0], out[LANES];
    for (int l = 1; l < LANES; l++) total = F(total, w.reg<s32>(at[1])[l]);
    for (s32& x : out) x = total;
    put(w, at[0], out);
}

static s32 sum(s32 a, s32 b) { return s32(u32(a) + u32(b)); }
static s32 least(s32 a, s32 b) { return a < b ? a : b; }
static s32 largest(s32 a, s32 b) { return a > b ? a : b; }

static void nothing(Warp&, const Instruction&) {}

struct TF32 {  // of a register, which holds one; the hardware reads its upper 19 bits
    static constexpr int PACKED = 1;
    static f32 number(u32 bits, int) { return std::bit_cast<f32>(bits & 0xffffe000); }
};

struct BF16 {
    static constexpr int PACKED = 2;
    static f32 number(u32 bits, int i) { return std::bit_cast<f32>(i ? bits & 0xffff0000 : bits << 16); }
};

struct F16 {
    static constexpr int PACKED = 2;
    static f32 number(u32 bits, int i) {
        u32 x = i ? bits >> 16 : bits & 0xffff, size = x & 0x7fff;
        f32 found = size >= 0x7c00 ? std::bit_cast<f32>(size << 13 | 0x7f800000) : std::bit_cast<f32>(size << 13) * 0x1p112f;
        return x >> 15 ? -found : found;
    }
};

// D [16, 8] = A [16, K] B [K, 8] + C, operands D, A, B, C by registers; K in two halves of 4 registers' columns.
template <class T>
static void multiply(Warp& w, const Instruction& in) {
    constexpr int N = T::PACKED, K = 8 * N;
    const s32* at = operands(w, in);
    f32 a[16][K], b[8][K], out[4][LANES] = {};
    w.program->launch->counts.mma_flops += 2 * 16 * 8 * K;
    if (w.program->launch->only_counts) {
        for (int i = 0; i < 4; i++) put(w, at[i], out[i]);
        return;
    }
    for (int l = 0; l < LANES; l++)
        for (int i = 0; i < N; i++)
            for (int half = 0; half < 2; half++) {
                int k = half * 4 * N + l % 4 * N + i;
                for (int lower = 0; lower < 2; lower++)
                    a[l / 4 + 8 * lower][k] = T::number(w.reg<u32>(at[4 + 2 * half + lower])[l], i);
                b[l / 4][k] = T::number(w.reg<u32>(at[8 + half])[l], i);
            }
    for (int i = 0; i < 4; i++)
        for (int l = 0; l < LANES; l++) {
            int row = l / 4 + i / 2 * 8, column = l % 4 * 2 + i % 2;
            f64 total = w.reg<f32>(at[10 + i])[l];
            for (int k = 0; k < K; k++) total += f64(a[row][k]) * b[column][k];
            out[i][l] = f32(total);
        }
    for (int i = 0; i < 4; i++) put(w, at[i], out[i]);
}

void add_warp(std::vector<Operation>& all) {
    const std::vector<Operation> here = {
        {"shfl.sync.up.b32", shuffle<UP>, CONVERGENT, {4, 4, 4, 4, 4}},
        {"shfl.sync.down.b32", shuffle<DOWN>, CONVERGENT, {4, 4, 4, 4, 4}},
        {"shfl.sync.bfly.b32", shuffle<BUTTERFLY>, CONVERGENT, {4, 4, 4, 4, 4}},
        {"shfl.sync.idx.b32", shuffle<INDEX>, CONVERGENT, {4, 4, 4, 4, 4}},
        {"redux.sync.add.s32", reduce<sum>, CONVERGENT, {4, 4, 4}},
        {"redux.sync.min.s32", reduce<least>, CONVERGENT, {4, 4, 4}},
        {"redux.sync.max.s32", reduce<largest>, CONVERGENT, {4, 4, 4}},
        {"bar.warp.sync", nothing, CONVERGENT, {4}},
        {"mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32", multiply<TF32>, CONVERGENT, std::vector<int>(14, 4)},
        {"mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", multiply<BF16>, CONVERGENT, std::vector<int>(14, 4)},
        {"mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", multiply<F16>, CONVERGENT, std::vector<int>(14, 4)},
    };
    all.insert(all.end(), here.begin(), here.end());
}
