// What each lane computes for itself, as the PTX ISA says; what it calls approximate is correctly rounded here.
#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <type_traits>
#include <utility>

#include "machine.h"

template <auto F, class D, class... S, size_t... I>
void each_lane(Warp& w, const Instruction& in, std::index_sequence<I...>) {
    const s32* at = operands(w, in);
    D out[LANES];
    for (int l = 0; l < LANES; l++) out[l] = F(w.reg<S>(at[1 + I])[l]...);
    put(w, at[0], out);
}

template <auto F, class D, class... S>
Operation operation(const char* name, D (*)(S...)) {
    Handler run = [](Warp& w, const Instruction& in) {
        each_lane<F, D, S...>(w, in, std::index_sequence_for<S...>());
    };
    return {name, run, PLAIN, {int(sizeof(D)), int(sizeof(S))...}};
}

static f32 flushed(f32 x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }

template <class T>
static T least(T a, T b) {  // -0 below 0, a number rather than NaN
    if (a != a) return b;
    if (b != b) return a;
    return a == b ? (std::signbit(a) ? a : b) : std::min(a, b);
}

static f32 from_bf16(u16 x) { return std::bit_cast<f32>(u32(x) << 16); }

static u16 to_bf16(f32 x) {
    u32 bits = std::bit_cast<u32>(x);
    return x != x ? 0x7fff : u16((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static f32 from_f16(u16 x) {
    s32 exponent = x >> 10 & 31, fraction = x & 1023;
    f32 size = exponent == 0 ? std::ldexp(f32(fraction), -24) : std::ldexp(f32(fraction + 1024), exponent - 25);
    if (exponent == 31) size = fraction ? NAN : INFINITY;
    return x >> 15 ? -size : size;
}

static u16 to_f16(f32 x) {
    if (x != x) return 0x7fff;
    u16 sign = std::signbit(x) ? 0x8000 : 0;
    f64 size = std::fabs(f64(x));
    if (size >= 65520) return sign | 0x7c00;
    s32 exponent = size < 0x1p-14 ? -14 : std::ilogb(size);
    s32 units = s32(std::nearbyint(std::ldexp(size, 10 - exponent)));  // of normal numbers 1024 and more
    return sign | u16(units + (exponent + 14) * 1024);
}

static u32 to_tf32(f32 x) {  // ties away from zero
    u32 bits = std::bit_cast<u32>(x);
    if (x != x) return 0x7fffffff;
    return std::isinf(x) ? bits : (bits + 0x1000) & 0xffffe000;
}

static u32 permuted(u32 a, u32 b, u32 how) {
    u64 both = u64(b) << 32 | a;
    u32 found = 0;
    for (int i = 0; i < 4; i++) {
        u32 pick = how >> 4 * i & 15, byte = both >> 8 * (pick & 7) & 255;
        if (pick & 8) byte = byte & 128 ? 255 : 0;
        found |= byte << 8 * i;
    }
    return found;
}

static u64 field(s64 a, u32 from, u32 n, u32 bits, bool is_signed) {  // a: extended to 64 bits by its sign, or by 0
    from &= 255, n &= 255;
    if (n == 0) return 0;
    u64 sign = a >> std::min(from + n - 1, bits - 1) & 1, mask = n > 63 ? ~0ull : (1ull << n) - 1;
    u64 moved = from >= bits ? 0 : u64(a) >> from & mask;
    if (is_signed && from >= bits) return sign ? ~0ull : 0;
    return is_signed && sign ? moved | ~mask : moved;
}

template <class T>
static T quotient(T a, T b) {
    if (b == 0) return T(-1);
    return std::is_signed_v<T> && b == T(-1) ? T(0 - u64(a)) : T(a / b);
}

template <class T>
static T remainder(T a, T b) {
    if (b == 0) return a;
    return std::is_signed_v<T> && b == T(-1) ? T(0) : T(a % b);
}

template <class T, class F>
static T whole(F x) {  // towards zero, to the nearest that there is
    constexpr T most = std::numeric_limits<T>::max(), lowest = std::numeric_limits<T>::min();
    if (x != x) return 0;
    return x >= F(most) ? most : x <= F(lowest) ? lowest : T(x);
}

static f64 coarse_reciprocal(f64 x) {  // of the upper half of the bits, in the upper half
    constexpr u64 upper = 0xffffffff00000000;
    f64 found = 1 / std::bit_cast<f64>(std::bit_cast<u64>(x) & upper);
    return std::bit_cast<f64>(std::bit_cast<u64>(found) & upper);
}

// Of two packed numbers: do the lower ones differ, do the upper ones.
template <f32 (*NUMBER)(u16)>
static void unequal(Warp& w, const Instruction& in) {
    const s32* at = operands(w, in);
    for (int half = 0; half < 2; half++) {
        pred out[LANES];
        for (int l = 0; l < LANES; l++) {
            f32 a = NUMBER(w.reg<u16>(at[2])[2 * l + half]), b = NUMBER(w.reg<u16>(at[3])[2 * l + half]);
            out[l] = a < b || a > b;
        }
        put(w, at[half], out);
    }
}

#define OP(name, ...) operation<([] __VA_ARGS__)>(name, +[] __VA_ARGS__)
#define COMPARE(type, T)                                    \
    OP("setp.eq." type, (T a, T b) -> pred { return a == b; }), \
    OP("setp.ne." type, (T a, T b) -> pred { return a < b || a > b; }), \
    OP("setp.lt." type, (T a, T b) -> pred { return a < b; }),  \
    OP("setp.le." type, (T a, T b) -> pred { return a <= b; }), \
    OP("setp.gt." type, (T a, T b) -> pred { return a > b; }),  \
    OP("setp.ge." type, (T a, T b) -> pred { return a >= b; })
#define INTEGER(type, T)                                                 \
    OP("add." type, (T a, T b) -> T { return T(u64(a) + u64(b)); }),         \
    OP("sub." type, (T a, T b) -> T { return T(u64(a) - u64(b)); }),         \
    OP("mul.lo." type, (T a, T b) -> T { return T(u64(a) * u64(b)); }),      \
    OP("mad.lo." type, (T a, T b, T c) -> T { return T(u64(a) * u64(b) + u64(c)); }), \
    OP("neg." type, (T a) -> T { return T(0 - u64(a)); }),                   \
    OP("min." type, (T a, T b) -> T { return std::min(a, b); }),             \
    OP("max." type, (T a, T b) -> T { return std::max(a, b); }),             \
    OP("div." type, (T a, T b) -> T { return quotient(a, b); }),             \
    OP("rem." type, (T a, T b) -> T { return remainder(a, b); }),            \
    COMPARE(type, T)
#define BITS(n, U, S)                                                    \
    OP("mov.b" n, (U a) -> U { return a; }),                                 \
    OP("not.b" n, (U a) -> U { return U(~a); }),                             \
    OP("and.b" n, (U a, U b) -> U { return a & b; }),                        \
    OP("or.b" n, (U a, U b) -> U { return a | b; }),                         \
    OP("xor.b" n, (U a, U b) -> U { return a ^ b; }),                        \
    OP("shl.b" n, (U a, u32 b) -> U { return b >= 8 * sizeof(U) ? U(0) : U(a << b); }), \
    OP("shr.u" n, (U a, u32 b) -> U { return b >= 8 * sizeof(U) ? U(0) : U(a >> b); }), \
    OP("shr.s" n, (S a, u32 b) -> S { return S(a >> std::min<u32>(b, 8 * sizeof(S) - 1)); }), \
    OP("selp.b" n, (U a, U b, pred c) -> U { return c & 1 ? a : b; }),       \
    OP("setp.eq.b" n, (U a, U b) -> pred { return a == b; }),                \
    OP("setp.ne.b" n, (U a, U b) -> pred { return a != b; })
#define FLOAT(type, T)                                                   \
    OP("add." type, (T a, T b) -> T { return a + b; }),                      \
    OP("sub." type, (T a, T b) -> T { return a - b; }),                      \
    OP("mul." type, (T a, T b) -> T { return a * b; }),                      \
    OP("add.rn." type, (T a, T b) -> T { return a + b; }),                   \
    OP("sub.rn." type, (T a, T b) -> T { return a - b; }),                   \
    OP("mul.rn." type, (T a, T b) -> T { return a * b; }),                   \
    OP("fma.rn." type, (T a, T b, T c) -> T { return std::fma(a, b, c); }),  \
    OP("div.rn." type, (T a, T b) -> T { return a / b; }),                   \
    OP("rcp.rn." type, (T a) -> T { return 1 / a; }),                        \
    OP("sqrt.rn." type, (T a) -> T { return std::sqrt(a); }),                \
    OP("neg." type, (T a) -> T { return -a; }),                              \
    OP("abs." type, (T a) -> T { return std::fabs(a); }),                    \
    OP("min." type, (T a, T b) -> T { return least(a, b); }),                \
    OP("max." type, (T a, T b) -> T { return -least(-a, -b); }),             \
    OP("selp." type, (T a, T b, pred c) -> T { return c & 1 ? a : b; }),     \
    OP("setp.equ." type, (T a, T b) -> pred { return !(a < b || a > b); }),  \
    OP("setp.neu." type, (T a, T b) -> pred { return a != b; }),             \
    OP("setp.ltu." type, (T a, T b) -> pred { return !(a >= b); }),          \
    OP("setp.leu." type, (T a, T b) -> pred { return !(a > b); }),           \
    OP("setp.gtu." type, (T a, T b) -> pred { return !(a <= b); }),          \
    OP("setp.geu." type, (T a, T b) -> pred { return !(a < b); }),           \
    OP("setp.num." type, (T a, T b) -> pred { return a == a && b == b; }),   \
    OP("setp.nan." type, (T a, T b) -> pred { return a != a || b != b; }),   \
    COMPARE(type, T)
#define CONVERT(name, D, S) OP("cvt." name, (S a) -> D { return D(a); })

void add_arithmetic(std::vector<Operation>& all) {
    const std::vector<Operation> here = {
        INTEGER("s16", s16), INTEGER("u16", u16), INTEGER("s32", s32), INTEGER("u32", u32), INTEGER("s64", s64),
        INTEGER("u64", u64), BITS("16", u16, s16), BITS("32", u32, s32), BITS("64", u64, s64), FLOAT("f32", f32),
        FLOAT("f64", f64),
        OP("abs.s32", (s32 a) -> s32 { return a < 0 ? s32(0 - u32(a)) : a; }),
        OP("abs.s64", (s64 a) -> s64 { return a < 0 ? s64(0 - u64(a)) : a; }),
        OP("mov.pred", (pred a) -> pred { return a; }),
        OP("not.pred", (pred a) -> pred { return !(a & 1); }),
        OP("and.pred", (pred a, pred b) -> pred { return a & b & 1; }),
        OP("or.pred", (pred a, pred b) -> pred { return (a | b) & 1; }),
        OP("xor.pred", (pred a, pred b) -> pred { return (a ^ b) & 1; }),
        {"setp.ne.bf16x2", unequal<from_bf16>, PLAIN, {1, 1, 4, 4}},
        {"setp.ne.f16x2", unequal<from_f16>, PLAIN, {1, 1, 4, 4}},
        OP("mul.wide.u16", (u16 a, u16 b) -> u32 { return u32(a) * b; }),
        OP("mul.wide.s16", (s16 a, s16 b) -> s32 { return s32(a) * b; }),
        OP("mul.wide.u32", (u32 a, u32 b) -> u64 { return u64(a) * b; }),
        OP("mul.wide.s32", (s32 a, s32 b) -> s64 { return s64(a) * b; }),
        OP("mad.wide.u32", (u32 a, u32 b, u64 c) -> u64 { return u64(a) * b + c; }),
        OP("mad.wide.s32", (s32 a, s32 b, u64 c) -> u64 { return u64(s64(a) * b) + c; }),
        OP("mul.hi.u32", (u32 a, u32 b) -> u32 { return u64(a) * b >> 32; }),
        OP("mul.hi.s32", (s32 a, s32 b) -> s32 { return s32(s64(a) * b >> 32); }),
        OP("mul.hi.u64", (u64 a, u64 b) -> u64 { return u64((unsigned __int128)a * b >> 64); }),
        OP("mul.hi.s64", (s64 a, s64 b) -> s64 { return s64((__int128)a * b >> 64); }),
        OP("bfe.u32", (u32 a, u32 b, u32 c) -> u32 { return u32(field(a, b, c, 32, false)); }),
        OP("bfe.s32", (s32 a, u32 b, u32 c) -> s32 { return s32(field(a, b, c, 32, true)); }),
        OP("prmt.b32", (u32 a, u32 b, u32 c) -> u32 { return permuted(a, b, c); }),
        OP("popc.b32", (u32 a) -> u32 { return std::popcount(a); }),
        OP("clz.b32", (u32 a) -> u32 { return std::countl_zero(a); }),
        OP("max.relu.s32", (s32 a, s32 b) -> s32 { return std::max({a, b, 0}); }),
        OP("abs.f16x2", (u32 a) -> u32 { return a & 0x7fff7fff; }),
        OP("abs.bf16x2", (u32 a) -> u32 { return a & 0x7fff7fff; }),
        OP("fma.rn.ftz.f32", (f32 a, f32 b, f32 c) -> f32 { return flushed(std::fma(flushed(a), flushed(b), flushed(c))); }),
        OP("abs.ftz.f32", (f32 a) -> f32 { return std::fabs(flushed(a)); }),
        OP("ex2.approx.f32", (f32 a) -> f32 { return f32(std::exp2(f64(a))); }),
        OP("ex2.approx.ftz.f32", (f32 a) -> f32 { return flushed(f32(std::exp2(f64(flushed(a))))); }),
        OP("lg2.approx.f32", (f32 a) -> f32 { return f32(std::log2(f64(a))); }),
        OP("lg2.approx.ftz.f32", (f32 a) -> f32 { return f32(std::log2(f64(flushed(a)))); }),
        OP("sqrt.approx.f32", (f32 a) -> f32 { return std::sqrt(a); }),
        OP("sqrt.approx.ftz.f32", (f32 a) -> f32 { return std::sqrt(flushed(a)); }),
        OP("rsqrt.approx.f32", (f32 a) -> f32 { return f32(1 / std::sqrt(f64(a))); }),
        OP("rsqrt.approx.ftz.f32", (f32 a) -> f32 { return f32(1 / std::sqrt(f64(flushed(a)))); }),
        OP("rcp.approx.ftz.f32", (f32 a) -> f32 { return flushed(1 / flushed(a)); }),
        OP("rcp.approx.ftz.f64", (f64 a) -> f64 { return coarse_reciprocal(a); }),
        OP("div.full.f32", (f32 a, f32 b) -> f32 { return a / b; }),
        OP("div.full.ftz.f32", (f32 a, f32 b) -> f32 { return flushed(flushed(a) / flushed(b)); }),
        OP("div.approx.f32", (f32 a, f32 b) -> f32 { return a / b; }),
        OP("cvt.rna.tf32.f32", (f32 a) -> u32 { return to_tf32(a); }),
        OP("cvt.rn.bf16.f32", (f32 a) -> u16 { return to_bf16(a); }),
        OP("cvt.rn.bf16x2.f32", (f32 a, f32 b) -> u32 { return u32(to_bf16(a)) << 16 | to_bf16(b); }),
        OP("cvt.rn.f16.f32", (f32 a) -> u16 { return to_f16(a); }),
        OP("cvt.rn.f16x2.f32", (f32 a, f32 b) -> u32 { return u32(to_f16(a)) << 16 | to_f16(b); }),
        OP("cvt.f32.bf16", (u16 a) -> f32 { return from_bf16(a); }),
        OP("cvt.f32.f16", (u16 a) -> f32 { return from_f16(a); }),
        OP("cvt.rzi.s32.f32", (f32 a) -> s32 { return whole<s32>(a); }),
        OP("cvt.rzi.s64.f32", (f32 a) -> s64 { return whole<s64>(a); }),
        OP("cvt.rzi.s32.f64", (f64 a) -> s32 { return whole<s32>(a); }),
        OP("cvt.rzi.s64.f64", (f64 a) -> s64 { return whole<s64>(a); }),
        OP("cvt.rmi.f32.f32", (f32 a) -> f32 { return std::floor(a); }),
        OP("cvt.s64.s32 of 64", (u64 a) -> s64 { return s32(a); }),
        CONVERT("f64.f32", f64, f32), CONVERT("rn.f32.f64", f32, f64), CONVERT("rn.f32.s32", f32, s32),
        CONVERT("rn.f32.u32", f32, u32), CONVERT("rn.f32.s64", f32, s64), CONVERT("rn.f32.u64", f32, u64),
        CONVERT("rn.f64.s32", f64, s32), CONVERT("rn.f64.u32", f64, u32), CONVERT("rn.f64.s64", f64, s64),
        CONVERT("rn.f64.u64", f64, u64), CONVERT("u64.u32", u64, u32), CONVERT("s64.s32", s64, s32),
        CONVERT("u32.u64", u32, u64), CONVERT("s32.s64", s32, s64), CONVERT("u32.u16", u32, u16),
        CONVERT("s32.s16", s32, s16), CONVERT("u64.u16", u64, u16), CONVERT("s64.s16", s64, s16),
        CONVERT("u16.u32", u16, u32), CONVERT("u16.u64", u16, u64),
    };
    all.insert(all.end(), here.begin(), here.end());
}
