// Replaces CUDA's header of this name: __half is part of the shim.
#pragma once
#include "cuda_shim.h"
