// The scheduler: each CUDA thread is a fiber that runs until it reaches a barrier or a warp operation, or exits.
//
// A block runs in rounds. Each round resumes all fibers that are ready, in the order given; then it releases those
// whose barrier or warp operation ("meeting") is complete. A round without progress is a deadlock, which is reported.
// This file is not instrumented by sanitizers; it reports synchronization to ThreadSanitizer explicitly (see Meetings).
#include "cuda_shim.h"
#undef assert
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include <link.h>

#include "fiber.h"

namespace shim {

__thread Thread* self __attribute__((tls_model("initial-exec")));

namespace {

constexpr Site nowhere = {nullptr, 0};

enum Order { forward, reverse, shuffled };
enum State { ready, at_barrier, in_warp, finished };

constexpr unsigned max_threads = 1024;
constexpr unsigned char poison = 0xCD;
constexpr unsigned max_rounds = 1u << 21;  // about ten seconds: then a loop over a barrier is considered endless
constexpr size_t guard_bytes = 4096;  // after dynamic shared memory; AddressSanitizer has its own guard
#if defined(SHIM_ASAN) || defined(SHIM_TSAN)
constexpr size_t stack_bytes = 256 << 10;  // instrumented code needs more
#else
constexpr size_t stack_bytes = 64 << 10;
#endif

struct Fiber : Thread {
    Stack stack;
    State state;
    Site site;  // where it waits
    // Input and output of a barrier or a warp operation.
    bool predicate;
    unsigned mask;
    uint64_t value;
    int source;
    Exchange exchange;

    unsigned warp() const { return number / 32; }
    unsigned lane() const { return number % 32; }
    bool same_meeting(const Fiber& other) const {
        const bool same_line = site.line == other.site.line && site.file == other.site.file;
        return same_line && state == other.state && mask == other.mask;
    }
};

#ifdef SHIM_TSAN
// Arriving at a meeting happens before leaving it, for its members only. Two tokens alternate; otherwise the next
// arrival of a fast thread would be ordered before the leaving of a slow one.
class Meetings {
  public:
    void block_starts() {
        tokens.clear();
        __tsan_release(&start);
    }
    void thread_starts() { __tsan_acquire(&start); }
    char* arrive(const Fiber& fiber) {
        char* token = &end;
        if (fiber.state != finished) {
            Tokens& found = tokens[key(fiber)];
            token = &found.token[found.turn & 1];
        }
        __tsan_release(token);
        return token;
    }
    void leave(char* token) { __tsan_acquire(token); }
    void released(const Fiber& fiber) { ++tokens[key(fiber)].turn; }
    void block_ends() { __tsan_acquire(&end); }

