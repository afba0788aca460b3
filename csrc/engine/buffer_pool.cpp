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

Buffer::Buffer(std::size_t bytes) : data_(nullptr), bytes_(bytes) {
  const std::size_t align = bytes >= kHugePage ? kHugePage : kAlignment;
  const std::size_t size =
      (std::max<std::size_t>(bytes, 1) + align - 1) / align * align;
  data_ = static_cast<char*>(std::aligned_alloc(align, size));
  if (data_ == nullptr) throw std::bad_alloc();
  // Fewer page faults when a large buffer is first touched.
  if (align == kHugePage) madvise(data_, size, MADV_HUGEPAGE);
}

Buffer::~Buffer() { std::free(data_); }

BufferRef BufferPool::get(std::size_t bytes) {
  std::unique_ptr<Buffer> buffer;
  std::vector<std::unique_ptr<Buffer>> surplus;  // freed outside the lock
  {
    std::lock_guard<std::mutex> lock(mutex_);
    Class& c = classes_[bytes];
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
  if (!buffer) buffer = std::make_unique<Buffer>(bytes);
  auto self = shared_from_this();
  return BufferRef(buffer.release(), [self](Buffer* b) { self->put(b); });
}

void BufferPool::trim() {
  std::map<std::size_t, Class> old;  // freed outside the lock
  std::lock_guard<std::mutex> lock(mutex_);
  old.swap(classes_);
  for (const auto& [bytes, c] : old) total_ -= bytes * c.free.size();
}

std::size_t BufferPool::bytes() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return total_;
}

void BufferPool::put(Buffer* buffer) {
  std::unique_ptr<Buffer> owned(buffer);
  std::lock_guard<std::mutex> lock(mutex_);
  classes_[owned->bytes()].free.push_back(std::move(owned));
}

}  // namespace codedgrad
