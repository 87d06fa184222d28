// out[N,W] = x / sqrt(mean(x^2) + eps) * weight, with residual += x before it if there is a residual. One block a row.
// x is read once, 16 bytes a load, and kept in registers as rounded; sums are f32 in a fixed order. Needs
// W % (16 / sizeof(T)) == 0 and W <= threads * PACKS * (16 / sizeof(T)); the wrapper refuses the rest.
// Must agree with reference::rms_norm and reference::add.
#include "device.cuh"

constexpr int PACKS = 4;

template <typename T>
__device__ __forceinline__ void norm_row(const T* x, T* residual, const T* weight, T* out, int width, float eps) {
    using P = Pack<T, WIDEST<T>>;
    const int packs = width / WIDEST<T>;
    const size_t row = static_cast<size_t>(blockIdx.x) * width;
    P kept[PACKS];
    float squares = 0;
#pragma unroll
    for (int i = 0; i < PACKS; i++) {
        const int at = (i * blockDim.x + threadIdx.x) * WIDEST<T>;
        if (at >= packs * WIDEST<T>) {
            continue;
        }
        kept[i] = load_pack<P>(x + row + at);
        if (residual != nullptr) {
            const P sum = load_pack<P>(residual + row + at);
#pragma unroll
            for (int j = 0; j < WIDEST<T>; j++) {
                kept[i].at[j] = from_float<T>(to_float(kept[i].at[j]) + to_float(sum.at[j]));
            }
            store_pack(residual + row + at, kept[i]);
        }
#pragma unroll
        for (int j = 0; j < WIDEST<T>; j++) {
            const float v = to_float(kept[i].at[j]);
            squares += v * v;
        }
    }
    const float scale = rsqrtf(block_sum(squares) / width + eps);
#pragma unroll
    for (int i = 0; i < PACKS; i++) {
        const int at = (i * blockDim.x + threadIdx.x) * WIDEST<T>;
        if (at >= packs * WIDEST<T>) {
            continue;
        }
        const P w = load_pack<P>(weight + at);
#pragma unroll
        for (int j = 0; j < WIDEST<T>; j++) {
            kept[i].at[j] = from_float<T>(to_float(kept[i].at[j]) * scale * to_float(w.at[j]));
        }
        store_pack(out + row + at, kept[i]);
    }
}

#define INSTANCE(T, suffix)                                                                                           \
    extern "C" __global__ void __launch_bounds__(1024)                                                                \
        rms_norm_##suffix(const T* x, T* residual, const T* weight, T* out, int width, float eps) {                   \
        norm_row<T>(x, residual, weight, out, width, eps);                                                            \
    }                                                                                                                 \
    EXPORT(rms_norm_##suffix)
FOR_EACH_TYPE(INSTANCE);
