// The 16-bit and 8-bit floats of the host side: storage and exact conversions, nothing else. See runtime.h.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

struct bf16 {
    uint16_t bits;
};
struct half {
    uint16_t bits;
};
struct fp8 {
    uint8_t bits;
};

namespace host {

inline uint32_t bits_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}
inline float float_of(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

inline float widen(bf16 x) { return float_of(uint32_t{x.bits} << 16); }
inline bf16 narrow_bf16(float x) {
    const uint32_t bits = bits_of(x);
    if (x != x) {
        return {0x7fff};
    }
    return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

inline float widen(half x) {
    _Float16 v;
    std::memcpy(&v, &x.bits, 2);
    return static_cast<float>(v);
}
inline half narrow_half(float x) {
    if (x != x) {
        return {0x7fff};
    }
    const _Float16 v = static_cast<_Float16>(x);
    half out;
    std::memcpy(&out.bits, &v, 2);
    return out;
}

// e4m3: no infinity, largest 448, NaN is all ones.
inline float widen(fp8 x) {
    const int exponent = x.bits >> 3 & 15, mantissa = x.bits & 7;
    float v = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                            : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
    if ((x.bits & 127) == 127) {
        v = float_of(0x7fc00000);
    }
    return x.bits & 128 ? -v : v;
}
inline fp8 narrow_fp8(float x) {
    const uint8_t sign = bits_of(x) >> 31 ? 128 : 0;
    if (x != x) {
        return {static_cast<uint8_t>(sign | 127)};
    }
    const float magnitude = std::fabs(x);
    if (magnitude >= 448) {
        return {static_cast<uint8_t>(sign | 126)};
    }
    int exponent;
    std::frexp(magnitude, &exponent);
    exponent = magnitude < 0x1p-6f ? -5 : exponent;                        // subnormal below 2^-6
    const int steps = static_cast<int>(std::nearbyint(std::ldexp(magnitude, 4 - exponent))); // 8..16 when normal
    return {static_cast<uint8_t>(sign | (((exponent + 5) << 3) + steps))};
}

} // namespace host
