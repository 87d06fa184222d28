// GGUF's quantised formats on the device: the bytes of a block as they lie in the file. Must agree with `quant.rs`.
#pragma once
#include "device.cuh"

constexpr int RUN = 32; // weights that share an activation scale

__device__ __forceinline__ float half_at(const uint8_t* at) {
    return to_float(load_pack<half>(at));
}

// Sixteen bytes from any even address, by words: never a byte beyond them, and none before the word they start in.
__device__ __forceinline__ void load_16(const uint8_t* at, uint32_t (&out)[4]) {
    const bool is_odd = reinterpret_cast<uintptr_t>(at) % 4 != 0;
    const uint8_t* from = is_odd ? at - 2 : at;
    uint32_t words[5];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        words[i] = load_pack<uint32_t>(from + 4 * i);
    }
    words[4] = load_pack<uint16_t>(at + 14);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        out[i] = is_odd ? words[i] >> 16 | words[i + 1] << 16 : words[i];
    }
}
__device__ __forceinline__ uint32_t load_4(const uint8_t* at) {
    return load_pack<uint16_t>(at) | static_cast<uint32_t>(load_pack<uint16_t>(at + 2)) << 16;
}

// Four codes of less than 128 in a word, less `offset` each, as signed bytes. No byte borrows from its neighbour.
__device__ __forceinline__ int less(uint32_t codes, uint32_t offset) {
    return static_cast<int>(((codes | 0x80808080u) - offset * 0x01010101u) ^ 0x80808080u);
}

// The 6-bit scale and minimum of run `sub` of a block, from the three words behind its two halves.
struct ScaleMin {
    uint32_t scale, min;
};
__device__ __forceinline__ ScaleMin scale_min(uint32_t a, uint32_t b, uint32_t c, int sub) {
    const int shift = sub % 4 * 8;
    a = a >> shift & 255, b = b >> shift & 255, c = c >> shift & 255;
    if (sub < 4) {
        return {a & 63, b & 63};
    }
    return {(c & 15) | a >> 6 << 4, c >> 4 | b >> 6 << 4};
}

// Weight i of a block, with the CPU's roundings.
struct Q8_0 {
    static constexpr int WEIGHTS = 32, BYTES = 34;
    static __device__ __forceinline__ float weight(const uint8_t* block, int i) {
        return mul_rn(half_at(block), static_cast<float>(static_cast<int8_t>(block[2 + i])));
    }
};
struct Q4_0 {
    static constexpr int WEIGHTS = 32, BYTES = 18;
    static __device__ __forceinline__ float weight(const uint8_t* block, int i) {
        return mul_rn(half_at(block), static_cast<float>((block[2 + i % 16] >> (i / 16 * 4) & 15) - 8));
    }
};
__device__ __forceinline__ float weight_with_min(const uint8_t* block, int sub, uint32_t code) {
    const Pack<uint32_t, 4> head = load_pack<Pack<uint32_t, 4>>(block);
    const ScaleMin small = scale_min(head.at[1], head.at[2], head.at[3], sub);
    const float scale = mul_rn(half_at(block), static_cast<float>(small.scale));
    const float min = mul_rn(half_at(block + 2), static_cast<float>(small.min));
    return sub_rn(mul_rn(scale, static_cast<float>(code)), min);
}
struct Q4K {
    static constexpr int WEIGHTS = 256, BYTES = 144;
    static __device__ __forceinline__ float weight(const uint8_t* block, int i) {
        const int sub = i / 32;
        return weight_with_min(block, sub, block[16 + sub / 2 * 32 + i % 32] >> (sub % 2 * 4) & 15);
    }
};
struct Q5K {
    static constexpr int WEIGHTS = 256, BYTES = 176;
    static __device__ __forceinline__ float weight(const uint8_t* block, int i) {
        const int sub = i / 32;
        const uint32_t low = block[48 + sub / 2 * 32 + i % 32] >> (sub % 2 * 4) & 15;
        return weight_with_min(block, sub, low | (block[16 + i % 32] >> sub & 1) << 4);
    }
};
struct Q6K {
    static constexpr int WEIGHTS = 256, BYTES = 210;
    static __device__ __forceinline__ float weight(const uint8_t* block, int i) {
        const int part = i / 128, run = i / 32 % 4, at = i % 32;
        const int low = block[64 * part + run % 2 * 32 + at] >> (run / 2 * 4) & 15;
        const int high = block[128 + 32 * part + at] >> (2 * run) & 3;
        const int8_t small = static_cast<int8_t>(block[192 + 8 * part + 2 * run + at / 16]);
        return mul_rn(mul_rn(half_at(block + 208), static_cast<float>(small)), static_cast<float>((low | high << 4) - 32));
    }
};

#define FOR_EACH_FORMAT(instance)                                                                                     \
    instance(Q8_0, q8_0);                                                                                             \
    instance(Q4_0, q4_0);                                                                                             \
    instance(Q4K, q4_k);                                                                                              \
    instance(Q5K, q5_k);                                                                                              \
    instance(Q6K, q6_k)
