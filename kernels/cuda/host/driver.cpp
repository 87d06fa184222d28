// The functions of libcuda.so.1 that Millgate calls, on the CPU. A test tool only: it is never shipped.
//
// Handles are pointers to our own structures. Errors of queued work come back from every later call that waits, as they
// do on a device. The numbers of errors and attributes are CUDA's.
#include "kernels.h"
#include "memory.h"
#include "stream.h"
#include <cstdlib>
#include <cstring>
#include <set>

using host::Event;
using host::Stream;

#define API extern "C" __attribute__((visibility("default"))) int
#define LOCKED const std::lock_guard<std::recursive_mutex> guard(host::driver_lock)

namespace {

enum : int {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
};

struct Function {
    std::string name;
    const host::Prepare* prepare;
    unsigned shared_bytes = 48 << 10;
};

bool is_started = false;
thread_local bool has_context = false;
int context; // its address is the handle
std::set<Event*> events;

// What a test wants the driver to say otherwise than usual.
int told(const char* variable, int usual) {
    const char* text = std::getenv(variable);
    return text == nullptr ? usual : std::atoi(text);
}

int after_wait() { return host::failure().empty() ? SUCCESS : ILLEGAL_ADDRESS; }

// Waiting, allocating and freeing are not allowed while this thread records.
bool spoils_recording() {
    if (host::recording() != nullptr) {
        host::recording()->is_broken = true;
        return true;
    }
    return false;
}

} // namespace

API cuInit(unsigned) {
    if (std::getenv("MILLGATE_EMULATED_GPU_MISSING") != nullptr) {
        return 100;
    }
    is_started = true;
    return SUCCESS;
}
API cuDriverGetVersion(int* version) {
    *version = told("MILLGATE_EMULATED_DRIVER", 13000);
    return SUCCESS;
}
API cuDeviceGetCount(int* count) {
    *count = 1;
    return is_started ? SUCCESS : NOT_INITIALIZED;
}
API cuDeviceGet(int* device, int ordinal) {
    *device = ordinal;
    return ordinal == 0 ? SUCCESS : INVALID_DEVICE;
}
API cuDeviceGetName(char* name, int length, int) {
    std::strncpy(name, "Millgate emulated device", static_cast<size_t>(length));
    return SUCCESS;
}
API cuDeviceTotalMem_v2(size_t* bytes, int) {
    *bytes = host::total_bytes();
    return SUCCESS;
}
API cuDeviceGetAttribute(int* value, int attribute, int) {
    switch (attribute) {
    case 75: // compute capability, major
        *value = told("MILLGATE_EMULATED_CAPABILITY", 90) / 10;
        return SUCCESS;
    case 76:
        *value = told("MILLGATE_EMULATED_CAPABILITY", 90) % 10;
        return SUCCESS;
    case 16: // multiprocessors: few, so that splits of work by them are exercised on small inputs
        *value = 4;
        return SUCCESS;
    case 97: // shared memory a block may ask for
        *value = 227 << 10;
        return SUCCESS;
    default:
        return INVALID_VALUE;
    }
}
API cuDevicePrimaryCtxRetain(void** handle, int) {
    *handle = &context;
    return SUCCESS;
}
API cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
API cuCtxSetCurrent(void* handle) {
    has_context = handle == &context;
    return has_context || handle == nullptr ? SUCCESS : INVALID_CONTEXT;
}

API cuMemGetInfo_v2(size_t* free, size_t* total) {
    LOCKED;
    *free = host::free_bytes();
    *total = host::total_bytes();
    return has_context ? SUCCESS : INVALID_CONTEXT;
}
API cuMemAlloc_v2(uint64_t* address, size_t bytes) {
    LOCKED;
    if (spoils_recording()) {
        return CAPTURE_UNSUPPORTED;
    }
    if (!has_context || bytes == 0) {
        return has_context ? INVALID_VALUE : INVALID_CONTEXT;
    }
    *address = host::allocate(bytes);
    return *address == 0 ? OUT_OF_MEMORY : SUCCESS;
}
API cuMemFree_v2(uint64_t address) {
    LOCKED;
    if (spoils_recording()) {
        return CAPTURE_UNSUPPORTED;
    }
    host::run_all();
    return host::release(address) ? after_wait() : INVALID_VALUE;
}
API cuMemHostAlloc(void** address, size_t bytes, unsigned) {
    LOCKED;
    *address = host::allocate_pinned(bytes);
    return *address == nullptr ? OUT_OF_MEMORY : SUCCESS;
}
API cuMemFreeHost(void* address) {
    LOCKED;
    host::run_all();
    return host::release_pinned(address) ? SUCCESS : INVALID_VALUE;
}

API cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* stream) {
    LOCKED;
    if (!host::is_device(to, bytes)) {
        return INVALID_VALUE;
    }
    void* target = reinterpret_cast<void*>(to);
    if (host::is_pinned(from, bytes)) {
        host::queue(static_cast<Stream*>(stream), [=] { return std::memcpy(target, from, bytes), std::string(); });
        return SUCCESS;
    }
    // Pageable memory is read before the call returns.
    const std::string copy(static_cast<const char*>(from), bytes);
    host::queue(static_cast<Stream*>(stream), [=] { return std::memcpy(target, copy.data(), bytes), std::string(); });
    return SUCCESS;
}
API cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* stream) {
    LOCKED;
    if (!host::is_device(from, bytes)) {
        return INVALID_VALUE;
    }
    const void* source = reinterpret_cast<const void*>(from);
    host::queue(static_cast<Stream*>(stream), [=] { return std::memcpy(to, source, bytes), std::string(); });
    return SUCCESS;
}
API cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void* stream) {
    LOCKED;
    if (!host::is_device(to, bytes) || !host::is_device(from, bytes)) {
        return INVALID_VALUE;
    }
    host::queue(static_cast<Stream*>(stream), [=] {
        std::memmove(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), bytes);
        return std::string();
    });
    return SUCCESS;
}
API cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void* stream) {
    LOCKED;
    if (!host::is_device(to, bytes)) {
        return INVALID_VALUE;
    }
    host::queue(static_cast<Stream*>(stream),
                [=] { return std::memset(reinterpret_cast<void*>(to), value, bytes), std::string(); });
    return SUCCESS;
}

API cuStreamCreate(void** handle, unsigned) {
    LOCKED;
    *handle = new Stream;
    return SUCCESS;
}
API cuStreamDestroy_v2(void* handle) {
    LOCKED;
    host::run_all();
    delete static_cast<Stream*>(handle);
    return SUCCESS;
}
API cuStreamSynchronize(void* handle) {
    LOCKED;
    if (static_cast<Stream*>(handle)->is_recording) {
        spoils_recording();
        return CAPTURE_UNSUPPORTED;
    }
    host::run_all();
    return after_wait();
}
API cuStreamBeginCapture_v2(void* handle, int) {
    LOCKED;
    auto* stream = static_cast<Stream*>(handle);
    if (stream->is_recording || host::recording() != nullptr) {
        return CAPTURE_UNSUPPORTED;
    }
    *stream = Stream{};
    stream->is_recording = true;
    host::set_recording(stream);
    return SUCCESS;
}
API cuStreamEndCapture(void* handle, void** graph) {
    LOCKED;
    auto* stream = static_cast<Stream*>(handle);
    host::set_recording(nullptr);
    stream->is_recording = false;
    if (stream->is_broken) {
        *graph = nullptr;
        return CAPTURE_INVALIDATED;
    }
    *graph = new host::Graph(std::move(stream->recorded));
    return SUCCESS;
}
API cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
    *executable = new host::Graph(*static_cast<host::Graph*>(graph));
    return SUCCESS;
}
API cuGraphDestroy(void* graph) {
    delete static_cast<host::Graph*>(graph);
    return SUCCESS;
}
API cuGraphExecDestroy(void* executable) {
    delete static_cast<host::Graph*>(executable);
    return SUCCESS;
}
API cuGraphLaunch(void* executable, void* stream) {
    LOCKED;
    for (const host::Work& work : static_cast<host::Graph*>(executable)->work) {
        host::queue(static_cast<Stream*>(stream), work);
    }
    return SUCCESS;
}

