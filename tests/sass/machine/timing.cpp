// A model of the time that a multiprocessor takes: four schedulers, each of which issues one instruction per cycle of
// one of its warps. A warp waits for its own stall count, for the counters that its instruction depends on, and for a
// free pipe. Latencies are those of opcodes.cpp and, for memory, those below.
//
// No GPU has calibrated the model. The instructions it executes are exact, their time is not.
#include "machine.h"
#include <algorithm>
#include <unordered_map>

namespace {

struct Model {
    int schedulers = 4;
    int barrier = 22, branch = 9;                            // cycles
    int shared = 30, l1_hit = 36, l2_hit = 265, dram = 600;  // cycles until a load returns
    int l2_hit_percent = 85;
    int memory_queue = 12;  // cycles of shared memory and L1 that can be waiting
    int atomic_cycles = 2;  // per wavefront
    double l2_cycles_per_sector = 1.3, dram_cycles_per_sector = 2.5, write_cycles_per_sector = 1.3;
    int write_queue = 400;  // cycles of writes that can be waiting
};
const Model MODEL;

// The L1 cache: lines of four sectors. A line that is not there replaces the oldest of eight random ones.
class Cache {
  public:
    explicit Cache(size_t nbytes) : lines_(std::max<size_t>(1, nbytes / 128)) {}

    // Return whether the sector is there; it is afterwards.
    bool read(u64 sector) {
        const u64 tag = sector >> 2;
        const u32 bit = 1u << (sector & 3);
        auto found = slots_.find(tag);
        if (found == slots_.end()) found = slots_.emplace(tag, insert(tag)).first;
        Line &line = lines_[found->second];
        const bool hit = line.sectors & bit;
        line.sectors |= bit;
        line.used = ++clock_;
        return hit;
    }
    u32 random() {
        seed_ = seed_ * 6364136223846793005ull + 1442695040888963407ull;
        return u32(seed_ >> 33);
    }

  private:
    struct Line {
        u64 tag = 0;
        u32 sectors = 0;
        u64 used = 0;
    };
    size_t insert(u64 tag) {
        size_t slot = n_used_;
        if (n_used_ < lines_.size()) ++n_used_;
        else {
            slot = random() % lines_.size();
            for (int k = 1; k < 8; ++k) {
                const size_t other = random() % lines_.size();
                if (lines_[other].used < lines_[slot].used) slot = other;
            }
            slots_.erase(lines_[slot].tag);
        }
        lines_[slot] = {tag, 0, 0};
        return slot;
    }
    std::vector<Line> lines_;
    std::unordered_map<u64, size_t> slots_;
    size_t n_used_ = 0;
    u64 clock_ = 0, seed_ = 12345;
};

// The pipe of an instruction, for how long it is busy, and the latency.
Opcode timing_of(const Instruction &in) {
    Opcode opcode = OPCODES[in.opcode];
    if (in.has(F_UNIFORM_DATAPATH)) {
        opcode.pipe = PIPE_UNIFORM;
        opcode.busy = 2;
        opcode.latency = std::max(opcode.latency, 8);
    }
    return opcode;
}

struct WarpTime {
    u64 next = 0;         // the first cycle in which the warp may issue
    u64 counter[6] = {};  // when each counter becomes 0
    bool waited = false;  // at a barrier of the block
};

class Multiprocessor {
  public:
    Multiprocessor(Machine &machine, u32 resident, u64 l1_nbytes)
        : machine_(machine),
          warps_per_block_(machine.launch.threads / LANES),
          blocks_(resident),
          times_(resident * warps_per_block_),
          l1_(l1_nbytes),
          greedy_(MODEL.schedulers, -1) {}

    u64 run() {
        for (size_t k = 0; k < blocks_.size(); ++k) next_block(k);
        while (n_running_) {
            bool issued = false;
            for (int scheduler = 0; scheduler < MODEL.schedulers; ++scheduler) issued |= issue(scheduler);
            if (issued) ++now_;
            else skip();
        }
        return now_;
    }

  private:
    Warp &warp(int k) { return blocks_[k / warps_per_block_].warps[k % warps_per_block_]; }
    bool running(int k) const { return !blocks_[k / warps_per_block_].warps.empty(); }

    void next_block(size_t slot) {
        blocks_[slot].warps.clear();
        if (n_started_ == machine_.launch.blocks) return;
        start_block(machine_, blocks_[slot], n_started_++);
        ++n_running_;
        for (int k = 0; k < warps_per_block_; ++k) {
            times_[slot * warps_per_block_ + k] = WarpTime();
            times_[slot * warps_per_block_ + k].next = now_ + 1;
        }
    }

    // Return the first cycle in which the warp can issue; the current one or earlier means now.
    u64 ready(int k, int scheduler) {
        const Instruction &in = machine_.program[warp(k).paths[warp(k).current].pc];
        const WarpTime &time = times_[k];
        u64 at = time.next;
        for (int counter = 0; counter < 6; ++counter)
            if (in.wait_counters >> counter & 1) at = std::max(at, time.counter[counter]);
        const Pipe pipe = timing_of(in).pipe;
        at = std::max(at, pipe_free_[scheduler][pipe]);
        if (pipe == PIPE_MEMORY && memory_free_ > now_ + MODEL.memory_queue)
            at = std::max(at, u64(memory_free_) - MODEL.memory_queue);
        return at;
    }

