// y[N,W] += bias[W]. A thread moves one pack of 16 bytes. Grid: (rows, packs of a row / threads).
// Needs W % (16 / sizeof(T)) == 0.
#include "device.cuh"

template <typename T> __device__ __forceinline__ void add_bias(const T* bias, T* y, int width) {
    using P = Pack<T, WIDEST<T>>;
    const int at = (blockIdx.y * blockDim.x + threadIdx.x) * WIDEST<T>;
    if (at >= width) {
        return;
    }
    T* to = y + static_cast<size_t>(blockIdx.x) * width + at;
    const P b = load_pack<P>(bias + at);
    P sum = load_pack<P>(to);
#pragma unroll
    for (int j = 0; j < WIDEST<T>; j++) {
        sum.at[j] = from_float<T>(to_float(sum.at[j]) + to_float(b.at[j]));
    }
    store_pack(to, sum);
}

#define INSTANCE(T, suffix)                                                                                           \
    extern "C" __global__ void __launch_bounds__(256) add_bias_##suffix(const T* bias, T* y, int width) {             \
        add_bias<T>(bias, y, width);                                                                                  \
    }                                                                                                                 \
    EXPORT(add_bias_##suffix)
FOR_EACH_TYPE(INSTANCE);
