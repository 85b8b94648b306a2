// The state of the simulated machine, and an instruction as tests/sass/instructions.py encodes it.
#pragma once
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int32_t i32;
typedef int64_t i64;

constexpr int LANES = 32;
constexpr u32 ALL_LANES = 0xffffffffu;
constexpr int NO_REGISTER = 255, NO_UNIFORM = 63, TRUE_PREDICATE = 7;

// One value of each lane of a warp.
struct Lanes {
    u32 lane[LANES];
    u32 &operator[](int i) { return lane[i]; }
    u32 operator[](int i) const { return lane[i]; }
};
struct Lanes64 {
    u64 lane[LANES];
    u64 &operator[](int i) { return lane[i]; }
    u64 operator[](int i) const { return lane[i]; }
};

// The enumerations and structures up to `Range` have the same order in tests/sass/encoding.py.
enum Kind : i32 {
    NONE,
    REGISTER,
    UNIFORM,
    IMMEDIATE,
    CONSTANT,
    PREDICATE,
    UNIFORM_PREDICATE,
    ADDRESS,
    LABEL,
    SPECIAL,
    BARRIER
};
enum OperandFlag : i32 { NEGATIVE = 1, ABSOLUTE = 2, INVERTED = 4, ADDRESS_64 = 8, OFFSET_32 = 16 };
enum Special : i32 { TID_X, CTAID_X, LANE_ID, SHARED_WINDOW, ZERO, LANES_BELOW };

struct Operand {
    i32 kind, flags;
    i32 reg;    // number of a register, predicate or barrier; a Special; an instruction, if it is a label
    u32 value;  // of an immediate; offset of an address or a constant
    i32 base;   // uniform register that is added to an address, or NO_UNIFORM
    i32 part;   // of a register: 0 all, 1 and 2 a half, 4 to 7 a byte
};

constexpr int OPERANDS = 9;
struct Instruction {
    i32 opcode;  // index of OPCODES
    i32 address;
    u64 flags;  // bits of Flag
    i32 compare, combine, nbytes;
    i32 guard, guard_inverted, guard_uniform;
    // Scheduling decided by the compiler: cycles to the next instruction; the counters that this instruction increments
    // until its result is written or its operands are read (7: none); counters that must be 0 before it starts.
    i32 stall, write_counter, read_counter, wait_counters;
    Operand operand[OPERANDS];
    i32 unused;

    bool has(u64 flag) const { return (flags & flag) != 0; }
};

// An array that a kernel may access: one of its arguments.
struct Range {
    u64 begin, end, argument;
};

struct Launch {
    u64 constants, constants_nbytes;  // bank 0
    u64 ranges, n_ranges;             // of Range, sorted
    u32 threads, blocks, shared_nbytes, local_nbytes;
    u32 seed;  // 0: warps run in order; otherwise in random order
    u32 unused;
};

// What one instruction did in all warps.
struct Counter {
    u64 warps;                          // times it was issued
    u64 lanes;                          // lanes for which it did something
    u64 shared_wavefronts;              // cycles of the shared memory
    u64 bank_conflicts;                 // those of them that other addresses would have avoided
    u64 sectors_read, sectors_written;  // of 32 bytes, in global memory
};

// Modifiers that change what an instruction does. The names are those of the disassembler, except: UNIFORM_DATAPATH, an
// instruction of the scalar unit; OF_ATOMIC, a load that begins an atomic operation made of several instructions.
#define FLAGS(F)                                                                                                  \
    F(X)                                                                                                          \
    F(EX)                                                                                                         \
    F(U32)                                                                                                        \
    F(S32)                                                                                                        \
    F(U16)                                                                                                        \
    F(S16) F(U8) F(S8) F(U64) F(S64) F(HI) F(L) F(W) F(WIDE) F(FTZ) F(SAT) F(NAN) F(FLOOR) F(CEIL) F(TRUNC) F(RP) \
        F(SX32) F(SH) F(F32) F(ALL) F(UNIFORM_DATAPATH) F(OF_ATOMIC)
enum FlagNumber {
#define NUMBER(name) NUMBER_##name,
    FLAGS(NUMBER)
#undef NUMBER
};
#define FLAG(name) constexpr u64 F_##name = u64(1) << NUMBER_##name;
FLAGS(FLAG)
#undef FLAG

