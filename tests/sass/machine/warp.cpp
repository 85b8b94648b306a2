// What lanes exchange with each other, and what they know of themselves.
#include "handlers.h"
#include "memory.h"
#include <algorithm>

#define EACH for (int i = 0; i < LANES; ++i)

// d = lanes in which the predicate is true; p = whether it is true in any or all
void vote(Step &s) {
    const u32 lanes = predicate(s, 2) & s.active;
    write(s, 0, all_lanes(lanes));
    write_predicate(s, 1, (s.in.has(F_ALL) ? lanes == s.active : lanes != 0) ? ALL_LANES : 0);
}

// d = lanes that have the same value
void match(Step &s) {
    const Lanes a = integer(s, 1);
    Lanes out = all_lanes(0);
    EACH for (int k = 0; k < LANES; ++k) out[i] |= u32((s.active >> k & 1) && a[k] == a[i]) << k;
    write(s, 0, out);
}

template <typename Combine>
static void reduce(Step &s, const Combine &combine) {
    if (!s.active) return;
    const Lanes a = integer(s, 1);
    u32 lanes = s.active;
    u32 out = a[__builtin_ctz(lanes)];
    for (lanes &= lanes - 1; lanes; lanes &= lanes - 1) out = combine(out, a[__builtin_ctz(lanes)]);
    write(s, 0, all_lanes(out));
}
void reduce_min(Step &s) {
    if (s.in.has(F_S32)) reduce(s, [](u32 a, u32 b) { return u32(std::min(i32(a), i32(b))); });
    else reduce(s, [](u32 a, u32 b) { return std::min(a, b); });
}
void reduce_max(Step &s) {
    if (s.in.has(F_S32)) reduce(s, [](u32 a, u32 b) { return u32(std::max(i32(a), i32(b))); });
    else reduce(s, [](u32 a, u32 b) { return std::max(a, b); });
}
void reduce_sum(Step &s) {
    reduce(s, [](u32 a, u32 b) { return a + b; });
}
void reduce_or(Step &s) {
    reduce(s, [](u32 a, u32 b) { return a | b; });
}
void reduce_and(Step &s) {
    reduce(s, [](u32 a, u32 b) { return a & b; });
}
void reduce_xor(Step &s) {
    reduce(s, [](u32 a, u32 b) { return a ^ b; });
}

// p, d = whether lane `source` is in the segment, and its value or, if not, the lane's own. The last operand holds the
// bound of the segment and the lanes' bits that all of a segment have in common.
template <typename Source>
static void shuffle(Step &s, const Source &source) {
    const Lanes a = integer(s, 2), b = integer(s, 3), c = integer(s, 4);
    require_defined(s);
    Lanes out;
    u32 inside = 0;
    EACH {
        const int segment = c[i] >> 8 & 31, bound = c[i] & 31;
        const int last = (i & segment) | (bound & ~segment), first = i & segment;
        bool in;
        const int from = source(i, int(b[i] & 31), first, last, segment, in);
        if (in && (s.active >> i & 1) && !(s.active >> (from & 31) & 1))
            throw Fault("reads a value of lane " + std::to_string(from & 31) +
                        ", which does not take part in the shuffle");
        out[i] = a[in ? from & 31 : i];
        inside |= u32(in) << i;
    }
    write(s, 1, out);
    write_predicate(s, 0, inside);
}
void shuffle_index(Step &s) {
    shuffle(s, [](int, int b, int first, int last, int segment, bool &in) {
        const int from = first | (b & ~segment);
        in = from <= last;
        return from;
    });
}
void shuffle_up(Step &s) {
    shuffle(s, [](int i, int b, int, int last, int, bool &in) {
        in = i - b >= last;  // the bound is the first lane here
        return i - b;
    });
}
void shuffle_down(Step &s) {
    shuffle(s, [](int i, int b, int, int last, int, bool &in) {
        in = i + b <= last;
        return i + b;
    });
}
void shuffle_xor(Step &s) {
    shuffle(s, [](int i, int b, int, int last, int, bool &in) {
        in = (i ^ b) <= last;
        return i ^ b;
    });
}

// R2UR: the value of the first active lane
void first_lane(Step &s) { write(s, 0, integer(s, 1)); }

static u32 special_value(const Step &s, i32 which, int lane) {
    switch (which) {
        case TID_X: return s.warp.number * LANES + lane;
        case CTAID_X: return s.block.number;
        case LANE_ID: return lane;
        case SHARED_WINDOW: return SHARED_WINDOW_HIGH;
        case ZERO: return 0;
        case LANES_BELOW: return (1u << lane) - 1;
        default: throw Fault("reads an unknown special register");
    }
}

void special_register(Step &s) {
    Lanes out;
    EACH out[i] = special_value(s, s.in.operand[1].reg, i);
    write(s, 0, out);
}
void special_register64(Step &s) {
    special_register(s);
    write(s, 0, all_lanes(0), 1);
}

void load_constant(Step &s) {
    const int words = std::max(4, s.in.nbytes) / 4;
    Lanes value[4];  // read all words before the register of the offset is overwritten
    for (int word = 0; word < words; ++word) value[word] = raw(s, 1, word);
    for (int word = 0; word < words; ++word) write(s, 0, value[word], word);
}

// B2R.RESULT: what a barrier with reduction found
void barrier_result(Step &s) { write_predicate(s, 1, s.warp.barrier_result ? ALL_LANES : 0); }
