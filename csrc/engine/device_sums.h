// Sums that a device forms: started, asked for, and done with in turn.
//
// Owners and lifetimes: an entry owns all memory that its sum reads and writes until
// the device has answered for it. When a session ends with sums under way, their
// memory is waited for, and left to the device if it does not answer.
#pragma once

#include <cstddef>
#include <deque>
#include <functional>
#include <stdexcept>
#include <vector>

#include "engine/buffer_pool.h"
#include "engine/cover.h"
#include "engine/device.h"

namespace codedgrad {

class DeviceRefused : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

class DeviceSums {
 public:
  explicit DeviceSums(const DeviceCalls& calls) : calls_(calls) {}
  ~DeviceSums();
  DeviceSums(const DeviceSums&) = delete;
  DeviceSums& operator=(const DeviceSums&) = delete;

  bool available() const { return calls_.start_sum != nullptr; }

  // Compares the device's sums with the processor's: floats and doubles, deep and flat.
  // Throws DeviceRefused where it starts none or no memory can be pinned for it,
  // std::runtime_error where bits differ.
  void check(BufferPool* pool) const;

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
  // does. Takes milliseconds for each MiB. Throws std::runtime_error where it fails.
  std::size_t faster_from(int inputs, std::size_t most, BufferPool* pool) const;

 private:
  struct Sum {
    void* ticket;
    std::vector<BufferRef> keep;
    std::function<void()> done;
  };
  // Starts a sum and waits for it; throws as check().
  void sum_now(const ops::DeviceSum& what, const std::vector<BufferRef>& keep) const;
  template <typename T>
  void check_type(const SumProgram& program, int inputs, BufferPool* pool) const;

  const DeviceCalls calls_;
  std::deque<Sum> under_way_;
  int refused_ = 0;  // the device's answer to the first start that failed
};

}  // namespace codedgrad
