#include "engine/session.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>

#include "engine/clock.h"

namespace codedgrad {
namespace {

std::chrono::duration<double> seconds(double s) {
  return std::chrono::duration<double>(s);
}

}  // namespace

bool Failure::set(const std::string& text) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (failed_.load()) return false;
  text_ = text;
  failed_.store(true, std::memory_order_release);
  return true;
}

std::string Failure::text() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return text_;
}

Session::Session(const SessionSettings& settings, const SessionHost& host)
    : rank_(host.rank),
      size_(host.size),
      window_(settings.window),
      dtype_(settings.dtype),
      layout_(settings.bucket_starts, host.size),
      codec_(settings.id, settings.window, layout_.buckets(), settings.plan->rows(),
             host.max_tag),
      plan_(settings.plan),
      wire_(settings.wire),
      narrow_buckets_(settings.wire == Wire::kAsIs ? 0 : settings.narrow_buckets),
      pool_(host.pool),
      failure_(host.failure),
      outbox_(host.outbox),
      memory_(settings.memory),
      sums_(settings.device),
      floor_(settings.first_step),
      applied_(host.size, settings.first_step - 1),
      done_through_(settings.first_step - 1),
      near_(settings.first_step),
      posted_(settings.first_step - 1),
      told_(host.size, settings.first_step - 1),
      approximate_(settings.approximate),
      done_s_(now_s()),
      last_own_(layout_.buckets() - 1),
      needs_all_(settings.needs_all) {
  while (last_own_ > 0 && layout_.slice(last_own_, rank_).count == 0) --last_own_;
  if (narrow_buckets_ > 0 && dtype_ != DType::kFloat32) {
    throw std::invalid_argument("only a payload of fp32 can travel in 16 bits");
  }
  if (approximate_) {
    for (int bucket = 0; bucket < layout_.buckets(); ++bucket) {
      const Estimator::Place place{bucket, layout_.buckets(),
                                   layout_.slice(bucket, rank_), dtype_, window_};
      estimators_.push_back(Estimator::make(approximate_, place, pool_));
    }
  }
  if (memory_ == Memory::kDevice) {
    if (!sums_.available() || approximate_ || narrow_buckets_ > 0 ||
        plan_->most_inputs() > ops::kMostDeviceInputs) {
      throw std::invalid_argument(
          "rows in a device's memory need its kernels and plain sums of at most " +
          std::to_string(ops::kMostDeviceInputs) + " rows, exact and as they are");
    }
    device_sums_from_ = 0;
  }
  if (settings.deputy_s > 0.0 && size_ > 1) {
    if (approximate_ || narrow_buckets_ > 0 || memory_ != Memory::kHost ||
        plan_->most_inputs() == std::numeric_limits<int>::max()) {
      throw std::invalid_argument(
          "deputies need exact sums of a tree, in full precision and in the "
          "processor's memory");
    }
    deputies_ = std::make_unique<Deputies>(settings.deputy_s, size_);
  }
  if (needs_all_.empty() && !deputies_ && size_ > 1) {
    throw std::invalid_argument("without deputies all workers are needed");
  }
  if (window_ < 2) throw std::invalid_argument("the window must be at least 2 steps");
}

// ---- training thread ----

bool Session::begin(std::int64_t step, double timeout_s, std::vector<int>* behind) {
  std::unique_lock<std::mutex> lock(mutex_);
  near_.store(step);
  applied_[rank_] = step - 1;
  const auto free = [&] {
    return failure_->failed() ||
           *std::min_element(applied_.begin(), applied_.end()) >= step - window_;
  };
  ++waiting_;
  const bool ok = changed_.wait_for(lock, seconds(timeout_s), free);
  --waiting_;
  behind->clear();
  for (int w = 0; !ok && w < size_; ++w) {
    if (applied_[w] < step - window_) behind->push_back(w);
  }
  return ok;
}

bool Session::wait(std::int64_t step, double timeout_s, int seen) {
  if (done(step)) return true;
  std::unique_lock<std::mutex> lock(mutex_);
  ++waiting_;
  changed_.wait_for(lock, seconds(timeout_s), [&] {
    return failure_->failed() || done(step) || times_needed(step) > seen;
  });
  --waiting_;
  return done(step);
}

bool Session::ready(std::int64_t step, int seen) const {
  if (done(step)) return true;
  if (!deputies_ || seen == kAnyNeeds) return false;
  std::lock_guard<std::mutex> lock(mutex_);
  return times_needed(step) > seen;
}

void Session::awaits(bool begins) {
  std::lock_guard<std::mutex> lock(mutex_);
  waiting_ += begins ? 1 : -1;
}

int Session::needs(std::int64_t step) const {
  std::lock_guard<std::mutex> lock(mutex_);
  return times_needed(step);
}

bool Session::has(std::int64_t step, int row) const {
  std::lock_guard<std::mutex> lock(mutex_);
  if (step < floor_) return true;
  if (needs_again(step, row)) return false;
  const auto found = steps_.find(step);
  if (found == steps_.end()) return false;
  const auto& buckets = found->second.buckets;
  return std::all_of(buckets.begin(), buckets.end(), [&](const Bucket& b) {
    return !b.cover || b.decoded || b.cover->has(row) ||
           (!b.refused.empty() && refused(b, row));
  });
}

