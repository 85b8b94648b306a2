// The functions that Python calls.
#include "machine.h"
#include <algorithm>
#include <map>

namespace {

const std::map<std::string, i32> &flag_numbers() {
    static const std::map<std::string, i32> numbers = {
#define ENTRY(name) {#name, NUMBER_##name},
        FLAGS(ENTRY)
#undef ENTRY
    };
    return numbers;
}

// Where and why a kernel failed.
struct Failure {
    i32 instruction, block, warp, lane;
    char message[512];
};

template <typename Work>
bool attempt(Failure *failure, const Work &work) {
    try {
        work();
        return true;
    } catch (const Fault &fault) {
        *failure = {fault.instruction, fault.block, fault.warp, fault.lane, {}};
        std::string(fault.what()).copy(failure->message, sizeof failure->message - 1);
        return false;
    }
}

}  // namespace

extern "C" {

// Return the number of an opcode, or -1 if it is not known.
i32 sass_opcode(const char *name) {
    for (size_t k = 0; k < OPCODES.size(); ++k)
        if (name == std::string(OPCODES[k].name)) return i32(k);
    return -1;
}

// Return the bit of a modifier, or -1 if it has none.
i32 sass_flag(const char *name) {
    const auto found = flag_numbers().find(name);
    return found == flag_numbers().end() ? -1 : found->second;
}

u64 sass_instruction_nbytes() { return sizeof(Instruction); }

// Run a kernel; add what each instruction did to `counters`. Return whether it ended without an error. If `resident` is
// not 0, time is modelled on one multiprocessor with that many blocks at a time, and `cycles` is written.
bool sass_run(const Instruction *program, u64 n, const Launch *launch, Counter *counters, u32 resident, u64 l1_nbytes,
              u64 *cycles, Failure *failure) {
    const std::vector<Instruction> instructions(program, program + n);
    std::vector<Counter> counted(counters, counters + n);
    Machine machine{instructions, *launch, (const u8 *)launch->constants, (const Range *)launch->ranges,
                    counted,      nullptr};
    const bool good = attempt(failure, [&] {
        if (resident) *cycles = run_timed(machine, resident, l1_nbytes);
        else run(machine);
    });
    std::copy(counted.begin(), counted.end(), counters);
    return good;
}
}
