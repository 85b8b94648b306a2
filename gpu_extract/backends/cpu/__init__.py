"""The cpu backend: kernels compiled by numba. `cells` is the way of a cell; `fused` also deflates its tile."""
