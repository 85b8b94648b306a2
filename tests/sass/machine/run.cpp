// Executing instructions, and running blocks without a model of time.
#include "handlers.h"
#include "memory.h"
#include <random>

// The guard of an instruction, as a bit per lane.
static u32 guard(const Warp &warp, const Instruction &in) {
    if (in.guard == TRUE_PREDICATE) return in.guard_inverted ? 0 : ALL_LANES;
    const u32 lanes =
        in.guard_uniform ? (warp.uniform_predicates[in.guard] ? ALL_LANES : 0) : warp.predicates[in.guard];
    return in.guard_inverted ? ~lanes : lanes;
}

static void count(Counter &counter, u32 active, const Traffic &traffic) {
    ++counter.warps;
    counter.lanes += __builtin_popcount(active);
    if (traffic.kind == Traffic::NOTHING) return;
    if (traffic.kind <= Traffic::SHARED_ATOMIC) {
        counter.shared_wavefronts += traffic.wavefronts;
        counter.bank_conflicts += traffic.conflicts;
        return;
    }
    if (traffic.kind != Traffic::GLOBAL_WRITE) counter.sectors_read += traffic.n_sectors;
    if (traffic.kind != Traffic::GLOBAL_READ) counter.sectors_written += traffic.n_sectors;
}

Traffic step(Machine &machine, Block &block, Warp &warp) {
    Path &path = warp.paths[warp.current];
    const i32 pc = path.pc;
    if (pc < 0 || size_t(pc) >= machine.program.size())
        throw Fault("the program continues at an address without instructions");
    const Instruction &in = machine.program[pc];
    Step s{machine, block, warp, in, path.lanes & guard(warp, in), {}, -1, {}};
    path.pc = pc + 1;
    try {
        OPCODES[in.opcode].execute(s);
    } catch (Fault &fault) {
        fault.instruction = pc;
        fault.block = int(block.number);
        fault.warp = warp.number;
        fault.lane = s.fault_lane;
        throw;
    }
    count(machine.counters[pc], s.active, s.traffic);
    return s.traffic;
}

void start_block(const Machine &machine, Block &block, u32 number) {
    const int n_warps = int(machine.launch.threads) / LANES;
    block = Block();
    block.number = number;
    block.shared = std::make_shared<SharedMemory>(machine.launch.shared_nbytes, n_warps);
    block.warps.resize(n_warps);
    for (int k = 0; k < n_warps; ++k) {
        Warp &warp = block.warps[k];
        memset(warp.registers, 0xCD, sizeof warp.registers);
        memset(warp.uniforms, 0xCD, sizeof warp.uniforms);
        memset(warp.predicates, 0, sizeof warp.predicates);
        memset(warp.uniform_predicates, 0, sizeof warp.uniform_predicates);
        memset(warp.barrier_lanes, 0, sizeof warp.barrier_lanes);
        warp.local.assign(size_t(LANES) * machine.launch.local_nbytes, 0xCD);
        warp.number = k;
        warp.paths = {{0, ALL_LANES}};
    }
}

Fault deadlock(const Block &block) {
    std::string text = "a deadlock: no warp can go on;";
    for (const Warp &warp : block.warps)
        if (!warp.done())
            text += " warp " + std::to_string(warp.number) +
                    (warp.at_barrier >= 0 ? " waits at a barrier," : " has lanes that wait for each other,");
    text.back() = '.';
    Fault found(text);
    found.block = int(block.number);
    return found;
}

static bool done(const Block &block) {
    for (const Warp &warp : block.warps)
        if (!warp.done()) return false;
    return true;
}

static void run_in_order(Machine &machine, Block &block) {
    while (!done(block)) {
        bool any = false;
        for (Warp &warp : block.warps)
            for (; warp.can_run(); any = true) step(machine, block, warp);
        if (!any) throw deadlock(block);
    }
}

// Run random warps, and random paths of theirs, for random numbers of instructions.
static void run_at_random(Machine &machine, Block &block, std::mt19937 &random) {
    std::vector<Warp *> ready;
    while (!done(block)) {
        ready.clear();
        for (Warp &warp : block.warps)
            if (warp.can_run()) ready.push_back(&warp);
        if (ready.empty()) throw deadlock(block);
        Warp &warp = *ready[random() % ready.size()];
        const int path = int(random() % warp.paths.size());
        if (warp.paths[path].waiting == Waiting::NO) warp.current = path;
        for (int n = 1 + int(random() % 64); n > 0 && warp.can_run(); --n) step(machine, block, warp);
    }
}

void run(Machine &machine) {
    std::mt19937 random(machine.launch.seed);
    for (u32 number = 0; number < machine.launch.blocks; ++number) {
        Block block;
        start_block(machine, block, number);
        if (machine.launch.seed) run_at_random(machine, block, random);
        else run_in_order(machine, block);
    }
}
