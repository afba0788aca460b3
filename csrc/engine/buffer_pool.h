// Reusable, aligned memory. A buffer is owned by all who hold its reference (a send
// in flight, an open step, a Python tensor) and goes back to the pool with the last.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

namespace codedgrad {

class Buffer {
 public:
  explicit Buffer(std::size_t bytes);
  ~Buffer();
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  char* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }

 private:
  char* data_;
  std::size_t bytes_;
};

using BufferRef = std::shared_ptr<Buffer>;

class BufferPool : public std::enable_shared_from_this<BufferPool> {
 public:
  // Thread-safe. The contents are undefined.
  BufferRef get(std::size_t bytes);

  // Gives back what is free now, when a model's sizes are not needed any more.
  void trim();

  // Bytes held now, in use and free.
  std::size_t bytes() const;

 private:
  struct Class {
    std::vector<std::unique_ptr<Buffer>> free;
    std::size_t least_free = 0;  // since the last trim
    std::size_t gets = 0;
  };
  void put(Buffer* buffer);

  mutable std::mutex mutex_;
  std::map<std::size_t, Class> classes_;
  std::size_t total_ = 0;
};

}  // namespace codedgrad
