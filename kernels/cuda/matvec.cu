// y[r, o] = sum over i of x[r, i] * w[o, i], for 1 to 4 rows: every weight is read once, 16 bytes a load, past the L1 cache.
// A warp makes OUTPUTS outputs of all rows; a lane takes every 32nd pack and asks for PACKS of each weight row before it
// multiplies, so that enough loads are under way. Sums are f32 in an order that depends on `inputs` only.
// Needs inputs % (16 / sizeof(T)) == 0; rows of x start at multiples of 16 bytes.
#include "device.cuh"

constexpr int OUTPUTS = 2, PACKS = 4;

template <typename T, typename Y, int ROWS>
__device__ __forceinline__ void matvec(const T* x, const T* w, Y* y, int inputs, int outputs, int x_stride,
                                       int y_stride) {
    using P = Pack<T, WIDEST<T>>;
    const int lane = threadIdx.x % 32;
    const int first = (blockIdx.x * blockDim.x + threadIdx.x) / 32 * OUTPUTS;
    if (first >= outputs) {
        return;
    }
    const T* row[OUTPUTS];
#pragma unroll
    for (int o = 0; o < OUTPUTS; o++) {
        row[o] = w + static_cast<size_t>(min(first + o, outputs - 1)) * inputs;
    }
    float sums[OUTPUTS][ROWS] = {};
    for (int start = lane * WIDEST<T>; start < inputs; start += 32 * WIDEST<T> * PACKS) {
        P weights[PACKS][OUTPUTS];
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            const int at = start + p * 32 * WIDEST<T>;
            if (at < inputs) {
#pragma unroll
                for (int o = 0; o < OUTPUTS; o++) {
                    weights[p][o] = load_pack_streaming<P>(row[o] + at);
                }
            }
        }
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            const int at = start + p * 32 * WIDEST<T>;
            if (at < inputs) {
#pragma unroll
                for (int r = 0; r < ROWS; r++) {
                    const P values = load_pack<P>(x + static_cast<size_t>(r) * x_stride + at);
#pragma unroll
                    for (int o = 0; o < OUTPUTS; o++) {
#pragma unroll
                        for (int j = 0; j < WIDEST<T>; j++) {
                            sums[o][r] = fmaf(to_float(weights[p][o].at[j]), to_float(values.at[j]), sums[o][r]);
                        }
                    }
                }
            }
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
#pragma unroll
        for (int o = 0; o < OUTPUTS; o++) {
            const float sum = warp_sum(sums[o][r]);
            if (lane == 0 && first + o < outputs) {
                y[static_cast<size_t>(r) * y_stride + first + o] = from_float<Y>(sum);
            }
        }
    }
}

#define INSTANCE(T, Y, ROWS, name)                                                                                    \
    extern "C" __global__ void __launch_bounds__(256)                                                                 \
        name(const T* x, const T* w, Y* y, int inputs, int outputs, int x_stride, int y_stride) {                     \
        matvec<T, Y, ROWS>(x, w, y, inputs, outputs, x_stride, y_stride);                                             \
    }                                                                                                                 \
    EXPORT(name)
#define INSTANCES(T, t, Y, y)                                                                                         \
    INSTANCE(T, Y, 1, matvec_1_##t##_##y);                                                                            \
    INSTANCE(T, Y, 2, matvec_2_##t##_##y);                                                                            \
    INSTANCE(T, Y, 3, matvec_3_##t##_##y);                                                                            \
    INSTANCE(T, Y, 4, matvec_4_##t##_##y)
INSTANCES(float, f32, float, f32);
INSTANCES(bf16, bf16, bf16, bf16);
INSTANCES(half, f16, half, f16);
INSTANCES(bf16, bf16, float, f32);
INSTANCES(half, f16, float, f32);