  private:
    struct Tokens {
        char token[2];
        unsigned turn = 0;
    };
    static std::pair<unsigned, unsigned> key(const Fiber& fiber) {
        return fiber.state == at_barrier ? std::make_pair(~0u, 0u) : std::make_pair(fiber.warp(), fiber.mask);
    }
    std::map<std::pair<unsigned, unsigned>, Tokens> tokens;
    char start, end;
};
#else
struct Meetings {
    void block_starts() {}
    void thread_starts() {}
    char* arrive(const Fiber&) { return nullptr; }
    void leave(char*) {}
    void released(const Fiber&) {}
    void block_ends() {}
};
#endif

// State shared by all blocks of a launch.
struct Launch {
    Launch(const ShimLaunch& shape, void (*body)(void*), void* argument, void* (*touch)())
        : shape(shape), body(body), argument(argument), touch(touch) {}
    const ShimLaunch& shape;
    void (*body)(void*);
    void* argument;
    void* (*touch)();
    std::vector<unsigned> blocks;  // in the order in which they are started
    std::atomic<size_t> next{0};
    std::atomic<bool> failed{false};
    std::mutex mutex;
    std::string message;
};

struct Random {  // xorshift
    unsigned state;
    unsigned operator()(unsigned below) {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        return state % below;
    }
};

// Fiber stacks, reused by the next launch. A guard page between two stacks turns an overrun into a segmentation fault.
struct StackMemory {
    static constexpr size_t page = 4096;
    char* memory;
    StackMemory() {
        memory = (char*)mmap(nullptr, max_threads * stack_bytes, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) abort();
        for (unsigned i = 0; i < max_threads; ++i) mprotect(memory + i * stack_bytes, page, PROT_NONE);
    }
    ~StackMemory() { munmap(memory, max_threads * stack_bytes); }
    char* operator[](unsigned i) { return memory + i * stack_bytes + page; }
};
thread_local StackMemory stacks;

// Poison the thread-local memory of the library that contains the address `inside`: a kernel's __shared__ variables.
void fill_thread_local_memory(void* inside) {
    dl_iterate_phdr(
        [](dl_phdr_info* library, size_t, void* address) {
            for (int i = 0; i < library->dlpi_phnum; ++i) {
                const auto& header = library->dlpi_phdr[i];
                if (header.p_type != PT_TLS || !library->dlpi_tls_data) continue;
                char* memory = (char*)library->dlpi_tls_data;
                if (address < memory || address >= memory + header.p_memsz) continue;
                memset(memory, poison, header.p_memsz);
                return 1;
            }
            return 0;
        },
        inside);
}

// Runs blocks one after the other on one thread of the operating system.
class Worker {
  public:
    explicit Worker(Launch& launch) : launch(launch), order((Order)launch.shape.order) {
        const unsigned *b = launch.shape.block, *g = launch.shape.grid;
        block.size = {b[0], b[1], b[2]};
        block.grid = {g[0], g[1], g[2]};
        fibers.resize(b[0] * b[1] * b[2]);
        turn.resize(fibers.size());
        const size_t bytes = launch.shape.shared_bytes;
#ifdef SHIM_ASAN
        shared.resize(1);
        block.dynamic_shared = nullptr;
        if (posix_memalign(&block.dynamic_shared, 16, bytes)) abort();  // exact size, to detect overruns
#else
        shared.resize(bytes + guard_bytes + 16);
        block.dynamic_shared = (void*)(((uintptr_t)shared.data() + 15) & ~(uintptr_t)15);
#endif
    }
    ~Worker() {
#ifdef SHIM_ASAN
        free(block.dynamic_shared);
#endif
    }

    void run_blocks() {
        Worker* outer = current;
        current = this;
#ifdef SHIM_TSAN
        scheduler.tsan = __tsan_get_current_fiber();
#endif
        for (size_t i; !launch.failed && (i = launch.next++) < launch.blocks.size();) run_block(launch.blocks[i]);
        current = outer;
        self = nullptr;
    }

    Fiber& running() { return static_cast<Fiber&>(*self); }

    // Called on a fiber: switch to the scheduler until the meeting is complete.
    void wait(State state) {
        Fiber& fiber = running();
        fiber.state = state;
        char* token = meetings.arrive(fiber);
        switch_stack(fiber.stack, scheduler, state == finished);
        meetings.leave(token);
    }

    void fail(const Fiber& fiber, const std::string& why, Site site) {
        auto triple = [](auto v) {
            return "(" + std::to_string(v.x) + "," + std::to_string(v.y) + "," + std::to_string(v.z) + ")";
        };
        std::lock_guard<std::mutex> lock(launch.mutex);
        if (launch.message.empty())
            launch.message = (site.file ? name(site) + ": " : "") + why + "; block " + triple(block.index) +
                             " thread " + triple(fiber.index);
        launch.failed = true;
    }

    // Called on a fiber, which is never resumed.
    [[noreturn]] void fail_here(const char* why, Site site) {
        fail(running(), why, site);
        switch_stack(running().stack, scheduler, true);
        abort();
    }

    static thread_local Worker* current;
    int votes = 0;  // of the last barrier

  private:
    static std::string name(Site site) { return std::string(site.file) + ":" + std::to_string(site.line); }

    static void entry() {
        Worker& worker = *current;
        arrived(worker.scheduler);
        worker.meetings.thread_starts();
        worker.launch.body(worker.launch.argument);
        worker.wait(finished);
        abort();
    }

    void run_block(unsigned number) {
        prepare(number);
        for (unsigned round = 0; n_finished < fibers.size() && !launch.failed; ++round) {
            bool moved = run_ready();
            if (launch.failed) break;
            moved |= release_warps();
            moved |= release_barrier();
            if (!moved) explain_deadlock();
            if (round == max_rounds) fail(fibers[turn[0]], "endless loop over a barrier", fibers[turn[0]].site);
        }
        if (!launch.failed) check_guard();
        meetings.block_ends();
#ifdef SHIM_TSAN
        for (Fiber& fiber : fibers) __tsan_destroy_fiber(fiber.stack.tsan);
#endif
    }

