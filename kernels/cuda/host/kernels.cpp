// The table of kernels by name. See runtime.h.
#include "kernels.h"
#include <map>

namespace host {
namespace {
std::map<std::string, Prepare>& table() {
    static std::map<std::string, Prepare> kernels;
    return kernels;
}
} // namespace

void add_kernel(const char* name, Prepare prepare) { table()[name] = std::move(prepare); }

const Prepare* find_kernel(const std::string& name) {
    const auto found = table().find(name);
    return found == table().end() ? nullptr : &found->second;
}

} // namespace host
