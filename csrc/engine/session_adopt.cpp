// Slices that two workers may send: the owner, and a deputy in its place. Both have the
// same bits; the first that is here whole is used.
//
// An owner's slice is received into the step's result, as without deputies. Where a
// deputy's comes while the owner's is still being received, perhaps for ever, the step
// gets a result elsewhere, and the old memory is left to the transport.
#include <cstring>

#include "engine/session.h"

namespace codedgrad {

char* Session::place_result(const Fields& f, int source, std::size_t bytes,
                            BufferRef* keep) {
  const BufferRef result = result_of(f.step);
  if (result) {
    const std::size_t index = slice_index(f.bucket, source);
    std::lock_guard<std::mutex> lock(mutex_);
    Step* step = find(f.step);
    if (step != nullptr && !step->in[index] && !step->coming[index]) {
      step->coming[index] = 1;
      *keep = result;
      return result_at(result, layout_.slice(f.bucket, source));
    }
  }
  *keep = pool_->get(bytes);  // it is here already, or the step is closed
  return (*keep)->data();
}

void Session::result_came(const SliceKey& key, const BufferRef& keep) {
  bool here = false;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    const Step* step = find(key.step);
    if (step == nullptr || step->in[slice_index(key.bucket, key.owner)]) return;
    here = step->result == keep;
  }
  if (here) {
    slice_in(key.step, key.bucket, key.owner);
    return;
  }
  // It was received into a result that was set aside, or into memory of its own.
  const bool aside = keep->bytes() == payload_bytes();
  const Slice slice = layout_.slice(key.bucket, key.owner);
  adopt(key, aside ? result_at(keep, slice) : keep->data());
}

bool Session::adopt(const SliceKey& key, const char* data) {
  open(key.step);
  if (!result_of(key.step)) return false;  // the step is closed
  const Slice slice = layout_.slice(key.bucket, key.owner);
  const std::size_t bytes = slice.count * bytes_of(dtype_);
  Step* step = nullptr;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    step = find(key.step);
    const std::size_t index = slice_index(key.bucket, key.owner);
    if (step == nullptr || step->in[index]) return false;
    counters_.bytes_copied += static_cast<std::int64_t>(bytes);
    if (key.owner == rank_) {  // a deputy has decoded the own slice
      Bucket& b = step->buckets[key.bucket];
      b.decoded = true;
      b.keep.clear();
      b.rows.clear();
    }
  }
  // Until slice_in() the slice is missing, so the step stays and its result is ours.
  if (step->coming[slice_index(key.bucket, key.owner)]) set_aside(step);
  std::memcpy(result_at(step->result, slice), data, bytes);
  slice_in(key.step, key.bucket, key.owner);
  return true;
}

// Slices that are under way are copied when they have come, see result_came().
void Session::set_aside(Step* step) {
  const BufferRef fresh = pool_->get(payload_bytes(), memory_);
  std::int64_t copied = 0;
  for (int bucket = 0; bucket < layout_.buckets(); ++bucket) {
    for (int owner = 0; owner < size_; ++owner) {
      const Slice slice = layout_.slice(bucket, owner);
      const std::size_t bytes = slice.count * bytes_of(dtype_);
      if (bytes == 0 || !step->in[slice_index(bucket, owner)]) continue;
      std::memcpy(result_at(fresh, slice), result_at(step->result, slice), bytes);
      copied += static_cast<std::int64_t>(bytes);
    }
  }
  std::lock_guard<std::mutex> lock(mutex_);
  step->result = fresh;
  step->coming.assign(step->coming.size(), 0);
  counters_.bytes_copied += copied;
}

}  // namespace codedgrad