    void prepare(unsigned number) {
        const dim3 size = block.size, grid = block.grid;
        block.index = {number % grid.x, number / grid.x % grid.y, number / (grid.x * grid.y)};
        random.state = (launch.shape.seed * 2654435761u ^ number * 2246822519u) | 1u;
        n_finished = 0;
        alive.assign((fibers.size() + 31) / 32, 0);
        memset(block.dynamic_shared, poison, launch.shape.shared_bytes + (shared.size() > 1 ? guard_bytes : 0));
        if (launch.touch) fill_thread_local_memory(launch.touch());
        for (unsigned i = 0; i < fibers.size(); ++i) {
            Fiber& fiber = fibers[i];
            fiber.number = i;
            fiber.index = {i % size.x, i / size.x % size.y, i / (size.x * size.y)};
            fiber.block = &block;
            fiber.state = ready;
            fiber.site = nowhere;
            fiber.stack.prepare(stacks[i], stack_bytes - StackMemory::page, entry);
            alive[fiber.warp()] |= 1u << fiber.lane();
#ifdef SHIM_TSAN
            fiber.stack.tsan = __tsan_create_fiber(0);
#endif
            turn[i] = order == reverse ? (unsigned)fibers.size() - 1 - i : i;
        }
        meetings.block_starts();
    }

    bool run_ready() {
        bool moved = false;
        if (order == shuffled)
            for (size_t i = turn.size() - 1; i > 0; --i) std::swap(turn[i], turn[random(i + 1)]);
        // If shuffled, half of the warps skip a round, so that others run far ahead.
        const unsigned resting = order == shuffled ? random(~0u) : 0;
        for (unsigned i : turn) {
            Fiber& fiber = fibers[i];
            if (fiber.state != ready) continue;
            moved = true;
            if (resting >> fiber.warp() & 1) continue;
            self = &fiber;
            switch_stack(scheduler, fiber.stack);
            if (launch.failed) return true;
            if (fiber.state == finished) {
                ++n_finished;
                alive[fiber.warp()] &= ~(1u << fiber.lane());
            }
        }
        return moved;
    }

    // A warp operation waits until all lanes of its mask that have not exited are at the same line.
    bool release_warps() {
        bool moved = false;
        for (unsigned warp = 0; warp < alive.size(); ++warp) {
            Fiber* lanes = &fibers[warp * 32];
            for (unsigned pending = alive[warp]; pending;) {
                const Fiber& first = lanes[__builtin_ctz(pending)];
                if (first.state != in_warp) {
                    pending &= pending - 1;
                    continue;
                }
                const unsigned members = first.mask & alive[warp];
                bool complete = true;
                for (unsigned rest = members; rest; rest &= rest - 1)
                    complete &= lanes[__builtin_ctz(rest)].same_meeting(first);
                if (complete) {
                    if (!exchange(lanes, members)) return true;
                    moved = true;
                }
                pending &= complete ? ~members : pending - 1;
            }
        }
        return moved;
    }

    bool exchange(Fiber* lanes, unsigned members) {
        unsigned ballot = 0;
        for (unsigned rest = members; rest; rest &= rest - 1)
            if (lanes[__builtin_ctz(rest)].value) ballot |= 1u << __builtin_ctz(rest);
        meetings.released(lanes[__builtin_ctz(members)]);
        for (unsigned rest = members; rest; rest &= rest - 1) {
            Fiber& fiber = lanes[__builtin_ctz(rest)];
            if (fiber.source >= 0 && !(members >> fiber.source & 1)) {
                const bool named = fiber.mask >> fiber.source & 1;
                fail(fiber, "shuffle from lane " + std::to_string(fiber.source) +
                     (named ? ", which has ended or is not in the block" : ", which is not in the mask"), fiber.site);
                return false;
            }
            fiber.exchange = {fiber.source < 0 ? fiber.value : lanes[fiber.source].value, ballot};
            fiber.state = ready;
        }
        return true;
    }

