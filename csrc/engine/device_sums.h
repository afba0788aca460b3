// Sums that a device forms: started, asked for, and done with in turn.
//
// Owners and lifetimes: an entry owns all memory that its sum reads and writes until
// the device has answered for it. When a session ends with sums under way, their
// memory is waited for, and left to the device if it does not answer.
#pragma once

#include <cstddef>
#include <deque>
#include <functional>
#include <vector>

#include "engine/buffer_pool.h"
#include "engine/cover.h"
#include "engine/device.h"

namespace codedgrad {

class DeviceSums {
 public:
  explicit DeviceSums(const DeviceCalls& calls) : calls_(calls) {}
  ~DeviceSums();
  DeviceSums(const DeviceSums&) = delete;
  DeviceSums& operator=(const DeviceSums&) = delete;

  bool available() const { return calls_.start_sum != nullptr; }

  // out = `program` over `inputs`, also into out2 unless null; then `done` is called,
  // by poll(), which also tells where the device refuses.
  void start(const SumProgram& program, const std::vector<const void*>& inputs,
             void* out, void* out2, std::size_t count, DType dtype,
             std::vector<BufferRef> keep, std::function<void()> done);
  // True when a sum is done. Throws std::runtime_error with the device's answer.
  bool poll();
  bool empty() const { return under_way_.empty() && refused_ == 0; }

  // Bytes of `inputs` vectors each from which on the device sums them faster than the
  // processor, judged by trials up to `most`; the largest std::size_t if it never
  // does. Takes milliseconds. Throws std::runtime_error where the device fails, or
  // its sums have other bits than the processor's.
  std::size_t faster_from(int inputs, std::size_t most, BufferPool* pool);

 private:
  struct Sum {
    void* ticket;
    std::vector<BufferRef> keep;
    std::function<void()> done;
  };
  double trial_s(int inputs, std::size_t bytes, bool on_device, BufferPool* pool,
                 std::vector<float>* out);

  const DeviceCalls calls_;
  std::deque<Sum> under_way_;
  int refused_ = 0;  // the device's answer to the first start that failed
};

}  // namespace codedgrad
