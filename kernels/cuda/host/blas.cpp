// The functions of libcublas.so.13 and libcublasLt.so.13 that Millgate calls, on the CPU. A test tool only: it is never
// shipped. Products are queued and recorded like kernels; sums are f32, in an order of our own.
#include "memory.h"
#include "stream.h"
#include "types.h"
#include <cstdlib>
#include <cstring>
#include <vector>

#define API extern "C" __attribute__((visibility("default"))) int
#define LOCKED const std::lock_guard<std::recursive_mutex> guard(host::driver_lock)

namespace {

enum : int { SUCCESS = 0, INVALID_VALUE = 7, EXECUTION_FAILED = 13, NOT_SUPPORTED = 15 };
enum : int { R_32F = 0, R_16F = 2, R_16BF = 14 };

struct Layout {
    int type;
    uint64_t rows, cols;
    int64_t stride;
};
struct Product {
    bool is_a_transposed = false, is_b_transposed = false;
};
struct Handle {
    void* stream = nullptr;
};
// `runs`: of how many runs a sum is added up, so that algorithms differ in how they round, as real ones do.
struct Algorithm {
    uint64_t magic, runs, is_picky, unused[5];
};
constexpr uint64_t MAGIC = 0x6d696c6c67617465;
struct Preference {
    uint32_t reductions = 7, alignment = 256;
};
struct Heuristic {
    Algorithm algorithm;
    size_t workspace_bytes;
    int state;
    float waves;
    int reserved[4];
};

size_t width(int type) { return type == R_32F ? 4 : 2; }
float read(const char* at, int type) {
    if (type == R_32F) {
        float v;
        std::memcpy(&v, at, 4);
        return v;
    }
    uint16_t bits;
    std::memcpy(&bits, at, 2);
    return type == R_16F ? host::widen(half{bits}) : host::widen(bf16{bits});
}
void write(char* at, int type, float v) {
    const uint16_t bits = type == R_16F ? host::narrow_half(v).bits : host::narrow_bf16(v).bits;
    std::memcpy(at, type == R_32F ? static_cast<const void*>(&v) : &bits, width(type));
}

// A row of a matrix, of which rows have `stride` elements.
std::vector<float> widened(const char* matrix, const Layout& layout, uint64_t col) {
    std::vector<float> out(layout.rows);
    const char* at = matrix + col * static_cast<uint64_t>(layout.stride) * width(layout.type);
    for (uint64_t i = 0; i < layout.rows; i++) {
        out[i] = read(at + i * width(layout.type), layout.type);
    }
    return out;
}

// Every column lies on the device, is as long as it says, and starts where the type allows.
bool is_there(const void* at, const Layout& layout) {
    const size_t end = ((layout.cols - 1) * static_cast<uint64_t>(layout.stride) + layout.rows) * width(layout.type);
    return layout.stride >= static_cast<int64_t>(layout.rows) && host::is_device(reinterpret_cast<uint64_t>(at), end) &&
           reinterpret_cast<uint64_t>(at) % width(layout.type) == 0;
}

// What an algorithm refuses although it was recommended for more columns.
bool allows(const Algorithm& algorithm, const Layout& la, const Layout& lb) {
    return algorithm.magic == MAGIC && (algorithm.is_picky == 0 || lb.cols >= 4 || la.cols % 2 == 0);
}

// d = aT * b, all column-major.
int multiply(void* stream, float alpha, const void* a, Layout la, const void* b, Layout lb, float beta, void* d,
             Layout ld, uint64_t runs) {
    if (la.rows != lb.rows || ld.rows != la.cols || ld.cols != lb.cols || la.type != lb.type || beta != 0 ||
        (ld.type != la.type && ld.type != R_32F)) {
        return INVALID_VALUE;
    }
    if (!is_there(a, la) || !is_there(b, lb) || !is_there(d, ld)) {
        return EXECUTION_FAILED;
    }
    host::queue(static_cast<host::Stream*>(stream), [=] {
        std::vector<std::vector<float>> rows;
        for (uint64_t c = 0; c < lb.cols; c++) {
            rows.push_back(widened(static_cast<const char*>(b), lb, c));
        }
        for (uint64_t r = 0; r < la.cols; r++) {
            const std::vector<float> weights = widened(static_cast<const char*>(a), la, r);
            for (uint64_t c = 0; c < lb.cols; c++) {
                float sum = 0;
                const float *x = rows[c].data(), *w = weights.data();
                for (uint64_t run = 0; run < runs; run++) {
                    float part = 0;
                    for (uint64_t i = la.rows * run / runs; i < la.rows * (run + 1) / runs; i++) {
                        part += x[i] * w[i];
                    }
                    sum += part;
                }
                write(static_cast<char*>(d) + (c * static_cast<uint64_t>(ld.stride) + r) * width(ld.type), ld.type,
                      sum * alpha);
            }
        }
        return std::string();
    });
    return SUCCESS;
}

bool is_known(int type) { return type == R_32F || type == R_16F || type == R_16BF; }

} // namespace

