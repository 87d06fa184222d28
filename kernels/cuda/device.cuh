// What kernels use of the device, and nothing else: with this header every kernel compiles for the GPU with nvcc, and
// for the CPU, where host/ runs it in tests. A kernel that needs a further primitive gets it here and in
// host/primitives.h, with the same name and meaning.
//
// From CUDA itself, under its own names: threadIdx, blockIdx, blockDim, gridDim, __syncthreads, __syncwarp, __shfl_sync
// and its _xor, _up, _down, __ballot_sync, __any_sync, __all_sync, atomicAdd/Max/Min/Or/Exch/CAS, __threadfence, __ldg,
// rsqrtf, __expf, __logf, __dp4a, __popc, __clz, __ffs, __umulhi, __umul64hi, __float_as_uint and kin.
// Shared memory is declared with SHARED_ARRAY and DYNAMIC_SHARED only; it holds NaN at first when emulated.
#pragma once
#include <stdint.h>

#ifdef __CUDACC__

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

using bf16 = __nv_bfloat16;
struct fp8 { // e4m3
    uint8_t bits;
};

// A static array of the block, 128-byte aligned: SHARED_ARRAY(float, partial, 32);
#define SHARED_ARRAY(type, name, count) __shared__ __align__(128) type name[count]
// The launch's dynamic shared memory, as unsigned char*.
#define DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
// Makes a kernel known to the emulator; stands after its definition.
#define EXPORT(name) static_assert(true, "")

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(fp8 x) {
    return __half2float(__half(__nv_cvt_fp8_to_halfraw(x.bits, __NV_E4M3)));
}
// Rounds to nearest even; fp8 saturates at 448.
template <typename T> __device__ __forceinline__ T from_float(float x);
template <> __device__ __forceinline__ float from_float<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 from_float<bf16>(float x) { return __float2bfloat16_rn(x); }
template <> __device__ __forceinline__ half from_float<half>(float x) { return __float2half_rn(x); }
template <> __device__ __forceinline__ fp8 from_float<fp8>(float x) {
    return {__nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3)};
}

// Two 16-bit floats in one register, the first in the low half: the operand form of mma.
template <typename T> __device__ __forceinline__ uint32_t pack2(float low, float high);
template <> __device__ __forceinline__ uint32_t pack2<bf16>(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
}
template <> __device__ __forceinline__ uint32_t pack2<half>(float low, float high) {
    const half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
}
template <typename T> __device__ __forceinline__ float2 unpack2(uint32_t pair);
template <> __device__ __forceinline__ float2 unpack2<bf16>(uint32_t pair) {
    return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}
template <> __device__ __forceinline__ float2 unpack2<half>(uint32_t pair) {
    return __half22float2(*reinterpret_cast<const half2*>(&pair));
}
__device__ __forceinline__ uint32_t fp8x2_to_half2(uint16_t pair) {
    const __half2_raw raw = __nv_cvt_fp8x2_to_halfraw2(pair, __NV_E4M3);
    return raw.x | static_cast<uint32_t>(raw.y) << 16;
}

// One load or store of a Pack; the address is a multiple of its size. The streaming one leaves the L1 cache alone:
// for weights, which are read once.
template <typename P> __device__ __forceinline__ P load_pack(const void* from) {
    return *static_cast<const P*>(from);
}
template <typename P> __device__ __forceinline__ P load_pack_streaming(const void* from) {
    static_assert(sizeof(P) == 16, "streaming loads are 16 bytes wide");
    uint4 v;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from));
    return *reinterpret_cast<const P*>(&v);
}
template <typename P> __device__ __forceinline__ void store_pack(void* to, const P& pack) {
    *static_cast<P*>(to) = pack;
}

// 2^x by the special function unit.
__device__ __forceinline__ float fast_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Rounded once each, never fused by the compiler: where bits must equal the CPU's.
__device__ __forceinline__ float mul_rn(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ float add_rn(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ float sub_rn(float a, float b) { return __fsub_rn(a, b); }
__device__ __forceinline__ float div_rn(float a, float b) { return __fdiv_rn(a, b); }
__device__ __forceinline__ float fma_rn(float a, float b, float c) { return __fmaf_rn(a, b, c); }

// A barrier of `threads` threads (a multiple of 32); ids 1 to 15.
__device__ __forceinline__ void named_barrier(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

__device__ __forceinline__ uint32_t shared_address(const void* shared) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// Copies 16 bytes to shared memory in the background; zeros, without reading, when not valid. Visible to the thread
// after cp_async_wait, to the block after a barrier that follows it.
__device__ __forceinline__ void cp_async16(void* shared, const void* global, bool is_valid = true) {
    const int bytes = is_valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes)
                 : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int GROUPS_LEFT> __device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS_LEFT) : "memory");
}

// Loads 8x8 matrices of 16-bit elements from shared memory; lanes 8i..8i+7 give the rows of matrix i. A lane gets the
// elements (lane / 4, lane % 4 * 2) and the next of each matrix; of its transpose with _trans.
__device__ __forceinline__ void ldmatrix_x1(uint32_t (&out)[1], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                 : "=r"(out[0])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ __forceinline__ void ldmatrix_x2(uint32_t (&out)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(out[0]), "=r"(out[1])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&out)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ __forceinline__ void ldmatrix_x2_trans(uint32_t (&out)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(out[0]), "=r"(out[1])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&out)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// d[16x8] += a[16x16] * b[16x8], f32 sums. With g = lane / 4 and c = lane % 4 * 2 a lane holds, each register a pair of
// neighbours: a = (g, c) (g+8, c) (g, c+8) (g+8, c+8); b, given as [n][k] = (g, c) (g, c+8); d = (g, c) (g, c+1)
// (g+8, c) (g+8, c+1).
template <typename T> __device__ __forceinline__ void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <> __device__ __forceinline__ void mma_16x8x16<bf16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <> __device__ __forceinline__ void mma_16x8x16<half>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Sum and maximum over the 32 lanes of a warp, in every lane, in a fixed order.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        x += __shfl_xor_sync(0xffffffff, x, distance);
    }
    return x;
}
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, distance));
    }
    return x;
}

#else
#include "host/primitives.h"
#endif

// N neighbours, moved in one instruction.
template <typename T, int N> struct __align__(sizeof(T) * N) Pack {
    T at[N];
};
// The widest pack of a type: 16 bytes.
template <typename T> constexpr int WIDEST = 16 / static_cast<int>(sizeof(T));

// Defines what `instance(type, suffix)` defines for each type of activations.
#define FOR_EACH_TYPE(instance)                                                                                       \
    instance(float, f32);                                                                                             \
    instance(bf16, bf16);                                                                                             \
    instance(half, f16)

// Sum over a block of whole warps (one-dimensional), in every thread, in a fixed order.
__device__ __forceinline__ float block_sum(float x) {
    SHARED_ARRAY(float, partial, 32);
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    x = warp_sum(x);
    __syncthreads(); // an earlier sum may still be read
    if (lane == 0) {
        partial[warp] = x;
    }
    __syncthreads();
    return warp_sum(lane < blockDim.x / 32 ? partial[lane] : 0);
}
