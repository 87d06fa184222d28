// The queue of work, and what is done when somebody waits. See stream.h.
#include "stream.h"
#include <chrono>
#include <cstdio>
#include <deque>

namespace host {

std::recursive_mutex driver_lock;

namespace {
struct Item {
    Work work;
    Event* event;
};
std::deque<Item> waiting;
uint64_t queued = 0, done = 0;
std::string first_failure;
thread_local Stream* recording_stream = nullptr;

double now_ms() {
    using namespace std::chrono;
    return duration<double, std::milli>(steady_clock::now().time_since_epoch()).count();
}
} // namespace

void queue(Stream* stream, Work work) {
    if (stream != nullptr && stream->is_recording) {
        stream->recorded.work.push_back(std::move(work));
        return;
    }
    waiting.push_back({std::move(work), nullptr});
    queued++;
    if (waiting.size() > 20000) { // who never waits shall not fill the memory
        run_all();
    }
}

void record(Event* event) {
    waiting.push_back({nullptr, event});
    event->moment = ++queued;
}

void run_until(uint64_t moment) {
    while (done < moment && !waiting.empty()) {
        Item item = std::move(waiting.front());
        waiting.pop_front();
        if (item.event != nullptr && item.event->moment == done + 1) {
            item.event->done_at_ms = now_ms();
        }
        if (item.work != nullptr && first_failure.empty()) {
            first_failure = item.work();
            if (!first_failure.empty()) {
                std::fprintf(stderr, "emulated GPU: %s\n", first_failure.c_str());
            }
        }
        done++;
    }
}

void run_all() { run_until(queued); }
bool is_done(const Event* event) { return event->moment <= done; }
const std::string& failure() { return first_failure; }
Stream* recording() { return recording_stream; }
void set_recording(Stream* stream) { recording_stream = stream; }

} // namespace host
