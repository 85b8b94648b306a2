// Loads and stores.
#include "memory.h"
#include "handlers.h"
#include <algorithm>
#include <cstdio>

std::string hex(u64 value) {
    char text[20];
    snprintf(text, sizeof text, "0x%llx", (unsigned long long)value);
    return text;
}

static std::string access(const char *what, int nbytes, const char *where, u64 address) {
    return std::string(what) + " " + std::to_string(nbytes) + " bytes of " + where + " memory at " + hex(address);
}

static Fault misaligned(const std::string &place, int nbytes) {
    return Fault(place + ", which is not a multiple of " + std::to_string(nbytes));
}

// Shared memory

SharedMemory::SharedMemory(u32 nbytes, int n_warps)
    : n_warps_(n_warps),
      bytes_(nbytes, 0xCD),
      words_(nbytes / 4 + 1),
      read_times_((nbytes / 4 + 1) * size_t(n_warps)),
      clocks_(size_t(n_warps) * n_warps) {
    for (int warp = 0; warp < n_warps; ++warp) clocks_[warp * n_warps + warp] = 1;
}

u8 *SharedMemory::checked(u64 address, int nbytes, const char *what) const {
    if (address < SHARED_BEGIN || address - SHARED_BEGIN + nbytes > bytes_.size())
        throw Fault(access(what, nbytes, "shared", address) + ", outside of the block's " +
                    std::to_string(bytes_.size()) + " bytes, which begin at " + hex(SHARED_BEGIN));
    if (address % nbytes) throw misaligned(access(what, nbytes, "shared", address), nbytes);
    return const_cast<u8 *>(&bytes_[address - SHARED_BEGIN]);
}

u32 SharedMemory::unwritten(u64 address, int nbytes) const {
    const u64 begin = address - SHARED_BEGIN;
    if (nbytes < 4) return (words_[begin / 4].written >> begin % 4 & ((1 << nbytes) - 1)) != (1 << nbytes) - 1;
    u32 found = 0;
    for (int word = 0; word < nbytes / 4; ++word) found |= u32(words_[begin / 4 + word].written != 15) << word;
    return found;
}

void SharedMemory::check_writer(const Word &word, u64 address, int warp) const {
    if (word.write_time > clocks_[warp * n_warps_ + word.writer] && word.writer != warp)
        throw Fault("accesses shared memory at " + hex(address) + ", which warp " + std::to_string(word.writer) +
                    " wrote without a barrier in between");
}

void SharedMemory::check_readers(size_t word, u64 address, int warp) const {
    for (int reader = 0; reader < n_warps_; ++reader)
        if (read_times_[word * n_warps_ + reader] > clocks_[warp * n_warps_ + reader] && reader != warp)
            throw Fault("writes shared memory at " + hex(address) + ", which warp " + std::to_string(reader) +
                        " read without a barrier in between");
}

u8 *SharedMemory::read(u64 address, int nbytes, int warp, bool of_atomic) {
    u8 *at = checked(address, nbytes, "reads");
    if (nbytes < 4 || of_atomic) return at;  // warps may share a word
    for (size_t word = (address - SHARED_BEGIN) / 4; word < (address - SHARED_BEGIN + nbytes) / 4; ++word) {
        check_writer(words_[word], word * 4 + SHARED_BEGIN, warp);
        read_time(word, warp) = clocks_[warp * n_warps_ + warp];
    }
    return at;
}

u8 *SharedMemory::write(u64 address, int nbytes, int warp, const u8 *value) {
    u8 *at = checked(address, nbytes, "writes");
    for (u64 byte = address - SHARED_BEGIN; byte < address - SHARED_BEGIN + nbytes; byte += 4) {
        Word &word = words_[byte / 4];
        const u8 bits = nbytes < 4 ? u8(((1 << nbytes) - 1) << byte % 4) : u8(15);
        if (nbytes >= 4) {
            const bool same =
                word.written == 15 && memcmp(&bytes_[byte], value + (byte + SHARED_BEGIN - address), 4) == 0;
            check_readers(byte / 4, byte + SHARED_BEGIN, warp);
            if (!same) {  // several warps may write one value
                check_writer(word, byte + SHARED_BEGIN, warp);
                word.atomic = 0;
                word.writer = u8(warp);
                word.write_time = clocks_[warp * n_warps_ + warp];
            }
        }
        word.written |= bits;
    }
    return at;
}

