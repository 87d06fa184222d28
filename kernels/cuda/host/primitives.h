// What kernels may use of the device, on the CPU: the same names and meanings as in device.cuh. See runtime.h.
#pragma once
#include "runtime.h"
#include "types.h"
#include <tuple>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline
#define __restrict__ __restrict
#define __align__(n) alignas(n)
#define __launch_bounds__(...)

#define DYNAMIC_SHARED(name) unsigned char* const name = host::dynamic_shared()
#define SHARED_ARRAY(type, name, count)                                                                              \
    static const char name##_key = 0;                                                                                 \
    using name##_array = type[count];                                                                                 \
    name##_array& name = *static_cast<name##_array*>(host::static_shared(&name##_key, sizeof(name##_array), 128))

struct float2 {
    float x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) { return host::widen(x); }
inline float to_float(half x) { return host::widen(x); }
inline float to_float(fp8 x) { return host::widen(x); }
template <typename T> T from_float(float x);
template <> inline float from_float<float>(float x) { return x; }
template <> inline bf16 from_float<bf16>(float x) { return host::narrow_bf16(x); }
template <> inline half from_float<half>(float x) { return host::narrow_half(x); }
template <> inline fp8 from_float<fp8>(float x) { return host::narrow_fp8(x); }

template <typename T> uint32_t pack2(float low, float high) {
    static_assert(sizeof(T) == 2);
    return from_float<T>(low).bits | uint32_t{from_float<T>(high).bits} << 16;
}
template <typename T> float2 unpack2(uint32_t pair) {
    static_assert(sizeof(T) == 2);
    return {to_float(T{static_cast<uint16_t>(pair)}), to_float(T{static_cast<uint16_t>(pair >> 16)})};
}
inline uint32_t fp8x2_to_half2(uint16_t pair) {
    const float low = host::widen(fp8{static_cast<uint8_t>(pair)}), high = host::widen(fp8{static_cast<uint8_t>(pair >> 8)});
    return pack2<half>(low, high);
}

namespace host {
inline void check_aligned(const void* at, size_t bytes, const char* what) {
    if (reinterpret_cast<uintptr_t>(at) % bytes != 0) {
        fail("%s of %zu bytes at %p, which is not aligned", what, bytes, at);
    }
}
} // namespace host

template <typename P> P load_pack(const void* from) {
    host::check_aligned(from, sizeof(P), "load");
    P pack;
    std::memcpy(&pack, from, sizeof(P));
    return pack;
}
template <typename P> P load_pack_streaming(const void* from) { return load_pack<P>(from); }
template <typename P> void store_pack(void* to, const P& pack) {
    host::check_aligned(to, sizeof(P), "store");
    std::memcpy(to, &pack, sizeof(P));
}
template <typename T> T __ldg(const T* from) { return *from; }

using std::fabs;
using std::max;
using std::min;
inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float fast_exp2(float x) { return exp2f(x); }
inline float mul_rn(float a, float b) { return a * b; }
inline float add_rn(float a, float b) { return a + b; }
inline float sub_rn(float a, float b) { return a - b; }
inline float div_rn(float a, float b) { return a / b; }
inline float fma_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline int __float2int_rn(float x) { return static_cast<int>(std::nearbyint(x)); }
inline unsigned __float_as_uint(float x) { return host::bits_of(x); }
inline float __uint_as_float(unsigned x) { return host::float_of(x); }
inline int __float_as_int(float x) { return static_cast<int>(host::bits_of(x)); }
inline float __int_as_float(int x) { return host::float_of(static_cast<uint32_t>(x)); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(uint64_t{a} * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}
inline int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 4; i++) {
        c += static_cast<int8_t>(a >> 8 * i) * static_cast<int8_t>(b >> 8 * i);
    }
    return c;
}

inline void __syncthreads() { host::barrier(0, 0); }
inline void named_barrier(int id, int threads) { host::barrier(id, threads); }
inline void __syncwarp(unsigned mask = 0xffffffff) { host::collective(mask, "__syncwarp", nullptr, nullptr); }
inline void __threadfence() {}
inline void __threadfence_block() {}

