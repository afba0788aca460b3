// A device made of a thread, for the seam of csrc/engine/device.h. Its sums come late;
// until then they are NaN. It refuses memory that was neither pinned nor its own.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <deque>
#include <functional>
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
  std::function<void()> work;
  std::atomic<bool> done{false};
};

struct State {
  std::mutex mutex;
  std::map<const char*, std::size_t> reachable;
  std::deque<Sum*> queue;
  std::atomic<std::int64_t> sums{0};
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
    next->work();
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

template <typename T>
std::function<void()> prepared(const codedgrad::ops::DeviceSum& sum) {
  const std::size_t bytes = sum.count * sizeof(T);
  bool good = reaches(sum.out, bytes) && (!sum.out2 || reaches(sum.out2, bytes));
  std::vector<const T*> inputs;
  for (int i = 0; i < sum.inputs_count; ++i) {
    good = good && reaches(sum.inputs[i], bytes);
    inputs.push_back(static_cast<const T*>(sum.inputs[i]));
  }
  if (!good) return nullptr;
  auto *out = static_cast<T*>(sum.out), *out2 = static_cast<T*>(sum.out2);
  constexpr T kNan = std::numeric_limits<T>::quiet_NaN();
  std::fill(out, out + sum.count, kNan);
  if (out2 != nullptr) std::fill(out2, out2 + sum.count, kNan);
  const std::vector<int> program(sum.program, sum.program + sum.tokens);
  return [=, count = sum.count] {
    codedgrad::ops::tree_sum<T>(program, inputs, out, out2, count);
  };
}

inline int start_sum(const codedgrad::ops::DeviceSum* sum, void** ticket) {
  auto work = sum->is_double ? prepared<double>(*sum) : prepared<float>(*sum);
  if (!work) return kRefused;
  auto* job = new Sum;
  job->work = std::move(work);
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
  out.take_error = [] { return 0; };
  return out;
}

}  // namespace late_device
