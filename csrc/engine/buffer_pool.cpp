#include "engine/buffer_pool.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <new>

namespace codedgrad {
namespace {
constexpr std::size_t kAlignment = 64;
constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::size_t kTrimEvery = 256;  // gets of one size
}  // namespace

Buffer::Buffer(std::size_t bytes, const DeviceCalls* pin)
    : data_(nullptr), bytes_(bytes), wanted_(pin != nullptr) {
  const std::size_t align = bytes >= kHugePage ? kHugePage : kAlignment;
  const std::size_t size =
      (std::max<std::size_t>(bytes, 1) + align - 1) / align * align;
  data_ = static_cast<char*>(std::aligned_alloc(align, size));
  if (data_ == nullptr) throw std::bad_alloc();
  // Fewer page faults when a large buffer is first touched.
  if (align == kHugePage) madvise(data_, size, MADV_HUGEPAGE);
  if (pin != nullptr && pin->pin(data_, size, pin->pin_flags) == 0) {
    unpin_ = pin->unpin;
  }
}

Buffer::~Buffer() {
  if (unpin_ != nullptr) unpin_(data_);
  std::free(data_);
}

void BufferPool::bind(const DeviceCalls& calls) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (!device_) device_ = std::make_unique<const DeviceCalls>(calls);
}

BufferRef BufferPool::get(std::size_t bytes, bool pinned) {
  const DeviceCalls* pin = nullptr;
  std::unique_ptr<Buffer> buffer;
  std::vector<std::unique_ptr<Buffer>> surplus;  // freed outside the lock
  {
    std::lock_guard<std::mutex> lock(mutex_);
    pin = pinned ? device_.get() : nullptr;
    Class& c = classes_[{bytes, pin != nullptr}];
    if (!c.free.empty()) {
      buffer = std::move(c.free.back());
      c.free.pop_back();
    } else {
      total_ += bytes;
    }
    c.least_free = std::min(c.least_free, c.free.size());
    if (++c.gets % kTrimEvery == 0) {
      // What was never needed since the last trim served a past peak only.
      for (std::size_t i = 0; i < c.least_free; ++i) {
        surplus.push_back(std::move(c.free.back()));
        c.free.pop_back();
        total_ -= bytes;
      }
      c.least_free = c.free.size();
    }
  }
  if (!buffer) {
    buffer = std::make_unique<Buffer>(bytes, pin);
    if (pin != nullptr && !buffer->pinned()) {
      std::lock_guard<std::mutex> lock(mutex_);
      unpinned_ += bytes;
    }
  }
  auto self = shared_from_this();
  return BufferRef(buffer.release(), [self](Buffer* b) { self->put(b); });
}

void BufferPool::trim() {
  std::map<std::pair<std::size_t, bool>, Class> old;  // freed outside the lock
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
  classes_[{owned->bytes(), owned->wanted_pinned()}].free.push_back(std::move(owned));
}

}  // namespace codedgrad
