"""The cuda backend: CUDA kernels launched by CuPy, which `backend` alone imports."""
