// Atomic operations. Lanes of a warp take effect in order.
#include "handlers.h"
#include "memory.h"
#include <algorithm>

struct Place {
    u8 *bytes;
    int nbytes;
    u64 value() const {
        u64 value = 0;
        memcpy(&value, bytes, nbytes);
        return value;
    }
    void set(u64 value) const { memcpy(bytes, &value, nbytes); }
};

// Replace the value at the address of operand `at` by compute(old, i) in each active lane i; return the old values.
template <typename Compute>
static Lanes64 update(Step &s, int at, bool shared, const Compute &compute) {
    Lanes64 old;
    for (int i = 0; i < LANES; ++i) old[i] = 0;
    if (!s.active) return old;
    u64 addresses[LANES];
    addresses_of(s, at, addresses);
    for (int i = 0; i < LANES; ++i) {
        if (!(s.active >> i & 1)) continue;
        s.fault_lane = i;
        u8 *bytes = shared ? s.block.shared->update(addresses[i], s.in.nbytes, s.warp.number)
                           : global_bytes(s.machine, addresses[i], s.in.nbytes, "updates");
        const Place place{bytes, s.in.nbytes};
        old[i] = place.value();
        place.set(compute(old[i], i));
    }
    s.fault_lane = -1;
    if (shared) record_shared(s, Traffic::SHARED_ATOMIC, addresses, s.in.nbytes);
    else record_global(s, Traffic::GLOBAL_ATOMIC, addresses, s.in.nbytes);
    return old;
}

static void write_old(Step &s, int k, const Lanes64 &old) {
    if (s.in.nbytes == 8) return write64(s, k, old);
    Lanes low;
    for (int i = 0; i < LANES; ++i) low[i] = u32(old[i]);
    write(s, k, low);
}

static Lanes64 given(const Step &s, int k) {
    if (s.in.nbytes == 8) {
        const Lanes64 value = integer64(s, k);
        require_defined(s);
        return value;
    }
    const Lanes value = integer(s, k);
    Lanes64 out;
    for (int i = 0; i < LANES; ++i) out[i] = value[i];
    require_defined(s);
    return out;
}

// d = old value; the value becomes op(old, c). Operands: d, address, c.
template <typename Op>
static void on_shared(Step &s, const Op &op) {
    const Lanes64 c = given(s, 2);
    write_old(s, 0, update(s, 1, true, [&](u64 old, int i) { return op(old, c[i]); }));
}
// The same with operands p, d, address, c.
template <typename Op>
static void on_global(Step &s, const Op &op) {
    const Lanes64 c = given(s, 3);
    write_old(s, 1, update(s, 2, false, [&](u64 old, int i) { return op(old, c[i]); }));
}
// The same without a result. Operands: address, c.
template <typename Op>
static void on_global_only(Step &s, const Op &op) {
    const Lanes64 c = given(s, 1);
    update(s, 0, false, [&](u64 old, int i) { return op(old, c[i]); });
}

static u64 plus(u64 a, u64 b) { return a + b; }
static u64 bits_or(u64 a, u64 b) { return a | b; }
static u64 bits_and(u64 a, u64 b) { return a & b; }
static u64 bits_xor(u64 a, u64 b) { return a ^ b; }
static u64 second(u64, u64 b) { return b; }

// Minimum and maximum as the modifiers say: signed or not, of 32 or 64 bits.
struct Smaller {
    const Step &s;
    u64 operator()(u64 a, u64 b) const {
        if (s.in.has(F_S64)) return std::min(i64(a), i64(b));
        if (s.in.has(F_S32)) return u32(std::min(i32(a), i32(b)));
        return std::min(a, b);
    }
};
struct Larger {
    const Step &s;
    u64 operator()(u64 a, u64 b) const {
        const u64 smaller = Smaller{s}(a, b);
        return smaller == a ? b : a;
    }
};

void shared_add(Step &s) { on_shared(s, plus); }
void shared_min(Step &s) { on_shared(s, Smaller{s}); }
void shared_max(Step &s) { on_shared(s, Larger{s}); }
void shared_or(Step &s) { on_shared(s, bits_or); }
void shared_and(Step &s) { on_shared(s, bits_and); }
void shared_xor(Step &s) { on_shared(s, bits_xor); }
void shared_exchange(Step &s) { on_shared(s, second); }
void global_add(Step &s) { on_global(s, plus); }
void global_min(Step &s) { on_global(s, Smaller{s}); }
void global_max(Step &s) { on_global(s, Larger{s}); }
void global_or(Step &s) { on_global(s, bits_or); }
void global_and(Step &s) { on_global(s, bits_and); }
void global_xor(Step &s) { on_global(s, bits_xor); }
void global_exchange(Step &s) { on_global(s, second); }
void reduce_global_add(Step &s) { on_global_only(s, plus); }
void reduce_global_min(Step &s) { on_global_only(s, Smaller{s}); }
void reduce_global_max(Step &s) { on_global_only(s, Larger{s}); }
void reduce_global_or(Step &s) { on_global_only(s, bits_or); }
void reduce_global_and(Step &s) { on_global_only(s, bits_and); }
void reduce_global_xor(Step &s) { on_global_only(s, bits_xor); }

// ATOMS.POPC.INC: add 1 for each lane. Operands: d, address.
void shared_increment(Step &s) {
    write_old(s, 0, update(s, 1, true, [](u64 old, int) { return old + 1; }));
}

// d = old value; if it is b, the value becomes c. Operands: d, address, b, c.
void shared_swap_if_equal(Step &s) {
    const Lanes64 b = given(s, 2), c = given(s, 3);
    write_old(s, 0, update(s, 1, true, [&](u64 old, int i) { return old == b[i] ? c[i] : old; }));
}

// ATOMS.CAST.SPIN: the same, but d = whether the value was b.
void shared_test_and_swap(Step &s) {
    const Lanes64 b = given(s, 2), c = given(s, 3);
    const Lanes64 old = update(s, 1, true, [&](u64 before, int i) { return before == b[i] ? c[i] : before; });
    Lanes swapped;
    for (int i = 0; i < LANES; ++i) swapped[i] = old[i] == b[i];
    write(s, 0, swapped);
    if (s.in.nbytes == 8) write(s, 0, all_lanes(0), 1);
}

// Operands: p, d, address, b, c.
void global_swap_if_equal(Step &s) {
    const Lanes64 b = given(s, 3), c = given(s, 4);
    write_old(s, 1, update(s, 2, false, [&](u64 old, int i) { return old == b[i] ? c[i] : old; }));
}
