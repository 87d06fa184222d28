// to[i] = from[i] in another type, rounded to nearest even. Four elements a thread; any length.
#include "device.cuh"

template <typename A, typename B> __device__ __forceinline__ void convert(const A* from, B* to, unsigned long long len) {
    const unsigned long long at = (static_cast<unsigned long long>(blockIdx.x) * blockDim.x + threadIdx.x) * 4;
    if (at + 4 <= len) {
        const auto in = load_pack<Pack<A, 4>>(from + at);
        Pack<B, 4> out;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            out.at[j] = from_float<B>(to_float(in.at[j]));
        }
        store_pack(to + at, out);
        return;
    }
    for (unsigned long long i = at; i < len; i++) {
        to[i] = from_float<B>(to_float(from[i]));
    }
}

#define INSTANCE(A, a, B, b)                                                                                          \
    extern "C" __global__ void __launch_bounds__(256) convert_##a##_##b(const A* from, B* to, unsigned long long len) { \
        convert<A, B>(from, to, len);                                                                                 \
    }                                                                                                                 \
    EXPORT(convert_##a##_##b)
INSTANCE(float, f32, bf16, bf16);
INSTANCE(float, f32, half, f16);
INSTANCE(bf16, bf16, float, f32);
INSTANCE(bf16, bf16, half, f16);
INSTANCE(half, f16, float, f32);
INSTANCE(half, f16, bf16, bf16);