API cuEventCreate(void** handle, unsigned) {
    LOCKED;
    auto* event = new Event;
    events.insert(event);
    *handle = event;
    return SUCCESS;
}
API cuEventDestroy_v2(void* handle) {
    LOCKED;
    host::run_all(); // the queue may still name it
    events.erase(static_cast<Event*>(handle));
    delete static_cast<Event*>(handle);
    return SUCCESS;
}
API cuEventRecord(void* handle, void*) {
    LOCKED;
    if (spoils_recording()) { // a real one becomes part of the graph; ours waits for the host, which a graph cannot
        return CAPTURE_UNSUPPORTED;
    }
    host::record(static_cast<Event*>(handle));
    return SUCCESS;
}
// The first question is answered with "not yet", as a busy device does; asking makes progress.
API cuEventQuery(void* handle) {
    LOCKED;
    auto* event = static_cast<Event*>(handle);
    if (!host::is_done(event)) {
        host::run_until(event->moment);
        return NOT_READY;
    }
    return after_wait();
}
API cuEventSynchronize(void* handle) {
    LOCKED;
    if (spoils_recording()) {
        return CAPTURE_UNSUPPORTED;
    }
    host::run_until(static_cast<Event*>(handle)->moment);
    return after_wait();
}
API cuEventElapsedTime_v2(float* ms, void* start, void* end) {
    LOCKED;
    const auto *a = static_cast<Event*>(start), *b = static_cast<Event*>(end);
    if (!host::is_done(a) || !host::is_done(b)) {
        return NOT_READY;
    }
    *ms = static_cast<float>(b->done_at_ms - a->done_at_ms);
    return SUCCESS;
}

// All kernels are in this library; an image only has to be there.
API cuModuleLoadData(void** module, const void*) {
    *module = &context;
    return has_context ? SUCCESS : INVALID_CONTEXT;
}
API cuModuleUnload(void*) { return SUCCESS; }
API cuModuleGetFunction(void** function, void*, const char* name) {
    LOCKED;
    const host::Prepare* prepare = host::find_kernel(name);
    if (prepare == nullptr) {
        return NOT_FOUND;
    }
    *function = new Function{name, prepare};
    return SUCCESS;
}
API cuFuncSetAttribute(void* function, int attribute, int value) {
    LOCKED;
    if (attribute != 8 || value < 0 || value > 227 << 10) {
        return INVALID_VALUE;
    }
    static_cast<Function*>(function)->shared_bytes = static_cast<unsigned>(value);
    return SUCCESS;
}
API cuLaunchKernel(void* handle, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared_bytes, void* stream, void** arguments, void**) {
    LOCKED;
    const auto* function = static_cast<Function*>(handle);
    const uint64_t threads = uint64_t{bx} * by * bz;
    if (gx == 0 || gy == 0 || gz == 0 || gx > 0x7fffffff || gy > 65535 || gz > 65535 || threads == 0 ||
        threads > 1024 || shared_bytes > function->shared_bytes) {
        return INVALID_VALUE;
    }
    const host::Launch launch{function->name, {gx, gy, gz}, {bx, by, bz}, shared_bytes, (*function->prepare)(arguments)};
    host::queue(static_cast<Stream*>(stream), [launch] { return host::run(launch); });
    return SUCCESS;
}

API cuGetErrorName(int error, const char** name) {
    static const struct {
        int error;
        const char* name;
    } NAMES[] = {{INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE"},
                 {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"},
                 {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT"},
                 {NOT_FOUND, "CUDA_ERROR_NOT_FOUND"},
                 {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS"},
                 {CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"},
                 {CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"}};
    for (const auto& known : NAMES) {
        if (known.error == error) {
            *name = known.name;
            return SUCCESS;
        }
    }
    *name = nullptr;
    return INVALID_VALUE;
}
// The text of failed work says more here than a real driver can.
API cuGetErrorString(int error, const char** text) {
    *text = error == ILLEGAL_ADDRESS ? host::failure().c_str() : "emulated";
    return SUCCESS;
}
