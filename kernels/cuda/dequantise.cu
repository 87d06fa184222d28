// out[N,K] in T = a matrix of quantised blocks: for products with many rows, which a dense product then computes.
//
// Grid: x enough threads for the blocks' weights, eight a thread: its one store of 16 (in f32 two) bytes decides the
// time. Must agree with quant::dequantise_row, rounded to T.
#include "quant.cuh"

constexpr int EACH = 8;

template <typename F, typename T>
__device__ __forceinline__ void dequantise(const uint8_t* blocks, T* out, unsigned long long weights) {
    const unsigned long long first = (static_cast<unsigned long long>(blockIdx.x) * blockDim.x + threadIdx.x) * EACH;
    if (first >= weights) {
        return;
    }
    const uint8_t* block = blocks + first / F::WEIGHTS * F::BYTES;
    T values[EACH];
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        values[i] = from_float<T>(F::weight(block, static_cast<int>(first % F::WEIGHTS) + i));
    }
    constexpr int LANES = WIDEST<T> < EACH ? WIDEST<T> : EACH;
#pragma unroll
    for (int i = 0; i < EACH; i += LANES) {
        Pack<T, LANES> pack;
#pragma unroll
        for (int j = 0; j < LANES; j++) {
            pack.at[j] = values[i + j];
        }
        store_pack(out + first + i, pack);
    }
}

#define DEQUANTISE(F, format, T, type)                                                                                \
    extern "C" __global__ void __launch_bounds__(256)                                                                 \
        dequantise_##format##_##type(const uint8_t* blocks, T* out, unsigned long long weights) {                     \
        dequantise<F, T>(blocks, out, weights);                                                                       \
    }                                                                                                                 \
    EXPORT(dequantise_##format##_##type)
#define INSTANCE(F, format)                                                                                           \
    DEQUANTISE(F, format, float, f32);                                                                                \
    DEQUANTISE(F, format, bf16, bf16);                                                                                \
    DEQUANTISE(F, format, half, f16)
FOR_EACH_FORMAT(INSTANCE);
