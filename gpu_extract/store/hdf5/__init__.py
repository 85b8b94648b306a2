"""Code specific to HDF5: the layouts of a file of cells, its datasets, and the index of its chunks."""
