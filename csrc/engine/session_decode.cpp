// What a session does with arrivals that cover: it sums its own slice, by the processor
// at once or by a device meanwhile, and sends it to all.
#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "engine/clock.h"
#include "engine/session.h"

namespace codedgrad {

std::string Session::use_device_sums(bool always) {
  always = always || memory_ == Memory::kDevice;
  std::size_t most = 0;
  for (int bucket = 0; bucket < layout_.buckets(); ++bucket) {
    most = std::max(most, layout_.slice(bucket, rank_).count * bytes_of(dtype_));
  }
  std::string why;
  try {
    sums_.check(pool_.get());
    const int inputs = std::clamp(size_, 2, 8);
    device_sums_from_ = always ? 0 : sums_.faster_from(inputs, most, pool_.get());
  } catch (const DeviceRefused& error) {
    if (always) throw;
    why = error.what();
  }
  pool_->trim();  // the trials' memory
  return why;
}

BufferRef Session::slice_memory(std::size_t bytes) {
  try {
    return pool_->get(bytes, memory_);
  } catch (const NoDeviceMemory&) {
    return pool_->get(bytes, Memory::kPinned);
  }
}

void Session::decode(std::int64_t number, int bucket) {
  if (decode_on_device(number, bucket)) return;
  if (memory_ == Memory::kDevice) {
    throw std::runtime_error(
        "rows are where neither device nor processor sums them; "
        "run with CODEDGRAD_GPU_DIRECT=0");
  }
  const Slice slice = layout_.slice(bucket, rank_);
  const Wire narrow = wire(bucket);
  const Bucket* b = nullptr;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    b = undecoded(number, bucket);
  }
  conclude(number, bucket, true, [&](void* out, void* out2) {
    b->cover->decode(b->rows, out, out2, slice.count, dtype_, narrow);
  });
}

bool Session::decode_on_device(std::int64_t number, int bucket) {
  const Slice slice = layout_.slice(bucket, rank_);
  const std::size_t bytes = slice.count * bytes_of(dtype_);
  if (memory_ == Memory::kHost || bytes < device_sums_from_) return false;
  if (approximate_ || wire(bucket) != Wire::kAsIs) return false;
  const double begin = now_s();
  SumProgram program;
  std::vector<int> rows;
  std::vector<const void*> inputs;
  std::vector<BufferRef> keep;
  const Bucket* b = nullptr;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    b = undecoded(number, bucket);
  }
  if (!b->cover->program(&program, &rows)) return false;
  const BufferRef whole = result_of(number);
  char* result = result_at(whole, slice);
  for (int row : rows) inputs.push_back(b->rows[row]);
  for (const auto& [row, buffer] : b->keep) keep.push_back(buffer);
  keep.push_back(whole);
  const BufferRef sent = size_ == 1 ? nullptr : slice_memory(bytes);
  if (sent) keep.push_back(sent);
  const auto reachable = [](const BufferRef& buffer) { return buffer->reachable(); };
  if (!std::all_of(keep.begin(), keep.end(), reachable)) return false;
  // Until the sum is done the arrivals cover and the slice is not decoded: what arrives
  // meanwhile is redundant, and the rows stay.
  sums_.start(program, inputs, sent ? sent->data() : result, sent ? result : nullptr,
              slice.count, dtype_, std::move(keep),
              [this, number, bucket, sent, begin] {
                {
                  std::lock_guard<std::mutex> lock(mutex_);
                  ++counters_.slices_on_device;
                }
                send_result(number, bucket, sent);
                close_bucket(number, bucket, now_s() - begin);
              });
  return true;
}

// The step cannot be taken, and so cannot vanish, before slice_in() below: until then
// this worker's own slice is missing.
void Session::conclude(std::int64_t number, int bucket, bool exact, const Fill& fill) {
  const double begin = now_s();
  const Slice slice = layout_.slice(bucket, rank_);
  const Wire narrow = wire(bucket);
  const std::size_t bytes = slice.count * bytes_on_wire(bucket);
  Estimator* estimator = approximate_ ? estimators_[bucket].get() : nullptr;
  const BufferRef whole = result_of(number);
  char* result = result_at(whole, slice);
  Bucket* b = nullptr;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    b = undecoded(number, bucket);
  }
  const bool alone = size_ == 1 && narrow == Wire::kAsIs;
  const BufferRef sent = alone ? nullptr : pool_->get(bytes);
  // The owner's own copy of the result may be changed once the step is taken.
  if (alone) {
    fill(result, nullptr);
  } else if (narrow == Wire::kAsIs) {
    fill(sent->data(), result);
  } else {
    fill(result, nullptr);
  }
  double learn_s = 0.0;
  const auto learn = [&] {
    const double from = now_s();
    estimator->decoded(number, {&b->rows, &b->keep}, result, exact);
    learn_s = now_s() - from;
  };
  const bool compensates = estimator != nullptr && approximate_->compensate;
  if (compensates) {
    learn();
    if (estimator->compensate(result) && !alone && narrow == Wire::kAsIs) {
      std::memcpy(sent->data(), result, bytes);
    }
  }
  if (narrow != Wire::kAsIs) {  // rounded once, and so the same for all
    pack(result, sent->data(), slice.count, narrow);
    unpack(sent->data(), result, slice.count, narrow);
  }
  send_result(number, bucket, sent);
  if (estimator != nullptr && !compensates) learn();
  {
    std::lock_guard<std::mutex> lock(mutex_);
    counters_.learn_s += learn_s;
    if (!exact) ++counters_.slices_settled;
  }
  close_bucket(number, bucket, now_s() - begin - learn_s);
}

void Session::send_result(std::int64_t number, int bucket, const BufferRef& sent) {
  const std::size_t bytes = layout_.slice(bucket, rank_).count * bytes_on_wire(bucket);
  const Address address = codec_.encode(Kind::kResult, number, bucket);
  for (int i = 1; i < size_; ++i) {
    send((rank_ + i) % size_, address, sent->data(), bytes, sent);
  }
  std::lock_guard<std::mutex> lock(mutex_);
  counters_.bytes_sent += bytes * (size_ - 1);
}

void Session::close_bucket(std::int64_t number, int bucket, double decode_s) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    Bucket& b = find(number)->buckets[bucket];
    b.decoded = true;
    b.keep.clear();
    b.rows.clear();
    ++counters_.slices_decoded;
    counters_.decode_s += decode_s;
  }
  slice_in(number, bucket, rank_);
}

}  // namespace codedgrad
