// Tests of the emulator itself: collectives, barriers, matrix products, background copies, and that mistakes are caught.
#include "kernels.h"
#include <cstdio>
#include <cstdlib>
#include <vector>

static int failures = 0;
static void expect(bool is_true, const char* what, const std::string& detail = "") {
    if (!is_true) {
        std::printf("FAILED: %s %s\n", what, detail.c_str());
        failures++;
    }
}
static std::string run(dim3 grid, dim3 block, size_t shared, std::function<void()> body) {
    return host::run(host::Launch{"test", grid, block, shared, std::move(body)});
}
static bool contains(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

static void collectives() {
    std::vector<float> sums(64);
    std::string error = run({1, 1, 1}, {64, 1, 1}, 0, [&] {
        float x = static_cast<float>(threadIdx.x);
        for (int d = 16; d > 0; d /= 2) {
            x += __shfl_xor_sync(0xffffffff, x, d);
        }
        sums[threadIdx.x] = x;
    });
    expect(error.empty() && sums[5] == 496 && sums[40] == 496 + 1024, "sums by shuffles", error);
    std::vector<unsigned> votes(32);
    error = run({1, 1, 1}, {32, 1, 1}, 0, [&] {
        const bool is_low = threadIdx.x < 16;
        votes[threadIdx.x] = __ballot_sync(is_low ? 0xffff : 0xffff0000, threadIdx.x % 2);
    });
    expect(error.empty() && votes[0] == 0xaaaa && votes[31] == 0xaaaa0000, "two halves vote apart", error);
}

static void products() {
    uint16_t a[16][16], b[8][16];
    float want[16][8] = {}, got[16][8];
    for (auto& row : a) {
        for (auto& v : row) {
            v = host::narrow_bf16(static_cast<float>(rand() % 19 - 9)).bits;
        }
    }
    for (auto& row : b) {
        for (auto& v : row) {
            v = host::narrow_bf16(static_cast<float>(rand() % 19 - 9)).bits;
        }
    }
    for (int r = 0; r < 16; r++) {
        for (int c = 0; c < 8; c++) {
            for (int k = 0; k < 16; k++) {
                want[r][c] += host::widen(bf16{a[r][k]}) * host::widen(bf16{b[c][k]});
            }
        }
    }
    const std::string error = run({1, 1, 1}, {32, 1, 1}, 2048, [&] {
        DYNAMIC_SHARED(memory);
        auto* sa = reinterpret_cast<uint16_t(*)[16]>(memory);
        auto* sb = reinterpret_cast<uint16_t(*)[16]>(memory + 512);
        const int l = static_cast<int>(threadIdx.x);
        cp_async16(&sa[l / 2][l % 2 * 8], &a[l / 2][l % 2 * 8]);
        cp_async16(&sb[l / 2 % 8][l % 2 * 8], &b[l / 2 % 8][l % 2 * 8]);
        cp_async_commit();
        cp_async_wait<0>();
        __syncthreads();
        uint32_t fa[4], fb[2];
        ldmatrix_x4(fa, &sa[l % 16][l / 16 * 8]);
        ldmatrix_x2(fb, &sb[l % 8][l / 8 % 2 * 8]);
        float d[4] = {};
        mma_16x8x16<bf16>(d, fa, fb);
        for (int i = 0; i < 4; i++) {
            got[l / 4 + i / 2 * 8][l % 4 * 2 + i % 2] = d[i];
        }
    });
    expect(error.empty() && std::memcmp(want, got, sizeof want) == 0, "a matrix product", error);
}

static void mistakes() {
    std::string error = run({1, 1, 1}, {64, 1, 1}, 0, [] {
        if (threadIdx.x < 10) {
            __syncwarp();
        }
    });
    expect(contains(error, "for ever") && contains(error, "__syncwarp"), "a warp that does not meet", error);
    void* volatile nowhere = nullptr;
    error = run({3, 1, 1}, {64, 1, 1}, 0, [&] {
        if (blockIdx.x == 2 && threadIdx.x == 7) {
            *static_cast<volatile int*>(nowhere) = 1;
        }
    });
    expect(contains(error, "block 2,0,0") && contains(error, "thread 7,0,0"), "a bad address", error);
    error = run({1, 1, 1}, {32, 1, 1}, 64, [] {
        DYNAMIC_SHARED(memory);
        static_cast<volatile unsigned char*>(memory)[64] = 1;
    });
    expect(contains(error, "out of bounds"), "past dynamic shared memory", error);
    float seen = 0;
    error = run({1, 1, 1}, {1, 1, 1}, 0, [&] {
        SHARED_ARRAY(float, memory, 4);
        alignas(16) static const float source[4] = {1, 2, 3, 4};
        cp_async16(memory, source);
        cp_async_commit();
        seen = memory[0];
    });
    expect(error.empty() && seen != seen, "a copy that was not waited for", error);
    error = run({1, 1, 1}, {1, 1, 1}, 0, [] {
        SHARED_ARRAY(float, memory, 4);
        static_cast<volatile float*>(memory)[4] = 1;
    });
    expect(contains(error, "past its end"), "past a shared array", error);
    error = run({1, 1, 1}, {32, 1, 1}, 0, [] {
        alignas(16) char bytes[32] = {};
        load_pack<float2>(bytes + 4);
    });
    expect(contains(error, "not aligned"), "a load that is not aligned", error);
}

// What one warp writes and another reads without a barrier shows in one of the two orders.
static void races() {
    std::vector<float> seen(64);
    const std::string error = run({1, 1, 1}, {64, 1, 1}, 0, [&] {
        SHARED_ARRAY(float, memory, 64);
        memory[threadIdx.x] = 1;
        seen[threadIdx.x] = memory[63 - threadIdx.x];
    });
    int missed = 0;
    for (const float v : seen) {
        missed += v != v;
    }
    expect(error.empty() && missed == 32, "a missing barrier", error);
}

static void floats() {
    for (int i = 0; i < 256; i++) {
        const float v = host::widen(fp8{static_cast<uint8_t>(i)});
        expect(v != v || host::narrow_fp8(v).bits == i, "every fp8 comes back");
    }
    expect(host::narrow_fp8(1e9f).bits == 126 && host::narrow_fp8(-460).bits == 254, "fp8 saturates");
    expect(host::widen(host::narrow_fp8(1.0625f)) == 1.0f && host::widen(host::narrow_fp8(1.1875f)) == 1.25f,
           "fp8 rounds half to even");
    expect(host::narrow_bf16(1.00390625f).bits == 0x3f80 && host::narrow_half(65520).bits == 0x7c00, "16-bit rounding");
}

static void a_kernel() {
    std::vector<float> x(3 * 64), w(64, 2.0f), out(3 * 64, NAN);
    for (size_t i = 0; i < x.size(); i++) {
        x[i] = static_cast<float>(i % 7) - 3;
    }
    const std::string error = host::launch("rms_norm_f32", {3, 1, 1}, {32, 1, 1}, 0, (const float*)x.data(),
                                           (float*)nullptr, (const float*)w.data(), out.data(), 64, 1e-6f);
    float squares = 0;
    for (int i = 64; i < 128; i++) {
        squares += x[i] * x[i];
    }
    const float want = x[70] / sqrtf(squares / 64 + 1e-6f) * 2;
    expect(error.empty() && fabsf(out[70] - want) < 1e-6f, "rms_norm", error);
}

int main() {
    collectives();
    products();
    mistakes();
    races();
    floats();
    a_kernel();
    std::printf(failures == 0 ? "the emulator does what it must\n" : "%d failures\n", failures);
    return failures != 0;
}
