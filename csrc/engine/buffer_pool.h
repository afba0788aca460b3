// Reusable, aligned memory. A buffer is owned by all who hold its reference (a send
// in flight, an open step, a Python tensor) and goes back to the pool with the last.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <utility>
#include <vector>

#include "engine/device.h"

namespace codedgrad {

// A device can copy to and from kPinned memory while the processor goes on. kDevice is
// the device's own memory, which the processor must not touch.
enum class Memory { kHost, kPinned, kDevice };

class NoDeviceMemory : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Buffer {
 public:
  // Memory that cannot be pinned stays ordinary. Throws NoDeviceMemory where the device
  // has none left. `device` is needed for pinned and device memory; the calling thread
  // must have selected it.
  explicit Buffer(std::size_t bytes, Memory memory = Memory::kHost,
                  const DeviceCalls* device = nullptr);
  ~Buffer();
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  char* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }
  Memory memory() const { return memory_; }  // the kind that was asked for
  // Returns true when the device can read and write it.
  bool reachable() const { return give_back_ != nullptr; }

 private:
  char* data_ = nullptr;
  std::size_t bytes_;
  Memory memory_;
  int (*give_back_)(void*) = nullptr;  // to the device
  int (*take_error_)() = nullptr;
};

using BufferRef = std::shared_ptr<Buffer>;

class BufferPool : public std::enable_shared_from_this<BufferPool> {
 public:
  // Returns a buffer with undefined contents. Until a device is bound it is ordinary
  // memory. Any thread may call it.
  BufferRef get(std::size_t bytes, Memory memory = Memory::kHost);

  // Must come before the first get() of pinned or device memory. The first device that
  // is bound stays bound.
  void bind(const DeviceCalls& calls);
  DeviceCalls device() const;  // the bound one

  // Frees the buffers that nobody uses now. Called when a model's sizes are not needed
  // any more.
  void trim();

  // Return the bytes that are held now, in use or free, and those that could not be
  // pinned.
  std::size_t bytes() const;
  std::size_t unpinned() const;

 private:
  struct Class {
    std::vector<std::unique_ptr<Buffer>> free;
    std::size_t least_free = 0;  // since the last trim
    std::size_t gets = 0;
  };
  void put(Buffer* buffer);

  mutable std::mutex mutex_;
  std::map<std::pair<std::size_t, Memory>, Class> classes_;
  std::size_t total_ = 0, unpinned_ = 0;
  std::unique_ptr<const DeviceCalls> device_;
};

}  // namespace codedgrad
