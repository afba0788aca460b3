#include "engine/buffer_pool.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <new>
#include <string>

namespace codedgrad {
namespace {
constexpr std::size_t kAlignment = 64;
constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::size_t kTrimEvery = 256;  // gets of one size
}  // namespace

Buffer::Buffer(std::size_t bytes, Memory memory, const DeviceCalls* device)
    : bytes_(bytes), memory_(memory) {
  if (memory == Memory::kDevice) {
    void* place = nullptr;
    const int answer = device->allocate(&place, std::max<std::size_t>(bytes, 1));
    if (answer != 0) {
      device->take_error();
      throw NoDeviceMemory("the device answered " + std::to_string(answer) +
                           " when asked for " + std::to_string(bytes) +
                           " bytes of its memory; a smaller window, or "
                           "CODEDGRAD_GPU_DIRECT=0, needs less");
    }
    data_ = static_cast<char*>(place);
    give_back_ = device->release;
    take_error_ = device->take_error;
    return;
  }
  const std::size_t align = bytes >= kHugePage ? kHugePage : kAlignment;
  const std::size_t size =
      (std::max<std::size_t>(bytes, 1) + align - 1) / align * align;
  data_ = static_cast<char*>(std::aligned_alloc(align, size));
  if (data_ == nullptr) throw std::bad_alloc();
  // Huge pages cause fewer page faults when a large buffer is first touched.
  if (align == kHugePage) madvise(data_, size, MADV_HUGEPAGE);
  if (memory != Memory::kPinned) return;
  if (device->pin(data_, size, device->pin_flags) == 0) {
    give_back_ = device->unpin;
    take_error_ = device->take_error;
  } else {
    device->take_error();
  }
}

Buffer::~Buffer() {
  if (give_back_ != nullptr && give_back_(data_) != 0) take_error_();
  if (memory_ != Memory::kDevice) std::free(data_);
}

void BufferPool::bind(const DeviceCalls& calls) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (!device_) device_ = std::make_unique<const DeviceCalls>(calls);
}

DeviceCalls BufferPool::device() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return device_ ? *device_ : DeviceCalls{};
}

BufferRef BufferPool::get(std::size_t bytes, Memory memory) {
  const DeviceCalls* device = nullptr;
  std::unique_ptr<Buffer> buffer;
  std::vector<std::unique_ptr<Buffer>> surplus;  // freed outside the lock
  {
    std::lock_guard<std::mutex> lock(mutex_);
    device = device_.get();
    if (device == nullptr) memory = Memory::kHost;
    Class& c = classes_[{bytes, memory}];
    if (!c.free.empty()) {
      buffer = std::move(c.free.back());
      c.free.pop_back();
    }
    c.least_free = std::min(c.least_free, c.free.size());
    if (memory == Memory::kHost && ++c.gets % kTrimEvery == 0) {
      // Buffers that were never needed since the last trim served a past peak only.
      // Memory of a device is kept: it would stop for each buffer that is freed.
      for (std::size_t i = 0; i < c.least_free; ++i) {
        surplus.push_back(std::move(c.free.back()));
        c.free.pop_back();
        total_ -= bytes;
      }
      c.least_free = c.free.size();
    }
  }
  if (!buffer) {
    buffer = std::make_unique<Buffer>(bytes, memory, device);  // it may throw
    std::lock_guard<std::mutex> lock(mutex_);
    total_ += bytes;
    if (memory == Memory::kPinned && !buffer->reachable()) unpinned_ += bytes;
  }
  auto self = shared_from_this();
  return BufferRef(buffer.release(), [self](Buffer* b) { self->put(b); });
}

void BufferPool::trim() {
  std::map<std::pair<std::size_t, Memory>, Class> old;  // freed outside the lock
  std::lock_guard<std::mutex> lock(mutex_);
  old.swap(classes_);
  for (const auto& [key, c] : old) total_ -= key.first * c.free.size();
}

std::size_t BufferPool::bytes() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return total_;
}

std::size_t BufferPool::unpinned() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return unpinned_;
}

void BufferPool::put(Buffer* buffer) {
  std::unique_ptr<Buffer> owned(buffer);
  std::lock_guard<std::mutex> lock(mutex_);
  classes_[{owned->bytes(), owned->memory()}].free.push_back(std::move(owned));
}

}  // namespace codedgrad
