#include "engine/session.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>

#include "engine/clock.h"

namespace codedgrad {
namespace {

constexpr std::size_t kArrivalsKept = 1 << 16;

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
      told_(host.size, settings.first_step - 1),
      approximate_(settings.approximate),
      done_s_(now_s()),
      last_own_(layout_.buckets() - 1) {
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

bool Session::wait(std::int64_t step, double timeout_s) {
  if (done(step)) return true;
  std::unique_lock<std::mutex> lock(mutex_);
  ++waiting_;
  const bool ended = changed_.wait_for(
      lock, seconds(timeout_s), [&] { return failure_->failed() || done(step); });
  --waiting_;
  return ended && done(step);
}

bool Session::has(std::int64_t step, int row) const {
  std::lock_guard<std::mutex> lock(mutex_);
  if (step < floor_) return true;
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
  return counters_;
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

// A row tells progress, too: a row of step t says that all steps below t are applied.
void Session::tell_progress(std::int64_t step) {
  const std::int64_t slack = window_ / 8;
  for (int i = 1; i < size_; ++i) {
    const int dest = (rank_ + i) % size_;
    if (told_[dest] + 1 + slack >= step - 1) continue;
    told_[dest] = step - 1;
    outbox_->send(dest, codec_.encode(Kind::kProgress, step), nullptr, 0, nullptr);
  }
}

void Session::post(std::int64_t step, int row, int which, const BufferRef& data) {
  // Every owner has decoded it. Where there are decoders, a late row still teaches.
  if (done(step) && !approximate_) return;
  std::int64_t sent = 0;
  const int first = which == kAllBuckets ? 0 : which;
  const int last = which == kAllBuckets ? layout_.buckets() - 1 : which;
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
      outbox_->send(dest, address, message->data() + (slice.offset - before) * element,
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

void Session::check(const Fields& f, int source, std::size_t bytes) const {
  const auto refuse = [source](const std::string& what) {
    throw std::runtime_error("worker " + std::to_string(source) + " sent " + what);
  };
  if (f.bucket >= layout_.buckets() || f.row >= plan_->rows()) {
    refuse("row " + std::to_string(f.row) + " of bucket " + std::to_string(f.bucket) +
           ", and there are " + std::to_string(plan_->rows()) + " rows and " +
           std::to_string(layout_.buckets()) + " buckets");
  }
  // Who begins a step has heard that all others are less than a window behind.
  if (f.step > near_.load() + window_) {
    refuse("a message of step " + std::to_string(f.step) +
           ", but this worker is at step " + std::to_string(near_.load()) +
           " and the window is " + std::to_string(window_));
  }
  std::size_t want = 0;
  if (f.kind != Kind::kProgress) {
    const int owner = f.kind == Kind::kRow ? rank_ : source;
    want = layout_.slice(f.bucket, owner).count * bytes_on_wire(f.bucket);
    if (want == 0)
      refuse("a slice of bucket " + std::to_string(f.bucket) + ", where worker " +
             std::to_string(owner) + " has none");
  }
  if (bytes != want) {
    refuse(std::to_string(bytes) + " bytes where " + std::to_string(want) +
           " were expected");
  }
}

char* Session::place(const Fields& f, int source, std::size_t bytes, BufferRef* keep) {
  check(f, source, bytes);
  if (f.kind == Kind::kProgress) return nullptr;
  open(f.step);
  if (f.kind == Kind::kRow || wire(f.bucket) != Wire::kAsIs) {
    const bool device = memory_ != Memory::kHost && bytes >= device_sums_from_;
    *keep = device ? slice_memory(bytes) : pool_->get(bytes);
    return (*keep)->data();
  }
  *keep = result_of(f.step);
  if (!*keep) throw std::runtime_error("a result came for a closed step");
  return result_at(*keep, layout_.slice(f.bucket, source));
}

void Session::received(const Fields& f, int source, const BufferRef& keep) {
  if (f.kind == Kind::kProgress) {
    applied(source, f.step - 1);
  } else if (f.kind == Kind::kRow) {
    applied(source, f.step - 1);
    const Wire narrow = wire(f.bucket);
    const BufferRef row = narrow == Wire::kAsIs
                              ? keep
                              : unpacked(layout_.slice(f.bucket, rank_), narrow, keep);
    arrive(f.step, f.bucket, f.row, source, row->data(), row);
  } else {
    if (wire(f.bucket) != Wire::kAsIs) {
      const Slice slice = layout_.slice(f.bucket, source);
      const BufferRef result = result_of(f.step);
      if (!result) throw std::runtime_error("a result came for a closed step");
      unpack(keep->data(), result_at(result, slice), slice.count, wire(f.bucket));
    }
    slice_in(f.step, source);
  }
}

void Session::applied(int worker, std::int64_t step) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (applied_[worker] >= step) return;
  applied_[worker] = step;
  changed_.notify_all();
}

Session::Step* Session::find(std::int64_t number) {
  const auto found = steps_.find(number);
  return found == steps_.end() ? nullptr : &found->second;
}

void Session::open(std::int64_t number) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (number < floor_ || steps_.count(number) > 0) return;
  }
  Step step = make_step();
  std::lock_guard<std::mutex> lock(mutex_);
  steps_.emplace(number, std::move(step));
}

Session::Step Session::make_step() const {
  Step step;
  step.buckets.resize(layout_.buckets());
  step.slices_missing.assign(size_, 0);
  for (int bucket = 0; bucket < layout_.buckets(); ++bucket) {
    for (int owner = 0; owner < size_; ++owner) {
      if (layout_.slice(bucket, owner).count == 0) continue;
      ++step.slices_missing[owner];
      ++step.missing;
    }
    if (layout_.slice(bucket, rank_).count == 0) continue;
    Bucket& b = step.buckets[bucket];
    b.cover = plan_->make_cover();
    b.rows.assign(plan_->rows(), nullptr);
  }
  return step;
}

BufferRef Session::result_of(std::int64_t number) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    const Step* step = find(number);
    if (step == nullptr || step->result) return step ? step->result : nullptr;
  }
  // Only this thread makes results, and a step is not closed before it has one.
  BufferRef result = pool_->get(payload_bytes(), memory_);
  std::lock_guard<std::mutex> lock(mutex_);
  find(number)->result = result;
  return result;
}

void Session::note(std::int64_t step, int bucket, int source, int row,
                   ArrivalKind kind) {
  if (kind == ArrivalKind::kUseful) ++counters_.rows_useful;
  if (kind == ArrivalKind::kRedundant) ++counters_.rows_redundant;
  if (kind == ArrivalKind::kLate) ++counters_.rows_late;
  if (kind == ArrivalKind::kRefused) ++counters_.rows_refused;
  if (bucket != last_own_ && kind != ArrivalKind::kRefused) return;
  if (arrivals_.size() >= kArrivalsKept) arrivals_.pop_front();
  arrivals_.push_back({step, source, row, kind, now_s()});
}

void Session::arrive(std::int64_t number, int bucket, int row, int source,
                     const void* data, const BufferRef& keep) {
  open(number);
  if (approximate_ && refuse(number, bucket, row, source, data)) return;
  bool complete = false, is_late = false;
  Bucket* b = nullptr;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    b = undecoded(number, bucket);
    if (b == nullptr) {
      note(number, bucket, source, row, ArrivalKind::kLate);
      is_late = true;
    } else if (!b->cover->add(row)) {
      return note(number, bucket, source, row, ArrivalKind::kRedundant);
    } else {
      note(number, bucket, source, row, ArrivalKind::kUseful);
      b->rows[row] = data;
      b->keep.emplace_back(row, keep);
      b->tried = false;
      complete = b->cover->complete();
    }
  }
  if (!is_late && !complete && b->cover->search()) {
    complete = true;
    std::lock_guard<std::mutex> lock(mutex_);
    b->cover->found();
  }
  if (is_late) {
    late(number, bucket, row, data, keep);
  } else if (complete) {
    decode(number, bucket);
  } else if (approximate_) {
    settle_if_due(number, bucket, true);
  }
}

Session::Bucket* Session::undecoded(std::int64_t number, int bucket) {
  Step* step = find(number);
  if (step == nullptr || step->buckets[bucket].decoded) return nullptr;
  return &step->buckets[bucket];
}

void Session::slice_in(std::int64_t number, int owner) {
  std::lock_guard<std::mutex> lock(mutex_);
  Step* step = find(number);
  if (step == nullptr || step->slices_missing[owner] == 0) {
    throw std::runtime_error("worker " + std::to_string(owner) +
                             " sent a slice of step " + std::to_string(number) +
                             " that is here already");
  }
  --step->slices_missing[owner];
  if (--step->missing > 0) return;
  std::int64_t through = done_through_.load();
  for (auto next = steps_.find(through + 1);
       next != steps_.end() && next->first == through + 1 && next->second.missing == 0;
       ++next) {
    ++through;
  }
  done_through_.store(through);
  done_s_ = now_s();
  changed_.notify_all();
}

}  // namespace codedgrad
