// y[R,N] = x[R,K] * w[N,K]^T for up to 8 rows and quantised weights as they lie in the file: one warp an output.
//
// Weights are read once, by the widest loads their blocks' size permits; products are exact sums of signed bytes
// (quantise_rows), scaled in f32. A lane takes whole pieces of a block, so its sums, and their order, depend on K only.
// Must agree with reference::linear_by_runs.
#include "quant.cuh"

constexpr int WARPS = 4;

// Up to R rows of quantised activations.
template <int R> struct Activations {
    const int8_t* codes;
    const float *scales, *sums;
    uint32_t rows, width;

    // Rows past the last one do as it does, and are not stored.
    __device__ __forceinline__ uint32_t row(int r) const { return min(static_cast<uint32_t>(r), rows - 1); }
    // sum += scale * (codes . the words at `column`) - min * (sum of the activations there). N words: 1 or 4.
    template <int N>
    __device__ __forceinline__ void add(float (&sum)[R], const int (&words)[N], uint32_t column, float scale, float min) const {
#pragma unroll
        for (int r = 0; r < R; r++) {
            const size_t at = static_cast<size_t>(row(r)) * width + column;
            const Pack<int, N> x = load_pack<Pack<int, N>>(codes + at);
            int dot = 0;
#pragma unroll
            for (int i = 0; i < N; i++) {
                dot = __dp4a(words[i], x.at[i], dot);
            }
            sum[r] += static_cast<float>(dot) * (scale * scales[at / RUN]);
            if (min != 0) {
                sum[r] -= min * sums[at / 16];
            }
        }
    }
};

// One piece of a block: `PIECES` of them make it up. `column` is where the block starts in its row.
template <typename F> struct Piece;

template <> struct Piece<Q8_0> {
    static constexpr int PIECES = 2;
    template <int R>
    static __device__ __forceinline__ void add(const uint8_t* block, int piece, uint32_t column, const Activations<R>& x,
                                               float (&sum)[R]) {
        uint32_t words[4];
        load_16(block + 2 + 16 * piece, words);
        const int codes[4] = {static_cast<int>(words[0]), static_cast<int>(words[1]), static_cast<int>(words[2]),
                              static_cast<int>(words[3])};
        x.add(sum, codes, column + 16 * piece, half_at(block), 0);
    }
};

template <> struct Piece<Q4_0> {
    static constexpr int PIECES = 1;
    template <int R>
    static __device__ __forceinline__ void add(const uint8_t* block, int, uint32_t column, const Activations<R>& x,
                                               float (&sum)[R]) {
        uint32_t words[4];
        load_16(block + 2, words);
        const float scale = half_at(block);
#pragma unroll
        for (int part = 0; part < 2; part++) {
            int codes[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                codes[i] = less(words[i] >> (4 * part) & 0x0f0f0f0fu, 8);
            }
            x.add(sum, codes, column + 16 * part, scale, 0);
        }
    }
};

// Sixteen bytes of two runs: the low and the high four bits, and with HIGH a fifth bit from elsewhere.
template <bool HAS_HIGH> struct PieceWithMin {
    static constexpr int PIECES = 8;
    template <int R>
    static __device__ __forceinline__ void add(const uint8_t* block, int piece, uint32_t column, const Activations<R>& x,
                                               float (&sum)[R]) {
        using Words = Pack<uint32_t, 4>;
        const int pair = piece / 2, side = piece % 2;
        const Words head = load_pack<Words>(block);
        const Words low = load_pack_streaming<Words>(block + (HAS_HIGH ? 48 : 16) + 16 * piece);
        Words high = {};
        if constexpr (HAS_HIGH) {
            high = load_pack<Words>(block + 16 + 16 * side);
        }
        const float2 d = unpack2<half>(head.at[0]);
#pragma unroll
        for (int part = 0; part < 2; part++) {
            const int sub = 2 * pair + part;
            int codes[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                uint32_t code = low.at[i] >> (4 * part) & 0x0f0f0f0fu;
                if constexpr (HAS_HIGH) {
                    code |= (high.at[i] >> sub & 0x01010101u) << 4;
                }
                codes[i] = static_cast<int>(code);
            }
            const ScaleMin small = scale_min(head.at[1], head.at[2], head.at[3], sub);
            x.add(sum, codes, column + 32 * sub + 16 * side, d.x * static_cast<float>(small.scale),
                  d.y * static_cast<float>(small.min));
        }
    }
};
template <> struct Piece<Q4K> : PieceWithMin<false> {};
template <> struct Piece<Q5K> : PieceWithMin<true> {};

