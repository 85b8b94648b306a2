// Call a kernel with the launcher's array of pointers, and return the kernel's parameter types for checks.
#pragma once
#include <type_traits>
#include <utility>

extern "C" {
struct ShimLaunch {  // mirrored by launcher.py
    unsigned grid[3], block[3];
    uint64_t shared_bytes;
    unsigned order, seed, threads;
};
// Run body(argument) in every thread of the grid; return 0, or 1 with a message. `touch` returns an address in the
// thread-local memory of the kernel's library, where the __shared__ variables are; it can be null.
int shim_run(const ShimLaunch* launch, void (*body)(void*), void* argument, void* (*touch)(), char* message,
             size_t size);
}

namespace shim {

template <class T> void write_code(char* text) {
    typedef std::remove_cv_t<T> U;
    if constexpr (std::is_pointer_v<U>) {
        typedef std::remove_pointer_t<U> Pointee;
        strcat(text, std::is_const_v<Pointee> ? "*c" : "*");
        write_code<Pointee>(text);
    } else {
        char kind = 'V';  // a struct, or void
        size_t size = 0;
        if constexpr (!std::is_void_v<U>) size = sizeof(U);
        if (std::is_same_v<U, bool>) kind = 'b';
        else if (std::is_same_v<U, __half> || std::is_floating_point_v<U>) kind = 'f';
        else if (std::is_integral_v<U>) kind = std::is_unsigned_v<U> ? 'u' : 'i';
        sprintf(text + strlen(text), "%c%d ", kind, (int)size);
    }
}

// Write the parameter types as words such as "*cu2 i4 *f4": pointer, const, NumPy's kind, bytes.
template <class... Parameters> void signature(void (*)(Parameters...), char* text) {
    *text = 0;
    (write_code<Parameters>(text), ...);
}

template <class... Parameters, size_t... Numbers>
inline void call(void (*kernel)(Parameters...), void** arguments, std::index_sequence<Numbers...>) {
    kernel(*(std::remove_cv_t<Parameters>*)arguments[Numbers]...);
}

template <class... Parameters>
int launch(void (*kernel)(Parameters...), const ShimLaunch* shape, void** arguments, void* (*touch)(), char* message,
           size_t size) {
    auto thread = [=] { call(kernel, arguments, std::index_sequence_for<Parameters...>{}); };
    return shim_run(shape, [](void* lambda) { (*(decltype(thread)*)lambda)(); }, &thread, touch, message, size);
}

}  // namespace shim

// Appended to the kernel source once per name expression.
#define SHIM_EXPORT extern "C" __attribute__((visibility("default")))
#define SHIM_KERNEL(number, ...)                                                                                    \
    SHIM_EXPORT void shim_signature_##number(char* text) { shim::signature(__VA_ARGS__, text); }                    \
    SHIM_EXPORT int shim_launch_##number(const ShimLaunch* shape, void** arguments, char* message, size_t size) {   \
        return shim::launch(__VA_ARGS__, shape, arguments, shim_touch, message, size);                              \
    }
#ifdef SHIM_SANITIZE
static void* (*const shim_touch)() = nullptr;
#else
static thread_local char shim_anchor;
static void* shim_touch() { return &shim_anchor; }
#endif
