// What a session does with arrivals that do not cover; see estimator.h.
#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "engine/clock.h"
#include "engine/session.h"

namespace codedgrad {
// ---- training thread ----

bool Session::past_half(std::int64_t step) const {
  std::lock_guard<std::mutex> lock(mutex_);
  if (!approximate_) return false;
  if (step < floor_ || done(step)) return true;
  const auto found = steps_.find(step);
  if (found == steps_.end()) return false;
  for (const Bucket& b : found->second.buckets) {
    if (b.cover && !b.decoded && b.half_s == 0.0) return false;
  }
  return true;
}

std::vector<Settled> Session::drain_settled() {
  std::lock_guard<std::mutex> lock(mutex_);
  return std::exchange(settled_, {});
}

// Returns true when `row` belongs to a unit that was refused here: nobody can bring it.
bool Session::refused(const Bucket& b, int row) const {
  for (const auto& estimator : estimators_) {
    if (!estimator) continue;
    const int unit = estimator->units().of(row);
    return unit >= 0 && b.refused[unit] != 0;
  }
  return false;
}

// ---- engine's thread ----

bool Session::refuse(std::int64_t number, int bucket, int row, int source,
                     const void* data) {
  Estimator* estimator = estimators_[bucket].get();
  if (estimator->finite(data)) return false;
  const int unit = estimator->units().of(row);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    note(number, bucket, source, row, ArrivalKind::kRefused);
    Bucket* b = undecoded(number, bucket);
    if (b == nullptr || unit < 0) return true;
    b->refused.resize(approximate_->units.size(), 0);
    b->refused[unit] = 1;
    b->tried = false;
    changed_.notify_all();
  }
  settle_if_due(number, bucket, true);
  return true;
}

void Session::late(std::int64_t number, int bucket, int row, const void* data,
                   const BufferRef& keep) {
  if (!approximate_) return;
  const double begin = now_s();
  Estimator* estimator = estimators_[bucket].get();
  estimator->late(number, row, data, keep);
  collect_settled(estimator);
  std::lock_guard<std::mutex> lock(mutex_);
  counters_.learn_s += now_s() - begin;
}

void Session::collect_settled(Estimator* estimator) {
  const auto fresh = estimator->drain();
  if (fresh.empty()) return;
  constexpr std::size_t kKept = 1 << 16;
  std::lock_guard<std::mutex> lock(mutex_);
  if (settled_.size() > kKept) settled_.clear();
  settled_.insert(settled_.end(), fresh.begin(), fresh.end());
}

// The patience begins when half of the batch is here. It is a share of the time that
// this took since the last step was decoded, which is about a pass. When it is over,
// every arrival is a new chance, until the bound on the error is small enough or the
// arrivals cover.
bool Session::settle_if_due(std::int64_t number, int bucket, bool arrived) {
  Estimator* estimator = estimators_[bucket].get();
  if (estimator == nullptr) return false;
  Bucket* b = nullptr;
  bool forced = false;
  const double now = now_s();
  {
    std::lock_guard<std::mutex> lock(mutex_);
    b = undecoded(number, bucket);
    if (b == nullptr || !b->cover) return false;
  }
  const Units& units = estimator->units();
  const bool half = arrived && b->half_s == 0.0 && units.share(b->rows) >= 0.5 - 1e-9;
  if (arrived && !b->refused.empty()) {
    b->hopeless = units.rest_is_here(b->rows, b->refused);
  }
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (half) b->half_s = now;
    forced = b->hopeless;
    if (b->tried || number != done_through_.load() + 1) return false;
    if (!forced) {
      if (b->half_s == 0.0) return false;
      const double pass_s = std::max(0.0, b->half_s - done_s_);
      if (now < b->half_s + approximate_->patience * pass_s) return false;
    }
    b->tried = true;
  }
  if (forced && estimator->units().share(b->rows) <= 0.0) {
    throw std::runtime_error("every gradient of step " + std::to_string(number) +
                             " is NaN or infinite; there is nothing to estimate the "
                             "step from. Lower the learning rate or clip");
  }
  const Rows rows{&b->rows, &b->keep};
  const bool within = estimator->attempt(number, rows);
  const double chose_s = now_s() - now;
  const bool good = forced || within;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    counters_.choose_s += chose_s;
    if (!good && estimator->biased()) ++counters_.slices_biased;
  }
  if (!good) {
    estimator->decline(rows);
    return true;
  }
  const std::size_t bytes = layout_.slice(bucket, rank_).count * bytes_of(dtype_);
  conclude(number, bucket, false, [&](void* out, void* out2) {
    estimator->settle(out, rows);
    collect_settled(estimator);  // before the step can be taken and reported
    if (out2 != nullptr) std::memcpy(out2, out, bytes);
  });
  return true;
}

bool Session::tick() {
  if (!approximate_) return false;
  const std::int64_t current = done_through_.load() + 1;
  bool open = false;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    open = steps_.count(current) > 0;
  }
  for (int bucket = 0; open && bucket < layout_.buckets(); ++bucket) {
    if (settle_if_due(current, bucket, false)) return true;
  }
  const double begin = now_s();
  for (const auto& estimator : estimators_) {
    if (!estimator || !estimator->idle()) continue;
    std::lock_guard<std::mutex> lock(mutex_);
    counters_.learn_s += now_s() - begin;
    return true;
  }
  return false;
}

std::vector<std::vector<double>> Session::decoder_states() const {
  std::vector<std::vector<double>> out;
  for (const auto& estimator : estimators_) {
    out.push_back(estimator ? estimator->state() : std::vector<double>());
  }
  return out;
}

void Session::restore_decoders(const std::vector<double>& state) {
  for (const auto& estimator : estimators_) {
    if (estimator) estimator->restore(state);
  }
}

}  // namespace codedgrad
