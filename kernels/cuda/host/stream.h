// Streams, events and graphs of the emulated driver. See runtime.h.
//
// Queued work is not done until somebody waits: a program that reads too early, or changes what a copy still has to
// read, sees it. All streams share one queue, in the order of the calls, which every order of events allows.
#pragma once
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

namespace host {

// One at a time in the emulated driver; taken by every exported function.
extern std::recursive_mutex driver_lock;

// What a piece of work returns: empty, or what went wrong.
using Work = std::function<std::string()>;

struct Graph {
    std::vector<Work> work;
};

struct Stream {
    bool is_recording = false;
    bool is_broken = false; // did something that cannot be recorded
    Graph recorded;
};

struct Event {
    uint64_t moment = 0; // passed when that much of the queue is done
    double done_at_ms = 0;
};

// Queues work, or adds it to the recording.
void queue(Stream* stream, Work work);
void record(Event* event);
// Does queued work up to a moment, or all of it.
void run_until(uint64_t moment);
void run_all();
bool is_done(const Event* event);
// The first failure, for ever after, as on a real device; empty when there was none.
const std::string& failure();
// The stream that the calling thread records, if any: waiting and allocating are then errors.
Stream* recording();
void set_recording(Stream* stream);

} // namespace host
