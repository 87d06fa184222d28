// Kernels by name, for the emulated driver and for C++ tests. See runtime.h.
#pragma once
#include "primitives.h"

namespace host {

const Prepare* find_kernel(const std::string& name);

// Launches a kernel of any .cu file by name; an empty string, or what went wrong. Arguments have the kernel's own types.
template <typename... A> std::string launch(const char* name, dim3 grid, dim3 block, size_t shared_bytes, A... arguments) {
    const Prepare* prepare = find_kernel(name);
    if (prepare == nullptr) {
        return std::string("no kernel is called ") + name;
    }
    void* pointers[] = {&arguments...};
    return run(Launch{name, grid, block, shared_bytes, (*prepare)(pointers)});
}

} // namespace host