bool Session::begun(std::int64_t step, int row) const {
  std::lock_guard<std::mutex> lock(mutex_);
  if (needs_again(step, row)) return false;
  const auto found = steps_.find(step);
  if (found == steps_.end()) return step < floor_;
  const auto& buckets = found->second.buckets;
  return std::any_of(buckets.begin(), buckets.end(), [&](const Bucket& b) {
    return b.cover && (b.decoded || b.cover->has(row));
  });
}

std::vector<int> Session::missing(std::int64_t step) const {
  std::lock_guard<std::mutex> lock(mutex_);
  std::vector<int> owners;
  const auto found = steps_.find(step);
  for (int w = 0; found != steps_.end() && w < size_; ++w) {
    if (found->second.slices_missing[w] > 0) owners.push_back(w);
  }
  return owners;
}

BufferRef Session::take(std::int64_t step) {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = steps_.find(step);
  if (found == steps_.end() || !done(step)) {
    throw std::logic_error("step " + std::to_string(step) + " is not decoded");
  }
  BufferRef result = std::move(found->second.result);
  steps_.erase(found);
  floor_ = std::max(floor_, step + 1);
  return result;
}

std::vector<Arrival> Session::drain_arrivals() {
  std::lock_guard<std::mutex> lock(mutex_);
  std::vector<Arrival> out(arrivals_.begin(), arrivals_.end());
  arrivals_.clear();
  return out;
}

Counters Session::counters() const {
  std::lock_guard<std::mutex> lock(mutex_);
  Counters counters = counters_;
  counters.messages_sent = messages_.load();
  return counters;
}

// ---- engine's thread ----

void Session::wake() {
  std::lock_guard<std::mutex> lock(mutex_);
  changed_.notify_all();
}

bool Session::open_work() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return std::any_of(steps_.begin(), steps_.end(),
                     [](const auto& item) { return item.second.missing > 0; });
}

bool Session::awaited() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return waiting_ > 0;
}

void Session::send(int dest, Address address, const void* data, std::size_t bytes,
                   const BufferRef& keep) {
  messages_.fetch_add(1, std::memory_order_relaxed);
  outbox_->send(dest, address, data, bytes, keep);
}

// A row tells progress, too: a row of step t says that all steps below t are applied.
void Session::tell_progress(std::int64_t step) {
  const std::int64_t slack = window_ / 8;
  for (int i = 1; i < size_; ++i) {
    const int dest = (rank_ + i) % size_;
    if (told_[dest] + 1 + slack >= step - 1) continue;
    told_[dest] = step - 1;
    send(dest, codec_.encode(Kind::kProgress, step), nullptr, 0, nullptr);
  }
}

void Session::post(std::int64_t step, int row, int which, const BufferRef& data) {
  const int first = which == kAllBuckets ? 0 : which;
  const int last = which == kAllBuckets ? layout_.buckets() - 1 : which;
  for (int bucket = first; deputies_ && bucket <= last; ++bucket) {
    keep_row(step, bucket, row, data);
  }
  // Every owner has decoded it. Where there are decoders, a late row still teaches.
  if (done(step) && !approximate_) return;
  std::int64_t sent = 0;
  for (int bucket = first; bucket <= last; ++bucket) {
    const Address address = codec_.encode(Kind::kRow, step, bucket, row);
    const std::size_t element = bytes_on_wire(bucket);
    const bool narrow = wire(bucket) != Wire::kAsIs && size_ > 1;
    const BufferRef message = narrow ? packed(bucket, data) : data;
    const std::size_t before = narrow ? layout_.slice(bucket, 0).offset : 0;
    for (int i = 1; i < size_; ++i) {
      const int dest = (rank_ + i) % size_;
      const Slice slice = layout_.slice(bucket, dest);
      if (slice.count == 0) continue;
      send(dest, address, message->data() + (slice.offset - before) * element,
           slice.count * element, message);
      told_[dest] = std::max(told_[dest], step - 1);
      sent += slice.count * element;
    }
    const Slice mine = layout_.slice(bucket, rank_);
    if (mine.count == 0) continue;
    arrive(step, bucket, row, rank_, data->data() + mine.offset * bytes_of(dtype_),
           data);
  }
  std::lock_guard<std::mutex> lock(mutex_);
  counters_.bytes_sent += sent;
}

BufferRef Session::packed(int bucket, const BufferRef& data) {
  const std::size_t begin = layout_.slice(bucket, 0).offset;
  const Slice last = layout_.slice(bucket, size_ - 1);
  const std::size_t count = last.offset + last.count - begin;
  const BufferRef message = pool_->get(count * kPackedBytes);
  pack(data->data() + begin * bytes_of(dtype_), message->data(), count, wire(bucket));
  return message;
}

BufferRef Session::unpacked(const Slice& slice, Wire wire, const BufferRef& data) {
  const BufferRef row = pool_->get(slice.count * bytes_of(dtype_));
  unpack(data->data(), row->data(), slice.count, wire);
  return row;
}

}  // namespace codedgrad