u8 *SharedMemory::update(u64 address, int nbytes, int warp) {
    u8 *at = checked(address, nbytes, "updates");
    if (unwritten(address, nbytes))
        throw Fault(access("updates", nbytes, "shared", address) + ", which was never written");
    for (size_t k = (address - SHARED_BEGIN) / 4; k < (address - SHARED_BEGIN + nbytes) / 4; ++k) {
        Word &word = words_[k];
        if (!word.atomic) check_writer(word, k * 4 + SHARED_BEGIN, warp);
        check_readers(k, k * 4 + SHARED_BEGIN, warp);
        word.atomic = 1;
        word.writer = u8(warp);
        word.write_time = clocks_[warp * n_warps_ + warp];
    }
    return at;
}

void SharedMemory::synchronize(u64 warps) {
    std::vector<u32> latest(n_warps_, 0);
    for (int warp = 0; warp < n_warps_; ++warp)
        if (warps >> warp & 1)
            for (int other = 0; other < n_warps_; ++other)
                latest[other] = std::max(latest[other], clocks_[warp * n_warps_ + other]);
    for (int warp = 0; warp < n_warps_; ++warp)
        if (warps >> warp & 1) {
            std::copy(latest.begin(), latest.end(), &clocks_[warp * n_warps_]);
            ++clocks_[warp * n_warps_ + warp];
        }
}

// Global memory

// Return how many bytes of an access lie beyond an array, or how far away it is; 0 if it lies within.
static u64 distance(const Range &range, u64 address, int nbytes) {
    if (address < range.begin) return range.begin - address;
    return address + nbytes > range.end ? address + nbytes - range.end : 0;
}

static Fault out_of_bounds(const Machine &machine, const std::string &place, u64 address, int nbytes) {
    const Range *nearest = std::min_element(
        machine.ranges, machine.ranges + machine.launch.n_ranges,
        [&](const Range &a, const Range &b) { return distance(a, address, nbytes) < distance(b, address, nbytes); });
    if (machine.launch.n_ranges == 0) return Fault(place + ", but no argument is an array");
    return Fault(place + ", " + std::to_string(distance(*nearest, address, nbytes)) + " bytes " +
                 (address < nearest->begin ? "before the beginning" : "past the end") + " of argument " +
                 std::to_string(nearest->argument) + ", an array of " + std::to_string(nearest->end - nearest->begin) +
                 " bytes");
}

u8 *global_bytes(Machine &machine, u64 address, int nbytes, const char *what) {
    const Range *range = machine.last_range;  // most accesses are to the same array as the one before
    if (!range || distance(*range, address, nbytes)) {
        range = std::find_if(machine.ranges, machine.ranges + machine.launch.n_ranges,
                             [&](const Range &each) { return distance(each, address, nbytes) == 0; });
        if (range == machine.ranges + machine.launch.n_ranges)
            throw out_of_bounds(machine, access(what, nbytes, "global", address), address, nbytes);
        machine.last_range = range;
    }
    if (address % nbytes) throw misaligned(access(what, nbytes, "global", address), nbytes);
    return (u8 *)address;
}

void addresses_of(const Step &s, int k, u64 *addresses) {
    const Operand &o = s.in.operand[k];
    if (o.kind != ADDRESS) throw Fault("has an operand " + std::to_string(k) + " that is not an address");
    const i64 offset = i32(o.value);
    const bool wide = o.flags & (ADDRESS_64 | OFFSET_32);
    u64 base = o.base == NO_UNIFORM ? 0 : s.warp.uniforms[o.base];
    if (wide && o.base != NO_UNIFORM) base |= u64(s.warp.uniforms[o.base + 1]) << 32;
    const Lanes zero = all_lanes(0);
    const Lanes &low = o.reg == NO_REGISTER ? zero : read_register(s, o.reg);
    const bool has_high = o.flags & ADDRESS_64 && o.reg != NO_REGISTER;
    const Lanes &high = has_high ? read_register(s, o.reg + 1) : zero;
    require_defined(s);
    for (int i = 0; i < LANES; ++i) {
        const u64 own = u64(high[i]) << 32 | low[i];
        addresses[i] = wide ? own + base + offset : u32(own + base + offset);
    }
}

