#include "engine/device_sums.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <thread>

#include "engine/clock.h"
#include "ops/cpu/sums.h"

namespace codedgrad {
namespace {

constexpr double kPatienceS = 5.0;  // for a sum that is under way, at the end
constexpr int kTrials = 3;
constexpr std::size_t kSmallest = std::size_t{64} << 10;  // bytes of a trial

[[noreturn]] void refused(const char* what, int answer) {
  throw DeviceRefused("the device answered " + std::to_string(answer) + " when asked " +
                      what +
                      "; an earlier kernel may have failed: run with "
                      "CUDA_LAUNCH_BLOCKING=1 to see which, or with "
                      "CODEDGRAD_GPU_DECODE=0 to sum on the processor");
}

void leak(std::vector<BufferRef> keep) { new std::vector<BufferRef>(std::move(keep)); }

// Thirds of integers, so that another order of additions gives other bits.
template <typename T>
void fill(T* values, std::size_t count, int which) {
  for (std::size_t e = 0; e < count; ++e) {
    values[e] = static_cast<T>((e * (which + 1)) % 251) / T{3};
  }
}

SumProgram flat(int inputs) {
  SumProgram program{0};
  for (int i = 1; i < inputs; ++i) program.insert(program.end(), {i, ops::kAdd});
  return program;
}

// Rows in pinned memory, and two places for the sum, as in a step.
template <typename T>
struct Trial {
  Trial(int inputs, std::size_t count, BufferPool* pool) {
    for (int i = 0; i < inputs + 2; ++i) {
      memory.push_back(pool->get(count * sizeof(T), Memory::kPinned));
      auto* at = reinterpret_cast<T*>(memory.back()->data());
      fill(at, count, i);
      if (i >= inputs) continue;
      rows.push_back(at);
      places.push_back(at);
    }
    sum = reinterpret_cast<T*>(memory[inputs]->data());
    copy = reinterpret_cast<T*>(memory[inputs + 1]->data());
    pinned = std::all_of(memory.begin(), memory.end(),
                         [](const BufferRef& b) { return b->reachable(); });
  }
  std::vector<BufferRef> memory;
  std::vector<const T*> rows;
  std::vector<const void*> places;  // of the rows
  T *sum, *copy;
  bool pinned;
};

ops::DeviceSum described(int device, bool is_double, const SumProgram& program,
                         const std::vector<const void*>& inputs, void* out, void* out2,
                         std::size_t count) {
  return {device,
          is_double,
          program.data(),
          static_cast<int>(program.size()),
          static_cast<int>(inputs.size()),
          inputs.data(),
          out,
          out2,
          count};
}

}  // namespace

DeviceSums::~DeviceSums() {
  const double until = now_s() + kPatienceS;
  for (Sum& sum : under_way_) {
    int answer = calls_.not_ready;
    while ((answer = calls_.sum_done(sum.ticket)) == calls_.not_ready &&
           now_s() < until) {
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
    // The device may still read and write these: they outlive the session.
    if (answer != 0) leak(std::move(sum.keep));
  }
}

void DeviceSums::start(const SumProgram& program,
                       const std::vector<const void*>& inputs, void* out, void* out2,
                       std::size_t count, DType dtype, std::vector<BufferRef> keep,
                       std::function<void()> done) {
  const ops::DeviceSum what = described(calls_.device, dtype == DType::kFloat64,
                                        program, inputs, out, out2, count);
  void* ticket = nullptr;
  const int answer = calls_.start_sum(&what, &ticket);
  if (answer == 0) {
    under_way_.push_back({ticket, std::move(keep), std::move(done)});
  } else {
    leak(std::move(keep));  // it may be at work on them all the same
    if (refused_ == 0) refused_ = answer;
  }
}

bool DeviceSums::poll() {
  if (refused_ != 0) refused("to sum rows", refused_);
  bool any = false;
  while (!under_way_.empty()) {  // the device does them in turn
    const int answer = calls_.sum_done(under_way_.front().ticket);
    if (answer == calls_.not_ready) break;
    Sum sum = std::move(under_way_.front());
    under_way_.pop_front();
    if (answer != 0) {
      leak(std::move(sum.keep));
      refused("whether a sum of rows is done", answer);
    }
    sum.done();
    any = true;
  }
  return any;
}

void DeviceSums::sum_now(const ops::DeviceSum& what,
                         const std::vector<BufferRef>& keep) const {
  const double until = now_s() + kPatienceS;
  void* ticket = nullptr;
  int answer = calls_.start_sum(&what, &ticket);
  if (answer != 0) {
    leak(keep);
    refused("to sum rows", answer);
  }
  while ((answer = calls_.sum_done(ticket)) == calls_.not_ready) {
    if (now_s() < until) continue;
    leak(keep);
    throw std::runtime_error("the device did not finish a sum in " +
                             std::to_string(static_cast<int>(kPatienceS)) +
                             " s; run with CODEDGRAD_GPU_DECODE=0");
  }
  if (answer == 0) return;
  leak(keep);
  refused("whether a sum of rows is done", answer);
}

template <typename T>
void DeviceSums::check_type(const SumProgram& program, int inputs,
                            BufferPool* pool) const {
  constexpr std::size_t kCount = 4099;  // the last few are no whole pack
  const Trial<T> trial(inputs, kCount, pool);
  if (!trial.pinned) {
    throw DeviceRefused(
        "no memory could be pinned to compare the device's sums with the processor's; "
        "raise the limit of locked memory (ulimit -l), or run with "
        "CODEDGRAD_GPU_DECODE=0");
  }
  std::vector<T> want(kCount);
  ops::tree_sum<T>(program, trial.rows, want.data(), nullptr, kCount);
  sum_now(described(calls_.device, sizeof(T) == 8, program, trial.places, trial.sum,
                    trial.copy, kCount),
          trial.memory);
  const std::size_t bytes = kCount * sizeof(T);
  if (std::memcmp(trial.sum, want.data(), bytes) != 0 ||
      std::memcmp(trial.copy, want.data(), bytes) != 0) {
    throw std::runtime_error(
        "the device's sums are not those of the processor; build the kernels anew "
        "(CODEDGRAD_CUDA=1), or run with CODEDGRAD_GPU_DECODE=0");
  }
}

void DeviceSums::check(BufferPool* pool) const {
  constexpr int kAdd = ops::kAdd;
  const SumProgram deep{0, 1,    kAdd, 2, 3,    kAdd, kAdd, 4,
                        5, kAdd, 6,    7, kAdd, kAdd, kAdd};
  for (const SumProgram& program : {flat(3), deep}) {
    const int inputs = static_cast<int>(program.size() + 1) / 2;
    check_type<float>(program, inputs, pool);
    check_type<double>(program, inputs, pool);
  }
}

std::size_t DeviceSums::faster_from(int inputs, std::size_t most,
                                    BufferPool* pool) const {
  constexpr std::size_t kNever = std::numeric_limits<std::size_t>::max();
  const SumProgram program = flat(inputs);
  std::size_t from = kNever;
  for (std::size_t bytes = kSmallest; bytes > 0;
       bytes = bytes < most ? std::min(bytes * 4, most) : 0) {
    const std::size_t count = bytes / sizeof(float);
    const Trial<float> trial(inputs, count, pool);
    if (!trial.pinned) return kNever;
    double theirs = std::numeric_limits<double>::infinity(), ours = theirs;
    for (int i = 0; i <= kTrials; ++i) {  // the first only warms up
      const double begin = now_s();
      sum_now(described(calls_.device, false, program, trial.places, trial.sum,
                        trial.copy, count),
              trial.memory);
      const double between = now_s();
      ops::tree_sum<float>(program, trial.rows, trial.sum, trial.copy, count);
      if (i == 0) continue;
      theirs = std::min(theirs, between - begin);
      ours = std::min(ours, now_s() - between);
    }
    from = theirs < ours ? std::min(from, bytes) : kNever;
  }
  return from;
}

}  // namespace codedgrad
