// Reading and writing the operands of an instruction.
#pragma once
#include "machine.h"
#include <cmath>

inline float as_float(u32 bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
inline u32 as_bits(float value) {
    u32 bits;
    memcpy(&bits, &value, 4);
    return bits;
}
inline double as_double(u64 bits) {
    double value;
    memcpy(&value, &bits, 8);
    return value;
}
inline u64 as_bits(double value) {
    u64 bits;
    memcpy(&bits, &value, 8);
    return bits;
}
// Flush a subnormal number to zero, as -ftz=true asks for.
inline float flushed(float value) {
    const u32 bits = as_bits(value);
    return bits & 0x7f800000u ? value : as_float(bits & 0x80000000u);
}

inline Lanes all_lanes(u32 value) {
    Lanes out;
    for (u32 &lane : out.lane) lane = value;
    return out;
}

// Return a register. Where its value was loaded from memory that was never written, what is computed of it is
// undefined, too. That is no fault until it decides something: the compiler loads more than it needs, and selects
// afterwards.
inline const Lanes &read_register(const Step &s, int number) {
    const Undefined &undefined = s.warp.undefined[number];
    if (undefined.lanes & s.active)
        s.undefined = {s.undefined.lanes | (undefined.lanes & s.active), undefined.load, undefined.from};
    return s.warp.registers[number];
}

// Raise a fault if the operands that were read so far are undefined in a lane.
inline void require_defined(const Step &s) {
    if (s.undefined.lanes)
        throw Fault("uses a value that the load at " + hex(s.undefined.load) + " read from shared memory at " +
                    hex(s.undefined.from) + " that was never written");
}

// While this exists, only some lanes read operands; for lanes whose operands do not matter.
class OnlyLanes {
  public:
    OnlyLanes(Step &s, u32 lanes) : s_(s), all_(s.active) { s.active &= lanes; }
    ~OnlyLanes() { s_.active = all_; }

  private:
    Step &s_;
    u32 all_;
};

inline u32 constant(const Step &s, u64 offset) {
    if (offset + 4 > s.machine.launch.constants_nbytes)
        throw Fault("reads constant bank 0 at " + std::to_string(offset) + ", beyond its end");
    u32 value;
    memcpy(&value, s.machine.constants + offset, 4);
    return value;
}

// Return 32 bits of operand k without its sign or inversion; `word` 1 is the high half of a 64-bit operand.
inline Lanes raw(const Step &s, int k, int word = 0) {
    const Operand &o = s.in.operand[k];
    switch (o.kind) {
        case REGISTER: return o.reg == NO_REGISTER ? all_lanes(0) : read_register(s, o.reg + word);
        case UNIFORM: return all_lanes(o.reg == NO_UNIFORM ? 0 : s.warp.uniforms[o.reg + word]);
        case IMMEDIATE: return all_lanes(word ? 0 : o.value);
        case CONSTANT: {
            if (o.reg == NO_REGISTER) return all_lanes(constant(s, u64(o.value) + 4 * word));
            Lanes out = all_lanes(0);
            for (int i = 0; i < LANES; ++i)
                if (s.active >> i & 1) out[i] = constant(s, u64(read_register(s, o.reg)[i]) + o.value + 4 * word);
            return out;
        }
        case NONE: return all_lanes(0);
        default: throw Fault("has an operand " + std::to_string(k) + " that is not a number");
    }
}

// Return operand k as 32-bit integers.
inline Lanes integer(const Step &s, int k) {
    Lanes out = raw(s, k);
    const i32 flags = s.in.operand[k].flags;
    if (flags & ABSOLUTE)
        for (u32 &lane : out.lane) lane = i32(lane) < 0 ? 0u - lane : lane;
    if (flags & NEGATIVE)
        for (u32 &lane : out.lane) lane = 0u - lane;
    if (flags & INVERTED)
        for (u32 &lane : out.lane) lane = ~lane;
    return out;
}

// Return operand k as 64-bit integers: two registers, or an immediate of 32 bits.
inline Lanes64 integer64(const Step &s, int k) {
    const Lanes low = raw(s, k), high = raw(s, k, 1);
    const i32 flags = s.in.operand[k].flags;
    Lanes64 out;
    for (int i = 0; i < LANES; ++i) {
        out[i] = u64(high[i]) << 32 | low[i];
        if (flags & NEGATIVE) out[i] = u64(0) - out[i];
        if (flags & INVERTED) out[i] = ~out[i];
    }
    return out;
}

// Return the bits of operand k as 32-bit floats.
inline Lanes floating(const Step &s, int k) {
    Lanes out = raw(s, k);
    const i32 flags = s.in.operand[k].flags;
    const u32 keep = flags & ABSOLUTE ? 0x7fffffffu : ~0u, change = flags & NEGATIVE ? 0x80000000u : 0u;
    for (u32 &lane : out.lane) lane = (lane & keep) ^ change;
    return out;
}

struct Doubles {
    double lane[LANES];
    double operator[](int i) const { return lane[i]; }
};

inline Doubles doubles(const Step &s, int k) {
    const Operand &o = s.in.operand[k];
    const Lanes low = o.kind == IMMEDIATE ? all_lanes(0) : raw(s, k);  // an immediate is the high half
    const Lanes high = o.kind == IMMEDIATE ? raw(s, k) : raw(s, k, 1);
    Doubles out;
    for (int i = 0; i < LANES; ++i) {
        out.lane[i] = as_double(u64(high[i]) << 32 | low[i]);
        if (o.flags & ABSOLUTE) out.lane[i] = std::fabs(out.lane[i]);
        if (o.flags & NEGATIVE) out.lane[i] = -out.lane[i];
    }
    return out;
}

// Return predicate operand k as a bit per lane; `missing` if there is no such operand.
inline u32 predicate(const Step &s, int k, u32 missing = 0) {
    const Operand &o = s.in.operand[k];
    u32 bits;
    if (o.kind == NONE) return missing;
    if (o.kind == PREDICATE) bits = o.reg == TRUE_PREDICATE ? ALL_LANES : s.warp.predicates[o.reg];
    else if (o.kind == UNIFORM_PREDICATE)
        bits = o.reg == TRUE_PREDICATE || s.warp.uniform_predicates[o.reg] ? ALL_LANES : 0u;
    else throw Fault("has an operand " + std::to_string(k) + " that is not a predicate");
    return o.flags & INVERTED ? ~bits : bits;
}

// Write the active lanes of operand k, or of the register `word` registers after it.
inline void write(Step &s, int k, const Lanes &value, int word = 0) {
    const Operand &o = s.in.operand[k];
    if (o.kind == NONE) return;
    if (o.kind == UNIFORM) {
        require_defined(s);
        if (o.reg != NO_UNIFORM && s.active) s.warp.uniforms[o.reg + word] = value[__builtin_ctz(s.active)];
        return;
    }
    if (o.kind != REGISTER) throw Fault("writes operand " + std::to_string(k) + ", which is not a register");
    if (o.reg == NO_REGISTER) return;
    Undefined &undefined = s.warp.undefined[o.reg + word];
    const u32 lanes = (undefined.lanes & ~s.active) | (s.undefined.lanes & s.active);
    if (s.undefined.lanes) undefined = s.undefined;
    undefined.lanes = lanes;
    u32 *lane = s.warp.registers[o.reg + word].lane;
    if (s.active == ALL_LANES) memcpy(lane, value.lane, sizeof value);
    else
        for (int i = 0; i < LANES; ++i) lane[i] = s.active >> i & 1 ? value[i] : lane[i];
}

inline void write64(Step &s, int k, const Lanes64 &value) {
    Lanes low, high;
    for (int i = 0; i < LANES; ++i) {
        low[i] = u32(value[i]);
        high[i] = u32(value[i] >> 32);
    }
    write(s, k, low);
    write(s, k, high, 1);
}

inline void write_predicate(Step &s, int k, u32 bits) {
    const Operand &o = s.in.operand[k];
    if (o.kind == NONE || o.reg == TRUE_PREDICATE) return;
    require_defined(s);
    if (o.kind == PREDICATE) {
        u32 &old = s.warp.predicates[o.reg];
        old = (old & ~s.active) | (bits & s.active);
    } else if (o.kind == UNIFORM_PREDICATE) {
        if (s.active) s.warp.uniform_predicates[o.reg] = (bits & s.active) != 0;
    } else throw Fault("writes operand " + std::to_string(k) + ", which is not a predicate");
}

// The lanes in which a comparison matters that is combined with predicate `in`.
inline u32 lanes_that_matter(i32 how, u32 in) { return how == AND ? in : how == OR ? ~in : ALL_LANES; }

inline u32 combined(i32 how, u32 a, u32 b) { return how == AND ? a & b : how == OR ? a | b : a ^ b; }
