// Switch between stacks and notify the sanitizers. x86-64 only.
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

// Save the callee-saved registers, switch stacks, and restore the registers of the other stack.
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
    void* pointer = nullptr;     // the stack pointer when it was suspended
    const void* base = nullptr;  // its memory
    size_t size = 0;
    void* fake = nullptr;  // AddressSanitizer's fake stack
    void* tsan = nullptr;  // ThreadSanitizer's handle

    // Prepare the stack so that the first switch to it calls entry().
    void prepare(char* memory, size_t bytes, void (*entry)()) {
        base = memory;
        size = bytes;
#ifdef SHIM_ASAN
        __asan_unpoison_memory_region(memory, bytes);  // poisoned by an earlier fiber
#endif
        void** top = (void**)(memory + bytes - 64);
        *--top = nullptr;  // as after a call: the stack pointer is 8 below a multiple of 16 at entry()
        *--top = (void*)entry;
        for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
        pointer = top;
    }
};

// Must be called first on a new stack. Sets the memory of `from`.
inline void arrived(Stack& from) {
#ifdef SHIM_ASAN
    __sanitizer_finish_switch_fiber(nullptr, &from.base, &from.size);
#endif
    (void)from;
}

// `last`: the stack `from` is never resumed.
inline void switch_stack(Stack& from, Stack& to, bool last = false) {
#ifdef SHIM_ASAN
    __sanitizer_start_switch_fiber(last ? nullptr : &from.fake, to.base, to.size);
#endif
#ifdef SHIM_TSAN
    // no_sync: threads of a block are synchronized by barriers only, not by the order in which fibers run.
    __tsan_switch_to_fiber(to.tsan, __tsan_switch_to_fiber_no_sync);
#endif
    shim_switch(&from.pointer, to.pointer);
#ifdef SHIM_ASAN
    __sanitizer_finish_switch_fiber(from.fake, nullptr, nullptr);
#endif
    (void)last;
}

}  // namespace shim