void record_shared(Step &s, Traffic::Kind kind, const u64 *addresses, int nbytes) {
    // 32 banks of 4 bytes. 64-bit accesses take two, 128-bit accesses four groups of lanes; within a group, a bank
    // serves one word per cycle, to any number of lanes.
    const int group = nbytes == 16 ? 8 : nbytes == 8 ? 16 : 32;
    s.traffic.kind = kind;
    for (int first = 0; first < LANES; first += group) {
        u32 words[32][LANES];
        int count[32] = {}, worst = 0;
        for (int i = first; i < first + group; ++i) {
            if (!(s.active >> i & 1)) continue;
            for (int k = 0; k < std::max(1, nbytes / 4); ++k) {
                const u32 word = u32(addresses[i] >> 2) + k, bank = word % 32;
                if (std::find(words[bank], words[bank] + count[bank], word) == words[bank] + count[bank])
                    words[bank][count[bank]++] = word;
                worst = std::max(worst, count[bank]);
            }
        }
        s.traffic.wavefronts += worst;
        s.traffic.conflicts += std::max(0, worst - 1);
    }
}

void record_global(Step &s, Traffic::Kind kind, const u64 *addresses, int nbytes) {
    s.traffic.kind = kind;
    u64 *begin = s.traffic.sectors, *end = begin;
    for (int i = 0; i < LANES; ++i)
        if (s.active >> i & 1) {
            const u64 sector = addresses[i] >> 5;  // aligned accesses lie in one sector
            if (end == begin || end[-1] != sector) *end++ = sector;
        }
    std::sort(begin, end);
    s.traffic.n_sectors = int(std::unique(begin, end) - begin);
    int lines = 0;
    for (int k = 0; k < s.traffic.n_sectors; ++k) lines += k == 0 || begin[k] >> 2 != begin[k - 1] >> 2;
    const int active = __builtin_popcount(s.active);
    s.traffic.wavefronts = std::max(lines, (active * nbytes + 127) / 128);
}

// Loads and stores. `SPACE` says where the address lies; a generic address says it itself.

enum class Space { SHARED, GLOBAL, GENERIC };

static bool is_shared(Space space, u64 address) {
    return space == Space::SHARED || (space == Space::GENERIC && address >> 32 == SHARED_WINDOW_HIGH);
}

// Extend a value of 1 or 2 bytes to a register.
static u32 extended(const Step &s, const u8 *at, int nbytes) {
    if (nbytes == 1) return s.in.has(F_S8) ? u32(i32(int8_t(*at))) : *at;
    u16 value;
    memcpy(&value, at, 2);
    return s.in.has(F_S16) ? u32(i32(int16_t(value))) : value;
}

// Remember which registers hold what was loaded from shared memory that was never written.
static void mark_undefined(Step &s, u32 lanes, const u64 *addresses) {
    for (; lanes; lanes &= lanes - 1) {
        const int i = __builtin_ctz(lanes);
        for (u32 words = s.block.shared->unwritten(addresses[i], s.in.nbytes); words; words &= words - 1) {
            const int word = __builtin_ctz(words);
            Undefined &undefined = s.warp.undefined[std::min(s.in.operand[0].reg + word, NO_REGISTER)];
            undefined = {undefined.lanes | 1u << i, s.in.address, u32(addresses[i]) + 4 * word};
        }
    }
}