namespace host {

template <typename T> struct Shuffle {
    T in, out;
    int from;
};

template <typename T> T shuffle(unsigned mask, T value, int from, const char* op) {
    Shuffle<T> mine{value, value, from};
    collective(mask, op, &mine, [](void* const* args, uint32_t mask) {
        for (int lane = 0; lane < 32; lane++) {
            if ((mask >> lane & 1) == 0) {
                continue;
            }
            auto* to = static_cast<Shuffle<T>*>(args[lane]);
            if ((mask >> to->from & 1) == 0) {
                fail("lane %d shuffles from lane %d, which does not take part", lane, to->from);
            }
            to->out = static_cast<Shuffle<T>*>(args[to->from])->in;
        }
    });
    return mine.out;
}

// The sum or maximum of all lanes, added in the order of the butterfly of device.cuh.
template <typename F> float reduce(float value, const char* op) {
    collective(0xffffffff, op, &value, [](void* const* args, uint32_t mask) {
        float x[32];
        for (int lane = 0; lane < 32; lane++) {
            if ((mask >> lane & 1) == 0) {
                fail("a reduction needs whole warps");
            }
            x[lane] = *static_cast<float*>(args[lane]);
        }
        for (int distance = 16; distance > 0; distance /= 2) {
            for (int lane = 0; lane < distance; lane++) {
                x[lane] = F{}(x[lane], x[lane + distance]);
            }
        }
        for (int lane = 0; lane < 32; lane++) {
            *static_cast<float*>(args[lane]) = x[0];
        }
    });
    return value;
}
struct Sum {
    float operator()(float a, float b) const { return a + b; }
};
struct Max {
    float operator()(float a, float b) const { return fmaxf(a, b); }
};

struct Vote {
    bool in;
    unsigned out;
};
inline unsigned ballot(unsigned mask, bool value, const char* op) {
    Vote mine{value, 0};
    collective(mask, op, &mine, [](void* const* args, uint32_t mask) {
        unsigned votes = 0;
        for (int lane = 0; lane < 32; lane++) {
            votes |= (mask >> lane & 1) && static_cast<Vote*>(args[lane])->in ? 1u << lane : 0;
        }
        for (int lane = 0; lane < 32; lane++) {
            if (mask >> lane & 1) {
                static_cast<Vote*>(args[lane])->out = votes;
            }
        }
    });
    return mine.out;
}

} // namespace host

template <typename T> T __shfl_sync(unsigned mask, T value, int from, int width = 32) {
    const int lane = static_cast<int>(host::lane());
    return host::shuffle(mask, value, (lane & ~(width - 1)) | (from & (width - 1)), "__shfl_sync");
}
template <typename T> T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32) {
    const int lane = static_cast<int>(host::lane()), from = lane ^ lane_mask;
    return host::shuffle(mask, value, (from & ~(width - 1)) > (lane & ~(width - 1)) ? lane : from, "__shfl_xor_sync");
}
template <typename T> T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    const int lane = static_cast<int>(host::lane()), from = lane - static_cast<int>(delta);
    return host::shuffle(mask, value, from < (lane & ~(width - 1)) ? lane : from, "__shfl_up_sync");
}
template <typename T> T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    const int lane = static_cast<int>(host::lane()), from = lane + static_cast<int>(delta);
    return host::shuffle(mask, value, from > (lane | (width - 1)) ? lane : from, "__shfl_down_sync");
}
inline float warp_sum(float x) { return host::reduce<host::Sum>(x, "warp_sum"); }
inline float warp_max(float x) { return host::reduce<host::Max>(x, "warp_max"); }
inline unsigned __ballot_sync(unsigned mask, bool value) { return host::ballot(mask, value, "__ballot_sync"); }
inline bool __any_sync(unsigned mask, bool value) { return host::ballot(mask, value, "__any_sync") != 0; }
inline bool __all_sync(unsigned mask, bool value) { return host::ballot(mask, !value, "__all_sync") == 0; }

template <typename T> T atomicAdd(T* at, std::common_type_t<T> value) {
    const T old = *at;
    *at = old + value;
    return old;
}
template <typename T> T atomicMax(T* at, std::common_type_t<T> value) {
    const T old = *at;
    *at = old > value ? old : value;
    return old;
}
template <typename T> T atomicMin(T* at, std::common_type_t<T> value) {
    const T old = *at;
    *at = old < value ? old : value;
    return old;
}
template <typename T> T atomicOr(T* at, std::common_type_t<T> value) {
    const T old = *at;
    *at = old | value;
    return old;
}
template <typename T> T atomicExch(T* at, std::common_type_t<T> value) {
    const T old = *at;
    *at = value;
    return old;
}
template <typename T> T atomicCAS(T* at, std::common_type_t<T> expected, std::common_type_t<T> value) {
    const T old = *at;
    if (old == expected) {
        *at = value;
    }
    return old;
}

inline void cp_async16(void* shared, const void* global, bool is_valid = true) {
    host::check_aligned(shared, 16, "cp_async16 to shared memory");
    if (is_valid) {
        host::check_aligned(global, 16, "cp_async16");
    }
    host::copy_later(shared, global, 16, is_valid);
}
inline void cp_async_commit() { host::commit_copies(); }
template <int GROUPS_LEFT> void cp_async_wait() { host::wait_for_copies(GROUPS_LEFT); }

