// Conversions between types of numbers. Integers out of range become the nearest that the type has.
#include "handlers.h"

#define EACH for (int i = 0; i < LANES; ++i)

// Return operand 1 as integers of the type that the modifiers name.
static Lanes64 integers(const Step &s) {
    const Lanes a = integer(s, 1);
    const int part = s.in.operand[1].part, shift = part >= 4 ? 8 * (part - 4) : part == 2 ? 16 : 0;
    Lanes64 out;
    EACH {
        const u32 bits = a[i] >> shift;
        if (s.in.has(F_U8)) out[i] = u8(bits);
        else if (s.in.has(F_S8)) out[i] = u64(i64(int8_t(bits)));
        else if (s.in.has(F_U16)) out[i] = u16(bits);
        else if (s.in.has(F_S16)) out[i] = u64(i64(int16_t(bits)));
        else if (s.in.has(F_U32)) out[i] = bits;
        else out[i] = u64(i64(i32(bits)));
    }
    return out;
}

static float rounded_up(float nearest, long double exact) {
    return (long double)nearest < exact ? std::nextafter(nearest, INFINITY) : nearest;
}

void integer_to_float(Step &s) {
    const Lanes64 a = integers(s);
    Lanes out;
    EACH {
        const float nearest = float(i64(a[i]));
        out[i] = as_bits(s.in.has(F_RP) ? rounded_up(nearest, i64(a[i])) : nearest);
    }
    write(s, 0, out);
}

void long_to_float(Step &s) {
    const Lanes64 a = integer64(s, 1);
    Lanes out;
    EACH {
        const bool is_signed = s.in.has(F_S64);
        const float nearest = is_signed ? float(i64(a[i])) : float(a[i]);
        out[i] = as_bits(s.in.has(F_RP) ? rounded_up(nearest, is_signed ? (long double)i64(a[i]) : (long double)a[i])
                                        : nearest);
    }
    write(s, 0, out);
}

void integer_to_double(Step &s) {
    Lanes64 a = integers(s);
    EACH a[i] = as_bits(double(i64(a[i])));
    write64(s, 0, a);
}

template <typename T>
static T to_whole(const Step &s, T value) {
    if (s.in.has(F_FLOOR)) return std::floor(value);
    if (s.in.has(F_CEIL)) return std::ceil(value);
    if (s.in.has(F_TRUNC)) return std::trunc(value);
    return std::nearbyint(value);
}

static u32 to_32_bits(const Step &s, double whole) {
    if (std::isnan(whole)) return s.in.has(F_U32) ? 0 : 0x80000000u;
    if (s.in.has(F_U32)) return whole <= 0.0 ? 0 : whole >= 4294967295.0 ? 4294967295u : u32(whole);
    return whole <= -2147483648.0 ? 0x80000000u : whole >= 2147483647.0 ? 0x7fffffffu : u32(i32(whole));
}

void float_to_integer(Step &s) {
    Lanes a = floating(s, 1);
    EACH {
        const float value = s.in.has(F_FTZ) ? flushed(as_float(a[i])) : as_float(a[i]);
        a[i] = to_32_bits(s, to_whole(s, value));
    }
    write(s, 0, a);
}

void float_to_long(Step &s) {
    const Lanes a = floating(s, 1);
    Lanes64 out;
    EACH {
        const double whole = to_whole(s, as_float(a[i]));
        if (s.in.has(F_U64)) out[i] = !(whole > 0.0) ? 0 : whole >= 18446744073709551616.0 ? ~u64(0) : u64(whole);
        else
            out[i] = std::isnan(whole) || whole < -9223372036854775808.0 ? u64(1) << 63
                     : whole >= 9223372036854775808.0                    ? ~u64(0) >> 1
                                                                         : u64(i64(whole));
    }
    write64(s, 0, out);
}

void double_to_integer(Step &s) {
    const Doubles a = doubles(s, 1);
    Lanes out;
    EACH out[i] = to_32_bits(s, to_whole(s, a[i]));
    write(s, 0, out);
}

void float_to_double(Step &s) {
    const Lanes a = floating(s, 1);
    Lanes64 out;
    EACH out[i] = as_bits(double(as_float(a[i])));
    write64(s, 0, out);
}

void double_to_float(Step &s) {
    const Doubles a = doubles(s, 1);
    Lanes out;
    EACH out[i] = as_bits(float(a[i]));
    write(s, 0, out);
}

template <typename T>
static u32 half_bits(T value) {
    const _Float16 half = _Float16(value);
    u16 bits;
    memcpy(&bits, &half, 2);
    return bits;
}

void float_to_half(Step &s) {
    Lanes a = floating(s, 1);
    EACH a[i] = half_bits(as_float(a[i]));
    write(s, 0, a);
}

void double_to_half(Step &s) {
    const Doubles a = doubles(s, 1);
    Lanes out;
    EACH out[i] = half_bits(a[i]);
    write(s, 0, out);
}

// d = (half(a), half(b)), a in the upper half
void floats_to_halves(Step &s) {
    Lanes a = floating(s, 1);
    const Lanes b = floating(s, 2);
    EACH a[i] = half_bits(as_float(a[i])) << 16 | half_bits(as_float(b[i]));
    write(s, 0, a);
}

void round_float(Step &s) {
    Lanes a = floating(s, 1);
    EACH a[i] = as_bits(to_whole(s, s.in.has(F_FTZ) ? flushed(as_float(a[i])) : as_float(a[i])));
    write(s, 0, a);
}

void round_double(Step &s) {
    const Doubles a = doubles(s, 1);
    Lanes64 out;
    EACH out[i] = as_bits(to_whole(s, a[i]));
    write64(s, 0, out);
}