    bool release_barrier() {
        const Fiber* first = nullptr;
        unsigned waiting = 0;
        int predicates = 0;
        for (const Fiber& fiber : fibers) {
            if (fiber.state != at_barrier) continue;
            if (!first) first = &fiber;
            ++waiting;
            predicates += fiber.predicate;
        }
        if (!waiting || waiting + n_finished < fibers.size()) return false;
        if (n_finished) {
            fail(*first, "barrier not reached by all threads of the block: some have ended", first->site);
            return true;
        }
        for (const Fiber& fiber : fibers)
            if (!fiber.same_meeting(*first)) {
                fail(fiber, "threads wait at different barriers: others at " + name(first->site), fiber.site);
                return true;
            }
        votes = predicates;
        meetings.released(*first);
        for (Fiber& fiber : fibers) fiber.state = ready;
        return true;
    }

    void explain_deadlock() {
        for (const Fiber& fiber : fibers) {
            if (fiber.state != in_warp) continue;
            for (unsigned rest = fiber.mask & alive[fiber.warp()]; rest; rest &= rest - 1) {
                const Fiber& other = fibers[fiber.warp() * 32 + __builtin_ctz(rest)];
                if (other.same_meeting(fiber)) continue;
                const char* where = other.state == at_barrier ? " waits at the barrier at " : " is in the one at ";
                return fail(fiber, "deadlock: lanes meet in different warp operations: lane " +
                            std::to_string(other.lane()) + where + name(other.site), fiber.site);
            }
        }
        fail(fibers[0], "deadlock", nowhere);
    }

    void check_guard() {
        if (shared.size() == 1) return;
        const unsigned char* guard = (unsigned char*)block.dynamic_shared + launch.shape.shared_bytes;
        for (size_t i = 0; i < guard_bytes; ++i)
            if (guard[i] != poison)
                return fail(fibers[0], "a thread of this block wrote " + std::to_string(i) + " bytes after the " +
                            std::to_string(launch.shape.shared_bytes) + " bytes of dynamic shared memory", nowhere);
    }

    Launch& launch;
    const Order order;
    Block block;
    std::vector<Fiber> fibers;
    std::vector<unsigned> turn;   // the order in which fibers run
    std::vector<unsigned> alive;  // per warp: lanes that exist and have not exited
    std::vector<unsigned char> shared;
    unsigned n_finished = 0;
    Random random{1};
    Meetings meetings;
    Stack scheduler;
};
thread_local Worker* Worker::current;

}  // namespace

int block_barrier(bool predicate, Site site) {
    Fiber& fiber = Worker::current->running();
    fiber.predicate = predicate;
    fiber.mask = 0;
    fiber.site = site;
    Worker::current->wait(at_barrier);
    return Worker::current->votes;
}

Exchange warp_meeting(unsigned mask, uint64_t value, int source, Site site) {
    Fiber& fiber = Worker::current->running();
    if (!(mask >> fiber.lane() & 1)) fail("the calling lane is not in the mask of this warp operation", site);
    fiber.mask = mask;
    fiber.value = value;
    fiber.source = source;
    fiber.site = site;
    Worker::current->wait(in_warp);
    return fiber.exchange;
}

void fail(const char* why, Site site) { Worker::current->fail_here(why, site); }

}  // namespace shim

extern "C" __attribute__((visibility("default"))) int shim_run(
    const ShimLaunch* shape, void (*body)(void*), void* argument, void* (*touch)(), char* message, size_t size) {
    using namespace shim;
    Launch launch(*shape, body, argument, touch);
    launch.blocks.resize((size_t)shape->grid[0] * shape->grid[1] * shape->grid[2]);
    std::iota(launch.blocks.begin(), launch.blocks.end(), 0u);
    if (shape->order == reverse) std::reverse(launch.blocks.begin(), launch.blocks.end());
    Random random{shape->seed * 2654435761u | 1u};
    if (shape->order == shuffled)
        for (size_t i = launch.blocks.size(); i > 1; --i) std::swap(launch.blocks[i - 1], launch.blocks[random(i)]);
    auto work = [&] { Worker(launch).run_blocks(); };
    std::vector<std::thread> others;
    for (unsigned i = 1; i < shape->threads; ++i) others.emplace_back(work);
    work();
    for (std::thread& other : others) other.join();
    snprintf(message, size, "%s", launch.message.c_str());
    return launch.failed;
}
