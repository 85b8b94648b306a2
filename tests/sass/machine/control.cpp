// Branches, and how the lanes of a warp and the warps of a block wait for each other.
#include "handlers.h"
#include "memory.h"
#include <algorithm>

void nothing(Step &) {}

void trap(Step &s) {
    if (s.active) throw Fault("stops the kernel");
}

static Path &current(Step &s) { return s.warp.paths[s.warp.current]; }

// Let the given lanes of the current path go on at `pc`, as a path of their own unless they are all of it.
static void send(Step &s, u32 lanes, i32 pc) {
    if (!lanes) return;
    if (lanes == current(s).lanes) {
        current(s).pc = pc;
        return;
    }
    current(s).lanes &= ~lanes;
    s.warp.paths.push_back({pc, lanes});
}

// Choose a path that does not wait.
static void choose_path(Warp &warp) {
    warp.current = -1;
    for (size_t k = 0; k < warp.paths.size(); ++k)
        if (warp.paths[k].waiting == Waiting::NO) warp.current = int(k);
}

// Release the paths that wait for the same thing as `path`, if no lane is missing. Those at the same place go on as
// one.
static bool released(Warp &warp, const Path path) {
    const auto waits_too = [&](const Path &other) { return other.waiting == path.waiting && other.key == path.key; };
    u32 here = 0;
    for (const Path &other : warp.paths)
        if (waits_too(other)) here |= other.lanes;
    const u32 wanted =
        (path.waiting == Waiting::AT_BARRIER_REGISTER ? warp.barrier_lanes[path.key] : path.key) & ~warp.exited;
    if ((here & wanted) != wanted) return false;
    std::vector<Path> kept, merged;
    for (const Path &other : warp.paths) {
        if (!waits_too(other)) {
            kept.push_back(other);
            continue;
        }
        const auto same =
            std::find_if(merged.begin(), merged.end(), [&](const Path &each) { return each.pc == other.pc; });
        if (same == merged.end()) merged.push_back({other.pc, other.lanes});
        else same->lanes |= other.lanes;
    }
    kept.insert(kept.end(), merged.begin(), merged.end());
    warp.paths = kept;
    return true;
}

// Release all paths that need not wait any more.
static void wake(Warp &warp) {
    for (bool again = true; again;) {
        again = false;
        for (size_t k = 0; k < warp.paths.size() && !again; ++k)
            if (warp.paths[k].waiting != Waiting::NO) again = released(warp, warp.paths[k]);
    }
    choose_path(warp);
}

static void wait(Step &s, Waiting waiting, u32 key) {
    if (!s.active) return;
    if (s.active != current(s).lanes) {  // the others do not execute this instruction
        current(s).lanes &= ~s.active;
        s.warp.paths.push_back({current(s).pc, s.active});
        s.warp.current = int(s.warp.paths.size()) - 1;
    }
    current(s).waiting = waiting;
    current(s).key = key;
    wake(s.warp);
}

void exit_lanes(Step &s) {
    if (!s.active) return;
    s.warp.exited |= s.active;
    current(s).lanes &= ~s.active;
    if (!current(s).lanes) s.warp.paths.erase(s.warp.paths.begin() + s.warp.current);
    wake(s.warp);
    if (s.warp.done()) release_barriers(s.block);
}

void branch(Step &s) { send(s, s.active & predicate(s, 0, ALL_LANES), s.in.operand[1].reg); }

// BRA.DIV: branch unless all lanes of the mask are together
void branch_if_divergent(Step &s) {
    const u32 lanes = integer(s, 0)[0] & ~s.warp.exited;
    if (current(s).lanes != lanes) send(s, s.active, s.in.operand[1].reg);
}

// BSSY: the lanes that will meet again
void set_barrier_register(Step &s) {
    if (s.active) s.warp.barrier_lanes[s.in.operand[0].reg] = s.active;
}

// BREAK: lanes that will not come
void leave_barrier_register(Step &s) {
    s.warp.barrier_lanes[s.in.operand[1].reg] &= ~(s.active & predicate(s, 0, ALL_LANES));
    wake(s.warp);
}

void wait_at_barrier_register(Step &s) { wait(s, Waiting::AT_BARRIER_REGISTER, s.in.operand[0].reg); }
void wait_for_all(Step &s) { wait(s, Waiting::FOR_LANES, ALL_LANES); }
void wait_for_lanes(Step &s) {
    if (s.active) wait(s, Waiting::FOR_LANES, integer(s, 0)[__builtin_ctz(s.active)]);
}

void call(Step &s) { send(s, s.active, s.in.operand[0].reg); }

// RET: the register has the byte offset in the function
void return_to(Step &s) {
    const Lanes offset = integer(s, 0);
    for (u32 lanes = s.active; lanes;) {
        u32 same = 0;
        for (int i = 0; i < LANES; ++i) same |= u32(offset[i] == offset[__builtin_ctz(lanes)]) << i;
        send(s, same & lanes, s.in.operand[1].reg + i32(offset[__builtin_ctz(lanes)]) / 16);
        lanes &= ~same;
    }
}

// Barriers of the block

static void arrive(Step &s, u32 any) {
    if (!s.active) return;
    if ((s.active | s.warp.exited) != ALL_LANES)
        throw Fault("is a barrier that not all lanes of the warp reach together");
    const int barrier = integer(s, 0)[0];
    s.block.expected[barrier] = s.in.operand[1].kind == NONE ? 0 : integer(s, 1)[0] / LANES;
    s.block.any[barrier] |= any != 0;
    ++s.block.arrived[barrier];
    s.warp.at_barrier = barrier;
    release_barriers(s.block);
}

void block_barrier(Step &s) { arrive(s, 0); }
void block_barrier_or(Step &s) { arrive(s, predicate(s, 2) & s.active); }

void release_barriers(Block &block) {
    int running = 0;
    for (const Warp &warp : block.warps) running += !warp.done();
    for (int barrier = 0; barrier < 16; ++barrier) {
        const int expected = block.expected[barrier] ? block.expected[barrier] : running;
        if (!block.arrived[barrier] || block.arrived[barrier] < expected) continue;
        u64 released = 0;
        for (Warp &warp : block.warps)
            if (warp.at_barrier == barrier) {
                warp.at_barrier = -1;
                warp.barrier_result = block.any[barrier];
                released |= u64(1) << warp.number;
            }
        block.shared->synchronize(released);
        block.arrived[barrier] = 0;
        block.any[barrier] = false;
    }
}