API cublasCreate_v2(void** handle) {
    *handle = new Handle;
    return SUCCESS;
}
API cublasDestroy_v2(void* handle) {
    delete static_cast<Handle*>(handle);
    return SUCCESS;
}
API cublasSetStream_v2(void* handle, void* stream) {
    static_cast<Handle*>(handle)->stream = stream;
    return SUCCESS;
}
API cublasSetWorkspace_v2(void*, void* workspace, size_t bytes) {
    LOCKED;
    return host::is_device(reinterpret_cast<uint64_t>(workspace), bytes) ? SUCCESS : INVALID_VALUE;
}
API cublasGemmEx(void* handle, int a_op, int b_op, int m, int n, int k, const float* alpha, const void* a, int a_type,
                 int a_stride, const void* b, int b_type, int b_stride, const float* beta, void* c, int c_type,
                 int c_stride, int compute, int) {
    LOCKED;
    if (a_op != 1 || b_op != 0 || compute != 68 || m <= 0 || n <= 0 || k <= 0) {
        return NOT_SUPPORTED;
    }
    const auto um = static_cast<uint64_t>(m), un = static_cast<uint64_t>(n), uk = static_cast<uint64_t>(k);
    return multiply(static_cast<Handle*>(handle)->stream, *alpha, a, {a_type, uk, um, a_stride}, b,
                    {b_type, uk, un, b_stride}, *beta, c, {c_type, um, un, c_stride}, n == 1 ? 5 : 2);
}

API cublasLtCreate(void** handle) {
    *handle = new Handle;
    return SUCCESS;
}
API cublasLtDestroy(void* handle) {
    delete static_cast<Handle*>(handle);
    return SUCCESS;
}
API cublasLtMatmulDescCreate(void** desc, int compute, int scale) {
    *desc = new Product;
    return compute == 68 && scale == R_32F ? SUCCESS : NOT_SUPPORTED;
}
API cublasLtMatmulDescSetAttribute(void* desc, int attribute, const void* value, size_t bytes) {
    int operation;
    if ((attribute != 3 && attribute != 4) || bytes != sizeof operation) {
        return INVALID_VALUE;
    }
    std::memcpy(&operation, value, bytes);
    auto* product = static_cast<Product*>(desc);
    (attribute == 3 ? product->is_a_transposed : product->is_b_transposed) = operation == 1;
    return SUCCESS;
}
API cublasLtMatmulDescDestroy(void* desc) {
    delete static_cast<Product*>(desc);
    return SUCCESS;
}
API cublasLtMatrixLayoutCreate(void** layout, int type, uint64_t rows, uint64_t cols, int64_t stride) {
    *layout = new Layout{type, rows, cols, stride};
    return is_known(type) && rows > 0 && cols > 0 ? SUCCESS : INVALID_VALUE;
}
API cublasLtMatrixLayoutDestroy(void* layout) {
    delete static_cast<Layout*>(layout);
    return SUCCESS;
}
API cublasLtMatmulPreferenceCreate(void** preference) {
    *preference = new Preference;
    return SUCCESS;
}
API cublasLtMatmulPreferenceSetAttribute(void* preference, int attribute, const void* value, size_t bytes) {
    auto* wanted = static_cast<Preference*>(preference);
    const bool is_mask_or_alignment = attribute == 3 || (attribute >= 5 && attribute <= 8);
    if (is_mask_or_alignment && bytes == 4) {
        std::memcpy(attribute == 3 ? &wanted->reductions : &wanted->alignment, value, bytes);
        return SUCCESS;
    }
    return attribute == 1 && bytes == 8 ? SUCCESS : INVALID_VALUE;
}
API cublasLtMatmulPreferenceDestroy(void* preference) {
    delete static_cast<Preference*>(preference);
    return SUCCESS;
}
// Knows none for an odd number of inputs, so that the way without an algorithm is exercised. What it likes best depends
// on the number of columns, on alignment and on how sums may be split; what it likes less allows more.
API cublasLtMatmulAlgoGetHeuristic(void*, void*, void* a, void* b, void*, void*, void* preference, int wanted,
                                   Heuristic* found, int* count) {
    const auto *la = static_cast<Layout*>(a), *lb = static_cast<Layout*>(b);
    const auto* limits = static_cast<Preference*>(preference);
    *count = 0;
    if (wanted < 1 || la->rows % 2 == 1) {
        return NOT_SUPPORTED;
    }
    const bool is_split = limits->reductions != 0 && lb->cols <= 64;
    const uint64_t runs = (is_split ? 4 : lb->cols <= 32 ? 1 : 3) + (limits->alignment < 64 ? 0 : 2);
    for (const Algorithm& algorithm : {Algorithm{MAGIC, runs, 1, {}}, Algorithm{MAGIC, 1, 0, {}}}) {
        if (*count < wanted) {
            found[(*count)++] = Heuristic{algorithm, 1 << 20, SUCCESS, 1, {}};
        }
    }
    return SUCCESS;
}
API cublasLtMatmulAlgoCheck(void*, void*, void* a, void* b, void*, void*, const Algorithm* algorithm, Heuristic* found) {
    *found = Heuristic{*algorithm, 1 << 20, SUCCESS, 1, {}};
    return allows(*algorithm, *static_cast<Layout*>(a), *static_cast<Layout*>(b)) ? SUCCESS : NOT_SUPPORTED;
}
API cublasLtMatmul(void*, void* desc, const float* alpha, const void* a, void* la, const void* b, void* lb,
                   const float* beta, const void* c, void* lc, void* d, void* ld, const Algorithm* algorithm,
                   void* workspace, size_t workspace_bytes, void* stream) {
    LOCKED;
    const auto* product = static_cast<Product*>(desc);
    const Layout &a_layout = *static_cast<Layout*>(la), &b_layout = *static_cast<Layout*>(lb);
    if (!product->is_a_transposed || product->is_b_transposed || c != d || lc != ld || algorithm->magic != MAGIC ||
        !host::is_device(reinterpret_cast<uint64_t>(workspace), workspace_bytes)) {
        return INVALID_VALUE;
    }
    if (!allows(*algorithm, a_layout, b_layout)) {
        return NOT_SUPPORTED;
    }
    return multiply(stream, *alpha, a, a_layout, b, b_layout, *beta, d, *static_cast<Layout*>(ld), algorithm->runs);
}