namespace host {

struct Matrices {
    const uint16_t* row;
    uint32_t* out;
};

// `COUNT` 8x8 matrices of 16-bit elements; lanes 8i..8i+7 point at the rows of matrix i.
template <int COUNT, bool IS_TRANSPOSED> void load_matrices(uint32_t* out, const void* row, const char* op) {
    check_aligned(row, 16, op);
    Matrices mine{static_cast<const uint16_t*>(row), out};
    collective(0xffffffff, op, &mine, [](void* const* args, uint32_t) {
        for (int lane = 0; lane < 32; lane++) {
            for (int i = 0; i < COUNT; i++) {
                uint16_t pair[2];
                for (int j = 0; j < 2; j++) {
                    const int r = IS_TRANSPOSED ? lane % 4 * 2 + j : lane / 4;
                    const int c = IS_TRANSPOSED ? lane / 4 : lane % 4 * 2 + j;
                    pair[j] = static_cast<Matrices*>(args[8 * i + r])->row[c];
                }
                static_cast<Matrices*>(args[lane])->out[i] = pair[0] | uint32_t{pair[1]} << 16;
            }
        }
    });
}

struct Product {
    float* d;
    const uint32_t *a, *b;
};

} // namespace host

inline void ldmatrix_x1(uint32_t (&out)[1], const void* row) { host::load_matrices<1, false>(out, row, "ldmatrix_x1"); }
inline void ldmatrix_x2(uint32_t (&out)[2], const void* row) { host::load_matrices<2, false>(out, row, "ldmatrix_x2"); }
inline void ldmatrix_x4(uint32_t (&out)[4], const void* row) { host::load_matrices<4, false>(out, row, "ldmatrix_x4"); }
inline void ldmatrix_x2_trans(uint32_t (&out)[2], const void* row) {
    host::load_matrices<2, true>(out, row, "ldmatrix_x2_trans");
}
inline void ldmatrix_x4_trans(uint32_t (&out)[4], const void* row) {
    host::load_matrices<4, true>(out, row, "ldmatrix_x4_trans");
}

template <typename T> void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    host::Product mine{d, a, b};
    host::collective(0xffffffff, "mma_16x8x16", &mine, [](void* const* args, uint32_t) {
        float a[16][16], b[16][8], d[16][8];
        for (int lane = 0; lane < 32; lane++) {
            const auto* p = static_cast<host::Product*>(args[lane]);
            const int row = lane / 4, col = lane % 4 * 2;
            for (int i = 0; i < 4; i++) {
                const float2 v = unpack2<T>(p->a[i]);
                a[row + i % 2 * 8][col + i / 2 * 8] = v.x;
                a[row + i % 2 * 8][col + i / 2 * 8 + 1] = v.y;
                d[row + i / 2 * 8][col + i % 2] = p->d[i];
            }
            for (int i = 0; i < 2; i++) {
                const float2 v = unpack2<T>(p->b[i]);
                b[col + i * 8][row] = v.x;
                b[col + i * 8 + 1][row] = v.y;
            }
        }
        for (int r = 0; r < 16; r++) {
            float sums[8] = {};
            for (int k = 0; k < 16; k++) {
                for (int c = 0; c < 8; c++) {
                    sums[c] += a[r][k] * b[k][c];
                }
            }
            for (int c = 0; c < 8; c++) {
                d[r][c] += sums[c];
            }
        }
        for (int lane = 0; lane < 32; lane++) {
            for (int i = 0; i < 4; i++) {
                static_cast<host::Product*>(args[lane])->d[i] = d[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
            }
        }
    });
}

// Kernels by name: what the emulated driver finds, and what C++ tests call.
namespace host {

using Prepare = std::function<std::function<void()>(void* const* arguments)>;
void add_kernel(const char* name, Prepare prepare);

struct Registration {
    template <typename... A> Registration(const char* name, void (*kernel)(A...)) {
        add_kernel(name, [kernel](void* const* arguments) -> std::function<void()> {
            return bind(kernel, arguments, std::index_sequence_for<A...>{});
        });
    }
    // The arguments are copied now, as a launch does.
    template <typename... A, size_t... I>
    static std::function<void()> bind(void (*kernel)(A...), void* const* arguments, std::index_sequence<I...>) {
        std::tuple<std::remove_const_t<A>...> copy{*static_cast<std::remove_const_t<A>*>(arguments[I])...};
        return [kernel, copy] { std::apply(kernel, copy); };
    }
};

} // namespace host

#define EXPORT(name) static const host::Registration name##_registration(#name, name)