enum Comparison : i32 { FALSE_, LT, EQ, LE, GT, NE, GE, NUM, NAN_, LTU, EQU, LEU, GTU, NEU, GEU, TRUE_ };
enum Combination : i32 { AND, OR, XOR };

// An error of the kernel. `step` adds the place.
struct Fault : std::runtime_error {
    using std::runtime_error::runtime_error;
    i32 instruction = -1, block = -1, warp = -1, lane = -1;
};

// Lanes of a warp that execute together.
enum class Waiting { NO, AT_BARRIER_REGISTER, FOR_LANES };
struct Path {
    i32 pc;
    u32 lanes;
    Waiting waiting = Waiting::NO;
    u32 key = 0;  // the barrier register, or the lanes that are waited for
};

// Lanes in which a value depends on shared memory that was never written.
struct Undefined {
    u32 lanes = 0;
    i32 load = 0;  // the address of the instruction
    u32 from = 0;  // the address in shared memory
};

struct Warp {
    Lanes registers[256];
    Undefined undefined[256];
    u32 uniforms[64];
    u32 predicates[8];  // a bit per lane
    bool uniform_predicates[8];
    u32 barrier_lanes[16];  // of the barrier registers B0, B1, ...
    std::vector<Path> paths;
    int current = 0;  // the path that executes, or -1 if all wait
    u32 exited = 0;
    int number = 0;         // in the block
    std::vector<u8> local;  // (LANES, local_nbytes): the stack of each lane
    int at_barrier = -1;    // the barrier of the block at which the warp waits
    bool barrier_result = false;

    bool done() const { return paths.empty(); }
    bool can_run() const { return !done() && at_barrier < 0 && current >= 0; }
};

class SharedMemory;

struct Block {
    u32 number = 0;
    std::vector<Warp> warps;
    std::shared_ptr<SharedMemory> shared;
    int arrived[16] = {};
    int expected[16] = {};  // warps; 0: all that have not exited
    bool any[16] = {};      // the OR of the predicates of the warps that arrived
};

// Accesses of one instruction to memory, for counters and for the model of time.
struct Traffic {
    enum Kind {
        NOTHING,
        SHARED_READ,
        SHARED_WRITE,
        SHARED_ATOMIC,
        GLOBAL_READ,
        GLOBAL_WRITE,
        GLOBAL_ATOMIC
    } kind = NOTHING;
    int wavefronts = 0, conflicts = 0;
    int n_sectors = 0;
    u64 sectors[LANES * 2];  // addresses / 32
};

struct Machine {
    const std::vector<Instruction> &program;
    const Launch &launch;
    const u8 *constants;
    const Range *ranges;
    std::vector<Counter> &counters;
    const Range *last_range = nullptr;
};

// One instruction of one warp.
struct Step {
    Machine &machine;
    Block &block;
    Warp &warp;
    const Instruction &in;
    u32 active;  // lanes whose guard is true
    Traffic traffic;
    int fault_lane = -1;
    mutable Undefined undefined;  // lanes in which an operand that was read is undefined
};

std::string hex(u64 value);

typedef void (*Execute)(Step &);

// Pipes of a quarter of a multiprocessor, for the model of time.
enum Pipe { PIPE_NONE, PIPE_ALU, PIPE_FMA_HEAVY, PIPE_FMA, PIPE_FP64, PIPE_SLOW, PIPE_UNIFORM, PIPE_MEMORY, PIPES };
struct Opcode {
    const char *name;
    Execute execute;
    Pipe pipe;
    int busy;     // cycles for which one instruction occupies the pipe
    int latency;  // cycles until the result can be used, where the compiler does not know it
};
extern const std::vector<Opcode> OPCODES;

// Execute the next instruction of the warp's current path. Return what it did in memory.
Traffic step(Machine &machine, Block &block, Warp &warp);
// Make a block ready to run.
void start_block(const Machine &machine, Block &block, u32 number);
// Let the warps go on that wait at a barrier which all others have reached or left.
void release_barriers(Block &block);
// Return the error of a block none of whose warps can run.
Fault deadlock(const Block &block);

// Run all blocks one after the other, without a model of time.
void run(Machine &machine);
// Run all blocks on one multiprocessor, at most `resident` at a time. Return the cycles that the model gives.
u64 run_timed(Machine &machine, u32 resident, u64 l1_nbytes);
