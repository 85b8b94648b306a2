// Floats, doubles and halves. MUFU is rounded to nearest here; on a GPU its last bits may differ.
#include "handlers.h"

#define EACH for (int i = 0; i < LANES; ++i)

// Return operand k; it matters only in some lanes.
static Lanes floating_in(Step &s, int k, u32 lanes) {
    const OnlyLanes only(s, lanes);
    return floating(s, k);
}

static float input(const Step &s, u32 bits) { return s.in.has(F_FTZ) ? flushed(as_float(bits)) : as_float(bits); }

static u32 output(const Step &s, float value) {
    if (s.in.has(F_FTZ)) value = flushed(value);
    if (s.in.has(F_SAT)) value = value > 0.0f ? (value < 1.0f ? value : 1.0f) : 0.0f;  // NaN becomes 0
    return as_bits(value);
}

void float_add(Step &s) {
    Lanes a = floating(s, 1);
    const Lanes b = floating(s, 2);
    EACH a[i] = output(s, input(s, a[i]) + input(s, b[i]));
    write(s, 0, a);
}

void float_multiply(Step &s) {
    Lanes a = floating(s, 1);
    const Lanes b = floating(s, 2);
    EACH a[i] = output(s, input(s, a[i]) * input(s, b[i]));
    write(s, 0, a);
}

void float_fma(Step &s) {
    Lanes a = floating(s, 1);
    const Lanes b = floating(s, 2), c = floating(s, 3);
    EACH a[i] = output(s, __builtin_fmaf(input(s, a[i]), input(s, b[i]), input(s, c[i])));
    write(s, 0, a);
}

// d = p ? min(a, b) : max(a, b). Of a NaN and a number it is the number, or NaN with the modifier NAN.
void float_min_max(Step &s) {
    const Lanes a = floating(s, 1), b = floating(s, 2);
    const u32 smaller = predicate(s, 3);
    Lanes out;
    EACH {
        const float x = input(s, a[i]), y = input(s, b[i]);
        float found;
        if (std::isnan(x) || std::isnan(y))
            found = s.in.has(F_NAN) || (std::isnan(x) && std::isnan(y)) ? NAN : std::isnan(x) ? y : x;
        else if (x == y) found = (smaller >> i & 1) == std::signbit(x) ? x : y;  // -0 is less than 0
        else found = (smaller >> i & 1) == (x < y) ? x : y;
        out[i] = as_bits(found);
    }
    write(s, 0, out);
}

void float_select(Step &s) {
    const u32 first = predicate(s, 3);
    const Lanes a = floating_in(s, 1, first), b = floating_in(s, 2, ~first);
    Lanes out;
    EACH out[i] = first >> i & 1 ? a[i] : b[i];
    write(s, 0, out);
}

template <typename T>
static bool compares(i32 how, T a, T b) {
    const bool unordered = std::isnan(a) || std::isnan(b);
    switch (how) {
        case LT: return a < b;
        case EQ: return a == b;
        case LE: return a <= b;
        case GT: return a > b;
        case NE: return !unordered && a != b;
        case GE: return a >= b;
        case NUM: return !unordered;
        case NAN_: return unordered;
        case LTU: return unordered || a < b;
        case EQU: return unordered || a == b;
        case LEU: return unordered || a <= b;
        case GTU: return unordered || a > b;
        case NEU: return unordered || a != b;
        case GEU: return unordered || a >= b;
        case TRUE_: return true;
        default: return false;
    }
}

static void write_comparison(Step &s, u32 bits) {
    const u32 in = predicate(s, 4);
    write_predicate(s, 0, combined(s.in.combine, bits, in));
    write_predicate(s, 1, combined(s.in.combine, ~bits, in));
}

void compare_floats(Step &s) {
    const u32 matter = lanes_that_matter(s.in.combine, predicate(s, 4));
    const Lanes a = floating_in(s, 2, matter), b = floating_in(s, 3, matter);
    u32 bits = 0;
    EACH bits |= u32(compares(s.in.compare, input(s, a[i]), input(s, b[i]))) << i;
    write_comparison(s, bits);
}

void compare_doubles(Step &s) {
    const Doubles a = doubles(s, 2), b = doubles(s, 3);
    u32 bits = 0;
    EACH bits |= u32(compares(s.in.compare, a[i], b[i])) << i;
    write_comparison(s, bits);
}

// p = whether a / b needs the slow path: exponents for which the fast division could overflow or lose bits. A dividend
// of 0 needs it, too, because the fast division would lose the sign of the quotient 0.
void check_division(Step &s) {
    const Lanes a = floating(s, 1), b = floating(s, 2);
    u32 slow = 0;
    EACH {
        const int top = a[i] >> 23 & 255, bottom = b[i] >> 23 & 255;
        const bool extreme = top == 255 || top <= 24 || bottom == 255 || bottom == 0 || bottom >= 253;
        slow |= u32(extreme || top - bottom >= 126 || top - bottom <= -125) << i;
    }
    write_predicate(s, 0, slow);
}

