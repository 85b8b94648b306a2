"""Run the machine code of CUDA kernels (sm_90) on the CPU, for tests: see README.md."""
