// out[N,W] = gate * sigmoid(gate) * up, where a row of gate_up[N,2W] is its gate, then its up. f32 inside, rounded once.
// A thread moves one pack of 16 bytes. Grid: (rows, packs of a row / threads). Needs W % (16 / sizeof(T)) == 0.
// Must agree with reference::silu_mul.
#include "device.cuh"

template <typename T> __device__ __forceinline__ void silu_mul(const T* gate_up, T* out, int width) {
    using P = Pack<T, WIDEST<T>>;
    const int at = (blockIdx.y * blockDim.x + threadIdx.x) * WIDEST<T>;
    if (at >= width) {
        return;
    }
    const T* gates = gate_up + static_cast<size_t>(blockIdx.x) * 2 * width + at;
    const P gate = load_pack<P>(gates), up = load_pack<P>(gates + width);
    P result;
#pragma unroll
    for (int j = 0; j < WIDEST<T>; j++) {
        const float g = to_float(gate.at[j]);
        result.at[j] = from_float<T>(__fdividef(g, 1 + __expf(-g)) * to_float(up.at[j]));
    }
    store_pack(out + static_cast<size_t>(blockIdx.x) * width + at, result);
}

#define INSTANCE(T, suffix)                                                                                           \
    extern "C" __global__ void __launch_bounds__(256) silu_mul_##suffix(const T* gate_up, T* out, int width) {        \
        silu_mul<T>(gate_up, out, width);                                                                             \
    }                                                                                                                 \
    EXPORT(silu_mul_##suffix)
FOR_EACH_TYPE(INSTANCE);
