// Switching between stacks, and telling the sanitizers about it. x86-64 only.
#pragma once
#include <stddef.h>
#if !defined(__x86_64__)
#error "the fiber switch is written for x86-64"
#endif
#ifdef SHIM_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef SHIM_TSAN
#include <sanitizer/tsan_interface.h>
#endif

// Saves the registers that a function must keep, changes stacks, takes up the other's registers.
extern "C" void shim_switch(void** save_stack_pointer, void* stack_pointer);
asm(R"(
.text
.globl shim_switch
.hidden shim_switch
.type shim_switch,@function
shim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");

namespace shim {

struct Stack {
    void* pointer = nullptr;     // where it was left
    const void* base = nullptr;  // its memory
    size_t size = 0;
    void* fake = nullptr;  // AddressSanitizer's part
    void* tsan = nullptr;  // ThreadSanitizer's name for it

    // Makes the first switch to this stack call entry().
    void prepare(char* memory, size_t bytes, void (*entry)()) {
        base = memory;
        size = bytes;
#ifdef SHIM_ASAN
        __asan_unpoison_memory_region(memory, bytes);  // what an earlier fiber left there
#endif
        void** top = (void**)(memory + bytes - 64);
        *--top = nullptr;  // as if called: the stack is 8 short of a multiple of 16 when entry() begins
        *--top = (void*)entry;
        for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
        pointer = top;
    }
};

// The first thing on a new stack. `from` learns where its memory is.
inline void arrived(Stack& from) {
#ifdef SHIM_ASAN
    __sanitizer_finish_switch_fiber(nullptr, &from.base, &from.size);
#endif
    (void)from;
}

// `last`: the stack `from` will not be taken up again.
inline void switch_stack(Stack& from, Stack& to, bool last = false) {
#ifdef SHIM_ASAN
    __sanitizer_start_switch_fiber(last ? nullptr : &from.fake, to.base, to.size);
#endif
#ifdef SHIM_TSAN
    // no_sync: only barriers order the threads of a block, not the order in which they happen to run here.
    __tsan_switch_to_fiber(to.tsan, __tsan_switch_to_fiber_no_sync);
#endif
    shim_switch(&from.pointer, to.pointer);
#ifdef SHIM_ASAN
    __sanitizer_finish_switch_fiber(from.fake, nullptr, nullptr);
#endif
    (void)last;
}

}  // namespace shim
