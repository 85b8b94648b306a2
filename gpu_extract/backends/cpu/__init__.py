"""The cpu backend: kernels compiled by numba. `cells` extracts cells; `fused` also deflates their tiles."""
