// Atomic operations. They are atomic on the CPU, too, because blocks can run on several threads; relaxed, as on a GPU.
#pragma once
#include <type_traits>

namespace shim {

template <class T, class Update> inline T update(T* address, Update next) {
    T old, replacement;
    __atomic_load(address, &old, __ATOMIC_RELAXED);
    do replacement = next(old);
    while (!__atomic_compare_exchange(address, &old, &replacement, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return old;
}
template <class T> struct Same { typedef T type; };  // a parameter from which T is not deduced

}  // namespace shim

#define SHIM_ATOMIC(name, test, expression)                                                \
    template <class T> inline T name(T* address, typename shim::Same<T>::type value) {     \
        static_assert(std::test<T>::value, #name " is not for this type in CUDA");         \
        return shim::update(address, [=](T old) -> T { return expression; });              \
    }
SHIM_ATOMIC(atomicAdd, is_arithmetic, old + value)
SHIM_ATOMIC(atomicSub, is_integral, old - value)
SHIM_ATOMIC(atomicMax, is_integral, old < value ? value : old)
SHIM_ATOMIC(atomicMin, is_integral, value < old ? value : old)
SHIM_ATOMIC(atomicAnd, is_integral, old & value)
SHIM_ATOMIC(atomicOr, is_integral, old | value)
SHIM_ATOMIC(atomicXor, is_integral, old ^ value)
SHIM_ATOMIC(atomicExch, is_arithmetic, ((void)old, value))
#undef SHIM_ATOMIC

template <class T>
inline T atomicCAS(T* address, typename shim::Same<T>::type compare, typename shim::Same<T>::type value) {
    static_assert(std::is_integral<T>::value, "atomicCAS is not for this type in CUDA");
    __atomic_compare_exchange(address, &compare, &value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return compare;
}
