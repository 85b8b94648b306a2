// All functions that execute an instruction; opcodes.cpp says which executes what. Operands are numbered as in the
// table of tests/sass/instructions.py.
#pragma once
#include "operands.h"

// integer.cpp
void mov(Step &), add3(Step &), add(Step &), multiply_add(Step &), shift_add(Step &), logic(Step &),
    compare_integers(Step &), min_max(Step &), min_max3(Step &), add_min_max(Step &), absolute(Step &), shift(Step &),
    permute_bytes(Step &), select(Step &), bit_mask(Step &), extend_sign(Step &), find_leading_one(Step &),
    count_ones(Step &), reverse_bits(Step &), predicate_logic(Step &), predicates_to_register(Step &),
    register_to_predicates(Step &);
// floating.cpp
void float_add(Step &), float_multiply(Step &), float_fma(Step &), float_min_max(Step &), float_select(Step &),
    compare_floats(Step &), check_division(Step &), reciprocal(Step &), reciprocal_root(Step &), power_of_two(Step &),
    logarithm(Step &), root(Step &), reciprocal_high(Step &), reciprocal_root_high(Step &), double_add(Step &),
    double_multiply(Step &), double_fma(Step &), compare_doubles(Step &), half_add(Step &), half_multiply(Step &),
    half_fma(Step &), half_to_float(Step &);
// conversions.cpp
void integer_to_float(Step &), long_to_float(Step &), integer_to_double(Step &), float_to_integer(Step &),
    float_to_long(Step &), double_to_integer(Step &), float_to_double(Step &), double_to_float(Step &),
    float_to_half(Step &), double_to_half(Step &), floats_to_halves(Step &), round_float(Step &), round_double(Step &);
// warp.cpp
void vote(Step &), match(Step &), reduce_min(Step &), reduce_max(Step &), reduce_sum(Step &), reduce_or(Step &),
    reduce_and(Step &), reduce_xor(Step &), shuffle_index(Step &), shuffle_up(Step &), shuffle_down(Step &),
    shuffle_xor(Step &), first_lane(Step &), special_register(Step &), special_register64(Step &),
    load_constant(Step &), barrier_result(Step &);
// memory.cpp
void load_shared(Step &), load_global(Step &), load_generic(Step &), store_shared(Step &), store_global(Step &),
    store_generic(Step &), load_local(Step &), store_local(Step &);
// atomics.cpp
void shared_add(Step &), shared_min(Step &), shared_max(Step &), shared_or(Step &), shared_and(Step &),
    shared_xor(Step &), shared_exchange(Step &), shared_increment(Step &), shared_swap_if_equal(Step &),
    shared_test_and_swap(Step &), global_add(Step &), global_min(Step &), global_max(Step &), global_or(Step &),
    global_and(Step &), global_xor(Step &), global_exchange(Step &), global_swap_if_equal(Step &),
    reduce_global_add(Step &), reduce_global_min(Step &), reduce_global_max(Step &), reduce_global_or(Step &),
    reduce_global_and(Step &), reduce_global_xor(Step &);
// control.cpp
void nothing(Step &), trap(Step &), exit_lanes(Step &), branch(Step &), branch_if_divergent(Step &),
    set_barrier_register(Step &), leave_barrier_register(Step &), wait_at_barrier_register(Step &),
    wait_for_all(Step &), wait_for_lanes(Step &), call(Step &), return_to(Step &), block_barrier(Step &),
    block_barrier_or(Step &);
