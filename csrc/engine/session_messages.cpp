// A session's messages: they are checked, given a place, and counted as arrivals.
#include <algorithm>
#include <stdexcept>

#include "engine/clock.h"
#include "engine/session.h"

namespace codedgrad {
namespace {

constexpr std::size_t kArrivalsKept = 1 << 16;

}  // namespace

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
  if (f.kind == Kind::kProgress && bytes >= kNoteBytes) return;  // a note
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
  if (f.kind == Kind::kProgress) {
    if (bytes == 0) return nullptr;
    *keep = pool_->get(bytes);
    return (*keep)->data();
  }
  open(f.step);
  if (f.kind == Kind::kResult && deputies_) return place_result(f, source, bytes, keep);
  if (f.kind == Kind::kRow || wire(f.bucket) != Wire::kAsIs) {
    const bool device = memory_ != Memory::kHost && bytes >= device_sums_from_;
    *keep = device ? slice_memory(bytes) : pool_->get(bytes);
    return (*keep)->data();
  }
  *keep = result_of(f.step);
  if (!*keep) throw std::runtime_error("a result came for a closed step");
  return result_at(*keep, layout_.slice(f.bucket, source));
}

void Session::received(const Fields& f, int source, const BufferRef& keep,
                       std::size_t bytes) {
  const bool is_note = f.kind == Kind::kProgress && bytes > 0;
  if (deputies_ && !is_note) alive(source, f.step);
  if (deputies_ && f.kind == Kind::kRow) deputies_->row_s = now_s();
  if (is_note) {
    hear_note(f.step, source, keep, bytes);
  } else if (f.kind == Kind::kResult && deputies_) {
    result_came({f.step, f.bucket, source}, keep);
  } else if (f.kind == Kind::kProgress) {
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
    slice_in(f.step, f.bucket, source);
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
  if (deputies_) {
    step.in.assign(slice_index(layout_.buckets(), 0), 0);
    step.coming = step.in;
  }
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
    if (deputies_ && bucket == last_own_) sent_again(number, row);
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

void Session::slice_in(std::int64_t number, int bucket, int owner) {
  std::lock_guard<std::mutex> lock(mutex_);
  Step* step = find(number);
  if (deputies_) {
    char* in = step == nullptr ? nullptr : &step->in[slice_index(bucket, owner)];
    if (in == nullptr || *in) return;  // another has decoded it, too
    *in = 1;
  }
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
  const double now = now_s();
  if (deputies_) learn_usual(now - done_s_);
  done_s_ = now;
  changed_.notify_all();
}

}  // namespace codedgrad