// Four bytes of low bits of two runs, four of high bits: four weights of each of four runs.
template <> struct Piece<Q6K> {
    static constexpr int PIECES = 16;
    template <int R>
    static __device__ __forceinline__ void add(const uint8_t* block, int piece, uint32_t column, const Activations<R>& x,
                                               float (&sum)[R]) {
        const int part = piece / 8, at = piece % 8 * 4;
        const uint32_t low[2] = {load_4(block + 64 * part + at), load_4(block + 64 * part + 32 + at)};
        const uint32_t high = load_4(block + 128 + 32 * part + at);
        const float d = half_at(block + 208);
#pragma unroll
        for (int run = 0; run < 4; run++) {
            const uint32_t code = (low[run % 2] >> (run / 2 * 4) & 0x0f0f0f0fu) | (high >> (2 * run) & 0x03030303u) << 4;
            const int codes[1] = {less(code, 32)};
            const int8_t small = static_cast<int8_t>(block[192 + 8 * part + 2 * run + at / 16]);
            x.add(sum, codes, column + 128 * part + 32 * run + at, d * static_cast<float>(small), 0);
        }
    }
};

// Grid: x enough warps for the outputs.
template <typename F, int R, typename T>
__device__ __forceinline__ void matvec(const uint8_t* weights, const Activations<R>& x, T* y, uint32_t outputs,
                                       uint32_t y_stride) {
    constexpr int PIECES = Piece<F>::PIECES;
    const uint32_t output = blockIdx.x * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (output >= outputs) {
        return;
    }
    const uint32_t blocks = x.width / F::WEIGHTS;
    const uint8_t* row = weights + static_cast<size_t>(output) * blocks * F::BYTES;
    float sum[R] = {};
#pragma unroll 2
    for (uint32_t i = lane; i < blocks * PIECES; i += 32) {
        const uint32_t block = i / PIECES;
        Piece<F>::template add<R>(row + static_cast<size_t>(block) * F::BYTES, static_cast<int>(i % PIECES),
                                  block * F::WEIGHTS, x, sum);
    }
#pragma unroll
    for (int r = 0; r < R; r++) {
        const float total = warp_sum(sum[r]);
        if (lane == 0 && static_cast<uint32_t>(r) < x.rows) {
            y[static_cast<size_t>(r) * y_stride + output] = from_float<T>(total);
        }
    }
}

#define MATVEC(F, format, R, T, type)                                                                                 \
    extern "C" __global__ void __launch_bounds__(WARPS * 32)                                                          \
        quant_matvec_##R##_##format##_##type(const uint8_t* weights, const int8_t* codes, const float* scales,        \
                                             const float* sums, T* y, uint32_t rows, uint32_t width,                  \
                                             uint32_t outputs, uint32_t y_stride) {                                   \
        matvec<F, R, T>(weights, {codes, scales, sums, rows, width}, y, outputs, y_stride);                           \
    }                                                                                                                 \
    EXPORT(quant_matvec_##R##_##format##_##type)
#define TYPES(F, format, R)                                                                                           \
    MATVEC(F, format, R, float, f32);                                                                                 \
    MATVEC(F, format, R, bf16, bf16);                                                                                 \
    MATVEC(F, format, R, half, f16)
#define INSTANCE(F, format)                                                                                           \
    TYPES(F, format, 1);                                                                                              \
    TYPES(F, format, 2);                                                                                              \
    TYPES(F, format, 4);                                                                                              \
    TYPES(F, format, 8)
FOR_EACH_FORMAT(INSTANCE);
