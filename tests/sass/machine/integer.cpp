// Integers, bits and predicates.
#include "handlers.h"
#include <algorithm>

#define EACH for (int i = 0; i < LANES; ++i)

// Return operand k; it matters only in some lanes.
static Lanes integer_in(Step &s, int k, u32 lanes) {
    const OnlyLanes only(s, lanes);
    return integer(s, k);
}

void mov(Step &s) { write(s, 0, integer(s, 1)); }

// d, carry out 1, carry out 2 = a + b + c (+ carry in 1 + carry in 2)
void add3(Step &s) {
    Lanes64 sum;
    EACH sum[i] = 0;
    for (int k = 3; k < 6; ++k) {
        const Lanes term = raw(s, k);
        const i32 flags = s.in.operand[k].flags;
        // In a chain, `-x` is the inverted word: the carry in adds the 1.
        const bool negative = (flags & NEGATIVE) && !s.in.has(F_X), inverted = (flags & (NEGATIVE | INVERTED)) != 0;
        EACH sum[i] += u64(inverted ? ~term[i] : term[i]) + negative;
    }
    if (s.in.has(F_X)) {
        const u32 one = predicate(s, 6), two = predicate(s, 7);
        EACH sum[i] += (one >> i & 1) + (two >> i & 1);
    }
    Lanes low;
    u32 carry1 = 0, carry2 = 0;
    EACH {
        low[i] = u32(sum[i]);
        carry1 |= u32(sum[i] >> 32 >= 1) << i;
        carry2 |= u32(sum[i] >> 32 >= 2) << i;
    }
    write(s, 0, low);
    write_predicate(s, 1, carry1);
    write_predicate(s, 2, carry2);
}

void add(Step &s) {
    Lanes a = integer(s, 1);
    const Lanes b = integer(s, 2);
    EACH a[i] += b[i];
    write(s, 0, a);
}

static u64 product(const Step &s, u32 a, u32 b) { return s.in.has(F_U32) ? u64(a) * b : u64(i64(i32(a)) * i32(b)); }

// d, carry out = a * b + c (+ carry in); WIDE: 64-bit c and d; HI: the high word of the product and 64-bit sum
void multiply_add(Step &s) {
    const Lanes a = integer(s, 2), b = integer(s, 3);
    const u32 carry_in = s.in.has(F_X) ? predicate(s, 5) : 0;
    if (!s.in.has(F_WIDE) && !s.in.has(F_HI)) {
        Lanes c = integer(s, 4);
        EACH c[i] += a[i] * b[i] + (carry_in >> i & 1);
        return write(s, 0, c);
    }
    Lanes64 c = integer64(s, 4);
    u32 carry_out = 0;
    EACH {
        const u64 term = product(s, a[i], b[i]), sum = c[i] + term, all = sum + (carry_in >> i & 1);
        carry_out |= u32(sum < term || all < sum) << i;
        c[i] = all;
    }
    if (s.in.has(F_WIDE)) {
        write64(s, 0, c);
    } else {
        Lanes high;
        EACH high[i] = u32(c[i] >> 32);
        write(s, 0, high);
    }
    write_predicate(s, 1, carry_out);
}

// d, carry out = (a << shift) + b (+ carry in); HI: the high word of the 64-bit a, whose upper half is c or its sign
void shift_add(Step &s) {
    const Lanes a = integer(s, 2), b = integer(s, 3);
    const u32 by = s.in.operand[5].value & 31, carry_in = s.in.has(F_X) ? predicate(s, 6) : 0;
    Lanes c = integer(s, 4), out;
    if (s.in.has(F_SX32)) EACH c[i] = i32(a[i]) >> 31;
    u32 carry_out = 0;
    EACH {
        const u64 whole = (u64(c[i]) << 32 | a[i]) << by;
        const u64 sum = u64(s.in.has(F_HI) ? u32(whole >> 32) : u32(whole)) + b[i] + (carry_in >> i & 1);
        out[i] = u32(sum);
        carry_out |= u32(sum >> 32) << i;
    }
    write(s, 0, out);
    write_predicate(s, 1, carry_out);
}

// Apply a truth table of three inputs; bit 4 a + 2 b + c of `table` is the result.
static u32 by_table(u32 table, u32 a, u32 b, u32 c) {
    u32 out = 0;
    for (int k = 0; k < 8; ++k)
        if (table >> k & 1) out |= (k & 4 ? a : ~a) & (k & 2 ? b : ~b) & (k & 1 ? c : ~c);
    return out;
}