void reciprocal(Step &s) {
    Lanes a = floating(s, 1);
    EACH a[i] = as_bits(1.0f / flushed(as_float(a[i])));
    write(s, 0, a);
}
void reciprocal_root(Step &s) {
    Lanes a = floating(s, 1);
    EACH a[i] = as_bits(1.0f / std::sqrt(flushed(as_float(a[i]))));
    write(s, 0, a);
}
void power_of_two(Step &s) {
    Lanes a = floating(s, 1);
    EACH a[i] = as_bits(std::exp2(as_float(a[i])));
    write(s, 0, a);
}
void logarithm(Step &s) {
    Lanes a = floating(s, 1);
    EACH a[i] = as_bits(std::log2(as_float(a[i])));
    write(s, 0, a);
}
void root(Step &s) {
    Lanes a = floating(s, 1);
    EACH a[i] = as_bits(std::sqrt(as_float(a[i])));
    write(s, 0, a);
}
// The high words of doubles.
void reciprocal_high(Step &s) {
    Lanes a = floating(s, 1);
    EACH a[i] = u32(as_bits(1.0 / as_double(u64(a[i]) << 32)) >> 32);
    write(s, 0, a);
}
void reciprocal_root_high(Step &s) {
    Lanes a = floating(s, 1);
    EACH a[i] = u32(as_bits(1.0 / std::sqrt(as_double(u64(a[i]) << 32))) >> 32);
    write(s, 0, a);
}

static void write_doubles(Step &s, const Doubles &value) {
    Lanes64 bits;
    EACH bits[i] = as_bits(value[i]);
    write64(s, 0, bits);
}

// The next double above a rounded result, unless it was exact.
static double rounded_up(double nearest, double error) {
    return error > 0 ? std::nextafter(nearest, INFINITY) : nearest;
}

void double_add(Step &s) {
    Doubles a = doubles(s, 1);
    const Doubles b = doubles(s, 2);
    EACH a.lane[i] += b[i];
    write_doubles(s, a);
}
void double_multiply(Step &s) {
    Doubles a = doubles(s, 1);
    const Doubles b = doubles(s, 2);
    EACH {
        const double product = a[i] * b[i];
        a.lane[i] = s.in.has(F_RP) ? rounded_up(product, std::fma(a[i], b[i], -product)) : product;
    }
    write_doubles(s, a);
}
void double_fma(Step &s) {
    Doubles a = doubles(s, 1);
    const Doubles b = doubles(s, 2), c = doubles(s, 3);
    EACH a.lane[i] = std::fma(a[i], b[i], c[i]);
    write_doubles(s, a);
}

static float half(u16 bits) {
    _Float16 value;
    memcpy(&value, &bits, 2);
    return float(value);
}
static u16 half_bits(double value) {
    const _Float16 rounded = _Float16(value);
    u16 bits;
    memcpy(&bits, &rounded, 2);
    return bits;
}

// The halves of operand k: both of the register, or one of them twice.
static double half_of(const Step &s, int k, u32 bits, int which) {
    const Operand &o = s.in.operand[k];
    if (o.part) which = o.part - 1;
    float value = half(u16(bits >> 16 * which));
    if (o.flags & ABSOLUTE) value = std::fabs(value);
    return o.flags & NEGATIVE ? -value : value;
}

// Products and sums of halves are exact in double, except a sum whose terms are far apart: then the larger decides.
template <typename Compute>
static void on_halves(Step &s, int inputs, const Compute &compute) {
    const Lanes a = raw(s, 1), b = raw(s, 2), c = inputs > 2 ? raw(s, 3) : all_lanes(0);
    Lanes out;
    EACH {
        out[i] = 0;
        for (int which = 0; which < 2; ++which) {
            const double third = inputs > 2 ? half_of(s, 3, c[i], which) : 0.0;
            const double value = compute(half_of(s, 1, a[i], which), half_of(s, 2, b[i], which), third);
            out[i] |= u32(half_bits(value)) << 16 * which;
        }
    }
    write(s, 0, out);
}
void half_add(Step &s) {
    on_halves(s, 2, [](double a, double b, double) { return a + b; });
}
void half_multiply(Step &s) {
    on_halves(s, 2, [](double a, double b, double) { return a * b; });
}
void half_fma(Step &s) {
    on_halves(s, 3, [](double a, double b, double c) { return a * b + c; });
}

// HADD2.F32: d = a + b as floats, of one half each. The compiler uses it to convert, with a = -0.
void half_to_float(Step &s) {
    const Lanes a = raw(s, 1), b = raw(s, 2);
    Lanes out;
    EACH out[i] = as_bits(float(half_of(s, 1, a[i], 0) + half_of(s, 2, b[i], 0)));
    write(s, 0, out);
}
