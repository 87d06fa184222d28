// Activations as signed bytes with a scale every 32, and the sums of every 16 times the scale: what quantised weights are
// multiplied with. Grid: x one warp a run of 32. Must agree with reference::quantise_run.
#include "device.cuh"

template <typename T>
__device__ __forceinline__ void quantise(const T* x, int8_t* codes, float* scales, float* sums, uint32_t runs,
                                         uint32_t runs_per_row, uint32_t x_stride) {
    const uint32_t run = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (run >= runs) {
        return;
    }
    const size_t from = static_cast<size_t>(run / runs_per_row) * x_stride + run % runs_per_row * 32;
    const float value = to_float(x[from + lane]);
    // As bits, NaN is above everything, so a broken row stays visibly broken.
    uint32_t bits = __float_as_uint(fabsf(value));
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        bits = max(bits, __shfl_xor_sync(0xffffffff, bits, distance));
    }
    const float peak = __uint_as_float(bits);
    const bool is_zero = peak < 1e-30f; // the quotient could overflow
    const float product = mul_rn(value, is_zero ? 0 : div_rn(127, peak));
    const int code = product == product ? __float2int_rn(product) : 0;
    // Rounded to 22 bits as on the CPU, which needs that; NaN beyond what it can lift.
    const float scale = is_zero        ? 0
                        : peak < 1e33f ? __uint_as_float(__float_as_uint(div_rn(peak, 127)) & ~3u)
                                       : __uint_as_float(0x7fffffff);
    int sum = code;
#pragma unroll
    for (int distance = 8; distance > 0; distance /= 2) {
        sum += __shfl_xor_sync(0xffffffff, sum, distance);
    }
    codes[static_cast<size_t>(run) * 32 + lane] = static_cast<int8_t>(code);
    if (lane == 0) {
        scales[run] = scale;
    }
    if (lane % 16 == 0) {
        sums[static_cast<size_t>(run) * 2 + lane / 16] = mul_rn(static_cast<float>(sum), scale);
    }
}

#define INSTANCE(T, suffix)                                                                                           \
    extern "C" __global__ void __launch_bounds__(256)                                                                 \
        quantise_rows_##suffix(const T* x, int8_t* codes, float* scales, float* sums, uint32_t runs,                  \
                               uint32_t runs_per_row, uint32_t x_stride) {                                            \
        quantise<T>(x, codes, scales, sums, runs, runs_per_row, x_stride);                                            \
    }                                                                                                                 \
    EXPORT(quantise_rows_##suffix)
FOR_EACH_TYPE(INSTANCE);
