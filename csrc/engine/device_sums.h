// The sums that a device forms: they are started, asked for, and finished in turn.
//
// Owners and lifetimes: an entry owns all memory that its sum reads and writes until
// the device has answered for it. A session that ends with sums under way waits for
// them; it leaves their memory to the device if the device does not answer.
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

  // Compares the device's sums with the processor's, of floats and doubles, by deep and
  // by flat programs. Throws DeviceRefused where the device starts no sum or no memory
  // can be pinned, and std::runtime_error where bits differ.
  void check(BufferPool* pool) const;

  // Starts to write the program's value over `inputs` to `out`, and to `out2` unless it
  // is null. When that is done, poll() calls `done`. Where the device refuses, poll()
  // throws.
  void start(const SumProgram& program, const std::vector<const void*>& inputs,
             void* out, void* out2, std::size_t count, DType dtype,
             std::vector<BufferRef> keep, std::function<void()> done);
  // Returns true when a sum is done. Throws std::runtime_error with the device's
  // answer.
  bool poll();
  bool empty() const { return under_way_.empty() && refused_ == 0; }

  // Returns the size of a vector, in bytes, from which on the device sums `inputs` of
  // them faster than the processor; the largest std::size_t if it never does. Judged by
  // trials up to `most`, which take milliseconds for each MiB. Throws
  // std::runtime_error where a sum fails.
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