    // Issue an instruction of the warp that issued last or else of the oldest that is ready.
    bool issue(int scheduler) {
        for (int k = scheduler - MODEL.schedulers; k < int(times_.size()); k += MODEL.schedulers) {
            const int each = k < 0 ? greedy_[scheduler] : k;
            if (each < 0 || !running(each) || !warp(each).can_run() || ready(each, scheduler) > now_) continue;
            execute(each, scheduler);
            greedy_[scheduler] = each;
            return true;
        }
        return false;
    }

    void execute(int k, int scheduler) {
        Block &block = blocks_[k / warps_per_block_];
        Warp &one = warp(k);
        const i32 pc = one.paths[one.current].pc;
        const Instruction &in = machine_.program[pc];
        const Opcode opcode = timing_of(in);
        const Traffic traffic = step(machine_, block, one);
        const bool jumped = one.can_run() && one.paths[one.current].pc != pc + 1;
        int latency = opcode.latency, stall = std::max(1, in.stall);
        if (opcode.pipe == PIPE_MEMORY) latency = memory_latency(opcode, traffic, stall);
        if (jumped) stall = std::max(stall, MODEL.branch);
        pipe_free_[scheduler][opcode.pipe] = opcode.pipe == PIPE_NONE ? 0 : now_ + opcode.busy;
        WarpTime &time = times_[k];
        if (in.write_counter < 6) raise(time.counter[in.write_counter], now_ + latency);
        if (in.read_counter < 6) raise(time.counter[in.read_counter], now_ + std::min(latency, 12));
        raise(time.next, now_ + stall);
        after_barriers(k / warps_per_block_);
    }

    static void raise(u64 &time, u64 to) { time = std::max(time, to); }

    // Warps that were released from a barrier go on after some cycles; finished blocks are replaced.
    void after_barriers(int slot) {
        bool done = true;
        for (int k = slot * warps_per_block_; k < (slot + 1) * warps_per_block_; ++k) {
            const bool waits = warp(k).at_barrier >= 0;
            if (times_[k].waited && !waits) raise(times_[k].next, now_ + MODEL.barrier);
            times_[k].waited = waits;
            done &= warp(k).done();
        }
        if (!done) return;
        --n_running_;
        next_block(slot);
    }

    int memory_latency(const Opcode &opcode, const Traffic &traffic, int &stall) {
        const double begin = std::max(double(now_), memory_free_);
        double cycles = std::max(1, traffic.wavefronts);
        if (traffic.kind == Traffic::SHARED_ATOMIC) cycles *= MODEL.atomic_cycles;
        memory_free_ = begin + cycles;
        int latency = opcode.latency;
        if (traffic.kind == Traffic::GLOBAL_READ) latency = read_latency(traffic);
        if (traffic.kind == Traffic::GLOBAL_WRITE || traffic.kind == Traffic::GLOBAL_ATOMIC) {
            write_free_ = std::max(write_free_, double(now_)) + traffic.n_sectors * MODEL.write_cycles_per_sector;
            stall = std::max(stall, int(write_free_ - now_) - MODEL.write_queue);
        }
        return latency + int(begin - now_) + std::max(0, int(cycles) - 1);
    }

    // The slowest of the sectors decides. Sectors that are not in L1 pass one after the other.
    int read_latency(const Traffic &traffic) {
        int latency = MODEL.l1_hit;
        for (int k = 0; k < traffic.n_sectors; ++k) {
            if (l1_.read(traffic.sectors[k])) continue;
            const bool l2 = int(l1_.random() % 100) < MODEL.l2_hit_percent;
            const double waits = std::max(0.0, l2_free_ - now_);
            l2_free_ = now_ + waits + (l2 ? MODEL.l2_cycles_per_sector : MODEL.dram_cycles_per_sector);
            latency = std::max(latency, (l2 ? MODEL.l2_hit : MODEL.dram) + int(waits));
        }
        return latency;
    }

    // Go on to the first cycle in which a warp can issue.
    void skip() {
        u64 first = ~u64(0);
        const Block *stuck = nullptr;
        for (int k = 0; k < int(times_.size()); ++k) {
            if (!running(k)) continue;
            if (warp(k).can_run()) first = std::min(first, ready(k, k % MODEL.schedulers));
            else stuck = &blocks_[k / warps_per_block_];
        }
        if (first == ~u64(0)) throw deadlock(*stuck);
        now_ = std::max(now_ + 1, first);
    }

    Machine &machine_;
    int warps_per_block_;
    std::vector<Block> blocks_;
    std::vector<WarpTime> times_;
    Cache l1_;
    std::vector<int> greedy_;
    u64 now_ = 0;
    u32 n_started_ = 0;
    int n_running_ = 0;
    u64 pipe_free_[8][PIPES] = {};
    double memory_free_ = 0, l2_free_ = 0, write_free_ = 0;
};

}  // namespace

u64 run_timed(Machine &machine, u32 resident, u64 l1_nbytes) {
    return Multiprocessor(machine, std::min(resident, machine.launch.blocks), l1_nbytes).run();
}