// p, d = table(a, b, c); p: whether it is not 0, or p in
void logic(Step &s) {
    const Lanes a = integer(s, 2), b = integer(s, 3), c = integer(s, 4);
    const u32 table = s.in.operand[5].value;
    Lanes out = all_lanes(0);
    // The same as by_table for each lane, in an order that the compiler vectorizes.
    for (int k = 0; k < 8; ++k) {
        if (!(table >> k & 1)) continue;
        const u32 not_a = k & 4 ? 0 : ~0u, not_b = k & 2 ? 0 : ~0u, not_c = k & 1 ? 0 : ~0u;
        EACH out[i] |= (a[i] ^ not_a) & (b[i] ^ not_b) & (c[i] ^ not_c);
    }
    write(s, 1, out);
    if (s.in.operand[0].kind == NONE) return;
    u32 any = predicate(s, 6);
    EACH any |= u32(out[i] != 0) << i;
    write_predicate(s, 0, any);
}

// p1 = table1(a, b, c), p2 = table2(a, b, c)
void predicate_logic(Step &s) {
    const u32 a = predicate(s, 2), b = predicate(s, 3), c = predicate(s, 4);
    const u32 first = by_table(s.in.operand[5].value, a, b, c), second = by_table(s.in.operand[6].value, a, b, c);
    write_predicate(s, 0, first);
    write_predicate(s, 1, second);
}

template <typename T>
static bool compares(i32 how, T a, T b) {
    switch (how) {
        case LT: return a < b;
        case EQ: return a == b;
        case LE: return a <= b;
        case GT: return a > b;
        case NE: return a != b;
        case GE: return a >= b;
        case TRUE_: return true;
        default: return false;
    }
}

// Compare the high words of 64-bit numbers, given the result of the low words.
template <typename T>
static bool compares_high(i32 how, T a, T b, bool low) {
    if (a == b) return low;
    return how == NE || (how != EQ && compares(how, a, b));
}

// p1 = (a ? b) and/or/xor p in; p2 = not (a ? b) and/or/xor p in; EX: the last operand is the result of the low words
void compare_integers(Step &s) {
    const u32 in = predicate(s, 4), low = predicate(s, 5), matter = lanes_that_matter(s.in.combine, in);
    const Lanes a = integer_in(s, 2, matter), b = integer_in(s, 3, matter);
    const bool extended = s.in.has(F_EX);
    u32 bits = 0;
    EACH {
        bool is;
        if (s.in.has(F_U32))
            is = extended ? compares_high<u32>(s.in.compare, a[i], b[i], low >> i & 1)
                          : compares<u32>(s.in.compare, a[i], b[i]);
        else
            is = extended ? compares_high<i32>(s.in.compare, a[i], b[i], low >> i & 1)
                          : compares<i32>(s.in.compare, a[i], b[i]);
        bits |= u32(is) << i;
    }
    write_predicate(s, 0, combined(s.in.combine, bits, in));
    write_predicate(s, 1, combined(s.in.combine, ~bits, in));
}

static u32 smaller_or_larger(const Step &s, bool smaller, u32 a, u32 b) {
    if (s.in.has(F_U32)) return smaller ? std::min(a, b) : std::max(a, b);
    return smaller ? std::min(i32(a), i32(b)) : std::max(i32(a), i32(b));
}

// d = p ? min(a, b) : max(a, b)
void min_max(Step &s) {
    const Lanes a = integer(s, 1), b = integer(s, 2);
    const u32 smaller = predicate(s, 3);
    Lanes out;
    EACH out[i] = smaller_or_larger(s, smaller >> i & 1, a[i], b[i]);
    write(s, 0, out);
}

// d = p ? min(a, b, c) : max(a, b, c)
void min_max3(Step &s) {
    const Lanes a = integer(s, 1), b = integer(s, 2), c = integer(s, 3);
    const u32 smaller = predicate(s, 4);
    Lanes out;
    EACH out[i] = smaller_or_larger(s, smaller >> i & 1, smaller_or_larger(s, smaller >> i & 1, a[i], b[i]), c[i]);
    write(s, 0, out);
}

// d = p ? min(a + b, c) : max(a + b, c)
void add_min_max(Step &s) {
    const Lanes a = integer(s, 1), b = integer(s, 2), c = integer(s, 3);
    const u32 smaller = predicate(s, 4);
    Lanes out;
    EACH out[i] = smaller_or_larger(s, smaller >> i & 1, a[i] + b[i], c[i]);
    write(s, 0, out);
}

void absolute(Step &s) {
    Lanes a = integer(s, 1);
    EACH a[i] = i32(a[i]) < 0 ? 0u - a[i] : a[i];
    write(s, 0, a);
}

