// Marks functions that run on the CPU and on the GPU, in headers that .cpp and .cu files share.
#pragma once

#ifdef __CUDACC__
#define DTENSOR_HOST_DEVICE __host__ __device__
#else
#define DTENSOR_HOST_DEVICE
#endif
