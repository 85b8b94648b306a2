import nvrtc
import pytest
from nvrtc import ARCHITECTURES, CompileCase, NvrtcError, violations

SOURCES = {
    "scale": r"""
        #include <cuda_fp16.h>
        template <class T>
        __global__ void __launch_bounds__(256) scale(const T* __restrict__ in, int n, __half* __restrict__ out) {
            __shared__ float factor[64];
            if (threadIdx.x < 64) factor[threadIdx.x] = in[threadIdx.x];
            __syncthreads();
            const int i = blockIdx.x * blockDim.x + threadIdx.x;
            if (i < n) out[i] = __float2half((float)in[i] * factor[i & 63]);
        }
        extern "C" __global__ void zero(float* out) { out[threadIdx.x] = 0.0f; }
    """,
    # 80 live values, but with 1,024 threads each has only 64 registers.
    "spill": r"""
        __global__ void __launch_bounds__(1024) spill(const float* in, float* out) {
            float r[80];
            #pragma unroll
            for (int i = 0; i < 80; ++i) r[i] = in[i * 1024 + threadIdx.x];
            #pragma unroll
            for (int k = 0; k < 80; ++k) {
                float sum = 0.0f;
                #pragma unroll
                for (int i = 0; i < 80; ++i) sum += r[i] * r[(i * 7 + k) % 80];
                out[k * 1024 + threadIdx.x] = sum;
            }
        }
    """,
    "stack": r"""
        __global__ void stack(const int* which, float* out) {
            float r[64];
            for (int i = 0; i < 64; ++i) r[which[i] & 63] = out[i];
            out[threadIdx.x] = r[which[threadIdx.x] & 63];
        }
    """,
    "overflow": "__global__ void overflow(float* out) { __shared__ float a[13000]; a[out[0] > 1] = 1; out[1] = a[1]; }",
}
SCALE = CompileCase("scale", ("scale<float>", "scale<unsigned short>", "zero"), threads=256)


def broken(case, arch=90):
    return violations([case], arch, load=SOURCES.__getitem__)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_correct_kernel_passes_on_every_architecture(arch):
    assert broken(SCALE, arch) == []


def test_resources_by_name_expression():
    uses = nvrtc.compile(SOURCES["scale"], 90, SCALE.expressions)
    assert list(uses) == list(SCALE.expressions)
    assert uses["scale<float>"].static_shared == 256
    assert uses["zero"].static_shared == 0
    assert all(0 < use.registers < 64 for use in uses.values())


def test_spills_are_reported():
    (spills, stack) = broken(CompileCase("spill", ("spill",), threads=1024))
    assert spills.startswith("spill: spill on sm_90 spills ")
    assert "stack" in stack


def test_an_array_on_the_stack_is_reported():
    assert broken(CompileCase("stack", ("stack",), threads=32)) == ["stack: stack on sm_90 keeps 256 bytes on a stack"]


def test_too_much_shared_memory_is_reported():
    with pytest.raises(NvrtcError, match=r"52000 bytes smem|shared data"):
        broken(CompileCase("overflow", ("overflow",), threads=32))
    case = CompileCase("scale", ("scale<float>",), threads=256, dynamic_shared=99 * 1024)
    assert broken(case, 90) == []
    assert broken(case, 86) == ["scale: scale<float> on sm_86 needs 101632 bytes of shared memory"]


def test_too_many_registers_are_reported():
    (found,) = broken(CompileCase("scale", ("zero",), threads=1 << 16))
    assert "registers" in found


def test_errors_name_the_line():
    with pytest.raises(NvrtcError, match=r"wrong\.cu\(7\)"):
        nvrtc.compile('#line 7 "wrong.cu"\n__global__ void wrong() { missing(); }', 90, ["wrong"])
