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
  throw std::runtime_error("the device answered " + std::to_string(answer) +
                           " when asked " + what +
                           "; an earlier kernel may have failed: run with "
                           "CUDA_LAUNCH_BLOCKING=1 to see which, or with "
                           "CODEDGRAD_GPU_DECODE=0 to sum on the processor");
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
    if (answer != 0) new std::vector<BufferRef>(std::move(sum.keep));
  }
}

void DeviceSums::start(const SumProgram& program,
                       const std::vector<const void*>& inputs, void* out, void* out2,
                       std::size_t count, DType dtype, std::vector<BufferRef> keep,
                       std::function<void()> done) {
  const ops::DeviceSum what{calls_.device,
                            dtype == DType::kFloat64,
                            program.data(),
                            static_cast<int>(program.size()),
                            static_cast<int>(inputs.size()),
                            inputs.data(),
                            out,
                            out2,
                            count};
  void* ticket = nullptr;
  const int answer = calls_.start_sum(&what, &ticket);
  if (answer == 0) {
    under_way_.push_back({ticket, std::move(keep), std::move(done)});
  } else if (refused_ == 0) {
    refused_ = answer;
  }
}

bool DeviceSums::poll() {
  if (refused_ != 0) refused("to sum rows", refused_);
  bool any = false;
  while (!under_way_.empty()) {  // the device does them in turn
    const int answer = calls_.sum_done(under_way_.front().ticket);
    if (answer == calls_.not_ready) break;
    const Sum sum = std::move(under_way_.front());
    under_way_.pop_front();
    if (answer != 0) {
      new std::vector<BufferRef>(sum.keep);  // it may still be at work on them
      refused("whether a sum of rows is done", answer);
    }
    sum.done();
    any = true;
  }
  return any;
}

// As in a step: rows in pinned memory, the sum to there, twice. The vectors are small
// integers and a third, so that another order of additions shows.
double DeviceSums::trial_s(int inputs, std::size_t bytes, bool on_device,
                           BufferPool* pool, std::vector<float>* out) {
  const std::size_t count = bytes / sizeof(float);
  std::vector<BufferRef> memory;
  std::vector<const float*> rows;
  for (int i = 0; i < inputs + 2; ++i) {
    memory.push_back(pool->get(bytes, Memory::kPinned));
    auto* at = reinterpret_cast<float*>(memory.back()->data());
    for (std::size_t e = 0; e < count; ++e) {
      at[e] = static_cast<float>((e * (i + 1)) % 251) / 3.0f;
    }
    if (i < inputs) rows.push_back(at);
  }
  SumProgram program{0};
  for (int i = 1; i < inputs; ++i) program.insert(program.end(), {i, ops::kAdd});
  auto* sum = reinterpret_cast<float*>(memory[inputs]->data());
  auto* copy = reinterpret_cast<float*>(memory[inputs + 1]->data());
  double best = std::numeric_limits<double>::infinity();
  const bool pinned = std::all_of(memory.begin(), memory.end(),
                                  [](const BufferRef& b) { return b->reachable(); });
  if (on_device && !pinned) return best;
  for (int trial = 0; trial <= kTrials; ++trial) {  // the first only warms up
    const double begin = now_s();
    if (on_device) {
      bool done = false;
      start(program, {rows.begin(), rows.end()}, sum, copy, count, DType::kFloat32,
            memory, [&] { done = true; });
      while (!done) {
        poll();
        if (now_s() > begin + kPatienceS) {
          throw std::runtime_error("the device did not finish a sum in " +
                                   std::to_string(kPatienceS) +
                                   " s; run with CODEDGRAD_GPU_DECODE=0");
        }
      }
    } else {
      ops::tree_sum<float>(program, rows, sum, copy, count);
    }
    if (trial > 0) best = std::min(best, now_s() - begin);
  }
  out->assign(copy, copy + count);
  if (std::memcmp(sum, copy, bytes) != 0) out->clear();
  return best;
}

std::size_t DeviceSums::faster_from(int inputs, std::size_t most, BufferPool* pool) {
  std::size_t from = std::numeric_limits<std::size_t>::max();
  if (!available() || most == 0) return from;
  for (std::size_t bytes = kSmallest;; bytes *= 4) {
    std::vector<float> theirs, ours;
    const double device_s = trial_s(inputs, bytes, true, pool, &theirs);
    const double host_s = trial_s(inputs, bytes, false, pool, &ours);
    const bool tried = device_s != std::numeric_limits<double>::infinity();
    if (tried && (theirs.size() != ours.size() ||
                  std::memcmp(theirs.data(), ours.data(), bytes) != 0)) {
      throw std::runtime_error(
          "the device's sums are not those of the processor; build the kernels anew "
          "(CODEDGRAD_CUDA=1), or run with CODEDGRAD_GPU_DECODE=0");
    }
    if (!tried || device_s >= host_s) {
      from = std::numeric_limits<std::size_t>::max();
    } else if (from == std::numeric_limits<std::size_t>::max()) {
      from = bytes == kSmallest ? 1 : bytes;
    }
    if (bytes >= most) break;
  }
  pool->trim();
  return from;
}

}  // namespace codedgrad