// d = the low or the high word of (high, low) << by or >> by. W: `by` is taken modulo 32, otherwise it is clamped.
void shift(Step &s) {
    const Lanes low = integer(s, 1), by = integer(s, 2), high = integer(s, 3);
    const bool is_64 = s.in.has(F_U64) || s.in.has(F_S64), is_signed = s.in.has(F_S32) || s.in.has(F_S64);
    Lanes out;
    EACH {
        const u32 n = s.in.has(F_W) ? by[i] & (is_64 ? 63u : 31u) : std::min(by[i], is_64 ? 64u : 32u);
        const u64 whole = u64(high[i]) << 32 | low[i];
        u64 moved;
        if (s.in.has(F_L)) moved = n == 64 ? 0 : whole << n;
        else if (is_signed) moved = u64(i64(whole) >> std::min(n, 63u));
        else moved = n == 64 ? 0 : whole >> n;
        out[i] = u32(s.in.has(F_HI) ? moved >> 32 : moved);
    }
    write(s, 0, out);
}

// d = four of the eight bytes (b, a), chosen by the nibbles of the selector, or their sign
void permute_bytes(Step &s) {
    const Lanes a = integer(s, 1), selector = integer(s, 2), b = integer(s, 3);
    Lanes out;
    EACH {
        const u64 bytes = u64(b[i]) << 32 | a[i];
        out[i] = 0;
        for (int k = 0; k < 4; ++k) {
            const u32 which = selector[i] >> 4 * k & 15;
            u32 byte = u32(bytes >> 8 * (which & 7)) & 255;
            if (which & 8) byte = byte & 128 ? 255 : 0;
            out[i] |= byte << 8 * k;
        }
    }
    write(s, 0, out);
}

void select(Step &s) {
    const u32 first = predicate(s, 3);
    const Lanes a = integer_in(s, 1, first), b = integer_in(s, 2, ~first);
    Lanes out;
    EACH out[i] = first >> i & 1 ? a[i] : b[i];
    write(s, 0, out);
}

static u32 width_of(const Step &s, u32 value) { return s.in.has(F_W) ? value & 31 : std::min(value, 32u); }

// d = b ones from bit a on
void bit_mask(Step &s) {
    Lanes a = integer(s, 1);
    const Lanes b = integer(s, 2);
    EACH a[i] = u32(((u64(1) << width_of(s, b[i])) - 1) << width_of(s, a[i]));
    write(s, 0, a);
}

// d = the lowest b bits of a, extended by their sign or, with U32, by 0
void extend_sign(Step &s) {
    Lanes a = integer(s, 1);
    const Lanes b = integer(s, 2);
    EACH {
        const u32 n = width_of(s, b[i]);
        if (n == 0) a[i] = 0;
        else if (s.in.has(F_U32)) a[i] &= u32((u64(1) << n) - 1);
        else a[i] = u32(i32(a[i] << (32 - n)) >> (32 - n));
    }
    write(s, 0, a);
}

// d = position of the highest one, or of the highest bit that differs from the sign; SH: the shift that brings it up
void find_leading_one(Step &s) {
    Lanes a = integer(s, 1);
    EACH {
        const u32 bits = !s.in.has(F_U32) && i32(a[i]) < 0 ? ~a[i] : a[i];
        const u32 position = bits ? 31 - __builtin_clz(bits) : ~0u;
        a[i] = s.in.has(F_SH) && bits ? 31 - position : position;
    }
    write(s, 0, a);
}

void count_ones(Step &s) {
    Lanes a = integer(s, 1);
    EACH a[i] = __builtin_popcount(a[i]);
    write(s, 0, a);
}

void reverse_bits(Step &s) {
    Lanes a = integer(s, 1);
    EACH {
        u32 x = __builtin_bswap32(a[i]);
        x = (x & 0x0f0f0f0fu) << 4 | (x >> 4 & 0x0f0f0f0fu);
        x = (x & 0x33333333u) << 2 | (x >> 2 & 0x33333333u);
        a[i] = (x & 0x55555555u) << 1 | (x >> 1 & 0x55555555u);
    }
    write(s, 0, a);
}

// The first bit of the byte of a register that holds predicates.
static int first_bit(const Operand &o) { return 8 * (o.part & 3); }

// d = a with the masked bits replaced by the predicates P0 .. P6
void predicates_to_register(Step &s) {
    Lanes a = integer(s, 1);
    const int first = first_bit(s.in.operand[0]);
    const u32 mask = s.in.operand[2].value & 0x7fu;
    EACH {
        u32 bits = 0;
        for (int k = 0; k < 7; ++k) bits |= (s.warp.predicates[k] >> i & 1) << k;
        a[i] = (a[i] & ~(mask << first)) | (bits & mask) << first;
    }
    write(s, 0, a);
}

// the predicates of the mask = bits of a
void register_to_predicates(Step &s) {
    const Lanes a = integer(s, 0);
    const int first = first_bit(s.in.operand[0]);
    for (int k = 0; k < 7; ++k) {
        if (!(s.in.operand[1].value >> k & 1)) continue;
        u32 bits = 0;
        EACH bits |= (a[i] >> (first + k) & 1) << i;
        s.warp.predicates[k] = (s.warp.predicates[k] & ~s.active) | (bits & s.active);
    }
}
