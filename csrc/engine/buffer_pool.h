// Reusable, aligned memory. A buffer is owned by all who hold its reference (a send
// in flight, an open step, a Python tensor) and goes back to the pool with the last.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "engine/device.h"

namespace codedgrad {

class Buffer {
 public:
  // `pin` null: ordinary memory. Where pinning fails it stays ordinary.
  explicit Buffer(std::size_t bytes, const DeviceCalls* pin = nullptr);
  ~Buffer();
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  char* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }
  bool pinned() const { return unpin_ != nullptr; }
  bool wanted_pinned() const { return wanted_; }

 private:
  char* data_;
  std::size_t bytes_;
  bool wanted_;
  int (*unpin_)(void*) = nullptr;
};

using BufferRef = std::shared_ptr<Buffer>;

class BufferPool : public std::enable_shared_from_this<BufferPool> {
 public:
  // Thread-safe. The contents are undefined. `pinned`: memory that a device copies to
  // and from while the processor goes on, once a device is bound.
  BufferRef get(std::size_t bytes, bool pinned = false);

  // Before the first pinned get.
  void bind(const DeviceCalls& calls);

  // Gives back what is free now, when a model's sizes are not needed any more.
  void trim();

  // Bytes held now, in use and free; and what could not be pinned.
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
  std::map<std::pair<std::size_t, bool>, Class> classes_;  // by bytes and pinning
  std::size_t total_ = 0, unpinned_ = 0;
  std::unique_ptr<const DeviceCalls> device_;
};

}  // namespace codedgrad
