"""`ShimEvidence`: what `bench/gpu_device.py` is on a GPU, on the CPU, to try the benchmarks without one."""

import time
import warnings

import numpy as np

from cuda_on_cpu.device import ShimGpu, compiled
from gpu_extract.backends import Backend
from gpu_extract.backends.cuda.batches import DeviceExtraction
from gpu_extract.backends.reference import HOST
from gpu_extract.model import BatchSize


class ShimEvidence:
    """The methods of `gpu_device.Gpu` on the CPU."""

    libraries = HOST
    xp = np
    name = "shim"

    def __init__(self):
        self._gpu = ShimGpu()
        self.device = self._gpu.stream()

    def skimage(self):
        """Return scikit-image, which has the functions of cuCIM."""
        import skimage.exposure
        import skimage.filters
        import skimage.measure
        import skimage.morphology

        # Not in cuCIM, where it has no replacement.
        warnings.filterwarnings("ignore", "`binary_dilation` is deprecated", FutureWarning)
        return skimage

    def open_stream(self):
        return self._gpu.stream()

    def open_backend(self):
        extraction = DeviceExtraction([self._gpu.stream() for _ in range(2)], print)
        return Backend("shim", extraction.extract, BatchSize(5), streams=2)

    def upload(self, array):
        copy = self.device.to_device(np.ascontiguousarray(array))
        self.device.synchronize()
        return copy

    def to_host(self, array):
        self.device.synchronize()
        return array

    def seconds(self, work, repeats, warm_up=1):
        start = time.perf_counter()
        work()
        self.device.synchronize()
        return [time.perf_counter() - start]

    def is_broken(self):
        return False

    def free_nbytes(self):
        return 64 << 30

    def release(self):
        pass

    def compile(self, kernel):
        return compiled(kernel.source, kernel.expression).get_function(kernel.expression)

    def prefer_shared(self, kernel, percent):
        assert -1 <= percent <= 100

    def kernel_facts(self, kernel, shared_nbytes):
        return {"kernel": kernel.expression, "dynamic_shared_bytes": shared_nbytes}

    def facts(self):
        return {"gpu": "shim", "cupy": None, "cucim": None}

    def smi(self):
        return {}
