// A device made of a thread, for the seam of csrc/engine/device.h. Its sums come late;
// until then they are NaN. It refuses memory that was neither pinned nor its own.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <deque>
#include <limits>
#include <map>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "engine/device.h"
#include "ops/cpu/sums.h"

namespace late_device {

constexpr int kNotReady = 600, kRefused = 700;

struct Sum {
  std::vector<int> program;
  std::vector<const float*> inputs;
  float *out, *out2;
  std::size_t count;
  std::atomic<bool> done{false};
};

struct State {
  std::mutex mutex;
  std::map<const char*, std::size_t> reachable;
  std::deque<Sum*> queue;
  std::int64_t sums = 0;
};

inline State& state() {
  static auto* all = new State;  // outlives the thread
  return *all;
}

inline void run() {
  std::mt19937_64 random(5);
  while (true) {
    Sum* next = nullptr;
    {
      std::lock_guard<std::mutex> lock(state().mutex);
      if (!state().queue.empty()) {
        next = state().queue.front();
        state().queue.pop_front();
      }
    }
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 100));
    if (next == nullptr) continue;
    codedgrad::ops::tree_sum<float>(next->program, next->inputs, next->out, next->out2,
                                    next->count);
    next->done.store(true);
  }
}

inline bool reaches(const void* place, std::size_t bytes) {
  std::lock_guard<std::mutex> lock(state().mutex);
  const auto* begin = static_cast<const char*>(place);
  auto after = state().reachable.upper_bound(begin);
  if (after == state().reachable.begin()) return false;
  --after;
  return begin + bytes <= after->first + after->second;
}

inline int add_range(void* place, std::size_t bytes) {
  std::lock_guard<std::mutex> lock(state().mutex);
  state().reachable[static_cast<char*>(place)] = bytes;
  return 0;
}

inline int drop_range(void* place) {
  std::lock_guard<std::mutex> lock(state().mutex);
  return state().reachable.erase(static_cast<char*>(place)) == 1 ? 0 : kRefused;
}

inline int pin(void* place, std::size_t bytes, unsigned) {
  return add_range(place, bytes);
}

inline int allocate(void** place, std::size_t bytes) {
  *place = std::malloc(bytes);
  return add_range(*place, bytes);
}

inline int release(void* place) {
  const int answer = drop_range(place);
  std::free(place);
  return answer;
}

inline int start_sum(const codedgrad::ops::DeviceSum* sum, void** ticket) {
  const std::size_t bytes = sum->count * sizeof(float);
  bool good = !sum->is_double && reaches(sum->out, bytes) &&
              (sum->out2 == nullptr || reaches(sum->out2, bytes));
  auto* job = new Sum;
  job->program.assign(sum->program, sum->program + sum->tokens);
  for (int i = 0; i < sum->inputs_count; ++i) {
    good = good && reaches(sum->inputs[i], bytes);
    job->inputs.push_back(static_cast<const float*>(sum->inputs[i]));
  }
  job->out = static_cast<float*>(sum->out);
  job->out2 = static_cast<float*>(sum->out2);
  job->count = sum->count;
  if (!good) return delete job, kRefused;
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  std::fill(job->out, job->out + job->count, kNan);
  if (job->out2 != nullptr) std::fill(job->out2, job->out2 + job->count, kNan);
  *ticket = job;
  std::lock_guard<std::mutex> lock(state().mutex);
  state().queue.push_back(job);
  ++state().sums;
  return 0;
}

inline int sum_done(void* ticket) {
  auto* job = static_cast<Sum*>(ticket);
  if (!job->done.load()) return kNotReady;
  delete job;
  return 0;
}

inline codedgrad::DeviceCalls calls() {
  static std::once_flag once;
  std::call_once(once, [] { std::thread(run).detach(); });
  codedgrad::DeviceCalls out;
  out.not_ready = kNotReady;
  out.set_device = [](int) { return 0; };
  out.pin = pin;
  out.unpin = drop_range;
  out.query = [](void*) { return 0; };
  out.allocate = allocate;
  out.release = release;
  out.start_sum = start_sum;
  out.sum_done = sum_done;
  return out;
}

}  // namespace late_device