static void load(Step &s, Space space) {
    if (!s.active) return;
    u64 addresses[LANES];
    addresses_of(s, 1, addresses);
    const int nbytes = s.in.nbytes;
    Lanes value[4];
    u32 shared = 0;  // lanes that read shared memory
    for (int i = 0; i < LANES; ++i) {
        if (!(s.active >> i & 1)) continue;
        s.fault_lane = i;
        const u8 *at;
        if (is_shared(space, addresses[i])) {
            shared |= 1u << i;
            addresses[i] &= 0xffffffffu;
            at = s.block.shared->read(addresses[i], nbytes, s.warp.number, s.in.has(F_OF_ATOMIC));
        } else {
            at = global_bytes(s.machine, addresses[i], nbytes, "reads");
        }
        if (nbytes < 4) value[0][i] = extended(s, at, nbytes);
        else
            for (int word = 0; word < nbytes / 4; ++word) memcpy(&value[word][i], at + 4 * word, 4);
    }
    s.fault_lane = -1;
    for (int word = 0; word < std::max(1, nbytes / 4); ++word) write(s, 0, value[word], word);
    mark_undefined(s, shared, addresses);
    if (shared) record_shared(s, Traffic::SHARED_READ, addresses, nbytes);
    else record_global(s, Traffic::GLOBAL_READ, addresses, nbytes);
}

static void store(Step &s, Space space) {
    if (!s.active) return;
    u64 addresses[LANES];
    addresses_of(s, 0, addresses);
    const int nbytes = s.in.nbytes;
    Lanes value[4];
    for (int word = 0; word < std::max(1, nbytes / 4); ++word) value[word] = raw(s, 1, word);
    require_defined(s);
    bool shared = false;
    for (int i = 0; i < LANES; ++i) {
        if (!(s.active >> i & 1)) continue;
        s.fault_lane = i;
        u8 bytes[16];
        for (int word = 0; word < std::max(1, nbytes / 4); ++word) memcpy(bytes + 4 * word, &value[word][i], 4);
        shared = is_shared(space, addresses[i]);
        if (shared) addresses[i] &= 0xffffffffu;
        u8 *at = shared ? s.block.shared->write(addresses[i], nbytes, s.warp.number, bytes)
                        : global_bytes(s.machine, addresses[i], nbytes, "writes");
        memcpy(at, bytes, nbytes);
    }
    s.fault_lane = -1;
    if (shared) record_shared(s, Traffic::SHARED_WRITE, addresses, nbytes);
    else record_global(s, Traffic::GLOBAL_WRITE, addresses, nbytes);
}

void load_shared(Step &s) { load(s, Space::SHARED); }
void load_global(Step &s) { load(s, Space::GLOBAL); }
void load_generic(Step &s) { load(s, Space::GENERIC); }
void store_shared(Step &s) { store(s, Space::SHARED); }
void store_global(Step &s) { store(s, Space::GLOBAL); }
void store_generic(Step &s) { store(s, Space::GENERIC); }

// The stack, to which spilled registers go. What is never written is not detected there.

static u8 *local_bytes(Step &s, u64 address) {
    const u64 nbytes = s.machine.launch.local_nbytes;
    if (address % s.in.nbytes) throw misaligned(access("accesses", s.in.nbytes, "local", address), s.in.nbytes);
    if (address + s.in.nbytes > nbytes)
        throw Fault(access("accesses", s.in.nbytes, "local", address) + ", outside of the stack of " +
                    std::to_string(nbytes) + " bytes");
    return &s.warp.local[s.fault_lane * nbytes + address];
}

void load_local(Step &s) {
    u64 addresses[LANES];
    addresses_of(s, 1, addresses);
    Lanes value[4];
    for (int i = 0; i < LANES; ++i) {
        if (!(s.active >> i & 1)) continue;
        s.fault_lane = i;
        const u8 *at = local_bytes(s, addresses[i]);
        if (s.in.nbytes < 4) value[0][i] = extended(s, at, s.in.nbytes);
        else
            for (int word = 0; word < s.in.nbytes / 4; ++word) memcpy(&value[word][i], at + 4 * word, 4);
    }
    for (int word = 0; word < std::max(1, s.in.nbytes / 4); ++word) write(s, 0, value[word], word);
}

void store_local(Step &s) {
    u64 addresses[LANES];
    addresses_of(s, 0, addresses);
    for (int i = 0; i < LANES; ++i) {
        if (!(s.active >> i & 1)) continue;
        s.fault_lane = i;
        u8 *at = local_bytes(s, addresses[i]);
        for (int word = 0; word < std::max(1, s.in.nbytes / 4); ++word) {
            const Lanes value = raw(s, 1, word);
            memcpy(at + 4 * word, &value.lane[i], std::min(4, s.in.nbytes));
        }
    }
}
