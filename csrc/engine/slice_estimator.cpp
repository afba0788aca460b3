// The estimator of a slice, for floats or doubles: attempts, memory and labels
// together.
#include <algorithm>
#include <deque>
#include <random>

#include "engine/attempt.h"
#include "engine/estimator.h"
#include "engine/late_label.h"
#include "engine/sketch.h"
#include "engine/slice_memory.h"

namespace codedgrad {
namespace {

constexpr int kReplayEvery = 4;       // steps
constexpr int kMirrors = 2;           // per settled step
constexpr double kUnbounded = 1e300;  // Python has no infinity for the engine

template <typename T>
class SliceEstimator final : public Estimator {
 public:
  SliceEstimator(const std::shared_ptr<const ApproximateSettings>& settings,
                 const Place& place, Sketch sketch, std::shared_ptr<BufferPool> pool)
      : Estimator(settings, sketch.tiles()),
        bucket_(place.bucket),
        window_(place.window),
        settings_(settings),
        sketch_(std::move(sketch)),
        vectors_(sketch_.count(), std::move(pool)),
        memory_(&units_, &sketch_, vectors_),
        attempt_(&units_, &sketch_, &memory_) {}

  bool finite(const void* row) const override {
    return all_finite(static_cast<const T*>(row), vectors_.count());
  }

  bool attempt(std::int64_t step, const Rows& rows) override {
    look(step, rows);
    chosen_ = learned_.choose(attempt_.problem());
    learned_.lean(attempt_.problem(), settings_->max_noise, &chosen_);
    // Nothing but zeros says nothing about what is missing.
    if (attempt_.scale() == 0.0) chosen_.predicted = {1.0, 1.0};
    // A slice without gradients has no noise either.
    if (sketch_.size() == 0 && bounds_noise()) return few();
    if (!(chosen_.predicted.bound <= settings_->max_error)) return false;
    return !bounds_noise() || (few() && chosen_.excess.share <= settings_->max_noise);
  }

  bool biased() const override {
    const decoder::Excess& excess = chosen_.excess;
    return bounds_noise() && few() && !(excess.share <= settings_->max_noise) &&
           excess.unbiased <= settings_->max_noise;
  }

  void settle(void* out, const Rows& rows) override {
    Label label = label_later(rows);
    const BufferRef guess = vectors_.get();
    attempt_.sum(*rows.data, chosen_.c, static_cast<T*>(out), vectors_.at(guess));
    label.keep(guess, rows, units_, attempt_.shards());
    settled_.push_back({attempt_.step(), bucket_, attempt_.problem().rho,
                        chosen_.predicted.mean, chosen_.predicted.bound, -1,
                        chosen_.excess.share});
    pending_.push_back(std::move(label));
    while (static_cast<int>(pending_.size()) > window_) pending_.pop_front();
    declined_ = {};
  }

  void decline(const Rows& rows) override {
    if (declined_.step() != attempt_.step()) declined_ = label_later(rows);
  }

  void decoded(std::int64_t step, const Rows& rows, const void* result,
               bool exact) override {
    const T* g = static_cast<const T*>(result);
    if (exact && declined_.step() == step) {
      declined_.teach(declined_.missing_of(g, sketch_), sketch_, &learned_);
      declined_ = {};
    }
    for (int i = 0; !exact && i < kMirrors; ++i) mirror();
    if (exact && step % kReplayEvery == 0 && units_.count() > 1) {
      look(step, rows);
      if (attempt_.scale() > 0.0) learned_.replay(attempt_.problem());
    }
    memory_.remember(step, rows);
    memory_.decoded(step, g);
  }

  void late(std::int64_t step, int node, const void* data,
            const BufferRef& keep) override {
    const int u = units_.of(node);
    if (u < 0 || !finite(data)) return;
    memory_.flush();
    const T* row = static_cast<const T*>(data);
    if (node == units_.node(u)) memory_.remember(u, step, row, keep);
    const auto found =
        std::find_if(pending_.begin(), pending_.end(),
                     [step](const Label& p) { return p.step() == step; });
    if (found == pending_.end()) return;
    const BufferRef off = found->add(u, node, row, keep, units_, sketch_, vectors_);
    if (!off) return;
    memory_.correct(step, vectors_.at(off));
    if (settings_->compensate) carry(off);
    if (!found->complete()) return;
    const double truth = found->teach(found->missing(), sketch_, &learned_);
    const auto& p = found->chosen().predicted;
    const decoder::Excess& excess = found->chosen().excess;
    settled_.push_back({step, bucket_, found->problem().rho, p.mean, p.bound,
                        std::max(truth, 0.0), excess.share,
                        excess.share_of(found->wrong())});
    pending_.erase(found);
  }

  bool compensate(void* out) override {
    if (!carry_) return false;
    vectors_.blend(static_cast<T*>(out), 1.0, vectors_.at(carry_), 1.0);
    carry_.reset();
    return true;
  }

  bool idle() override { return memory_.idle(); }

 private:
  using Label = LateLabel<T>;

  void look(std::int64_t step, const Rows& rows) {
    memory_.flush();
    attempt_.look(step, *rows.data);
    learned_.look(step, attempt_.base(), attempt_.shards(), attempt_.weights(),
                  attempt_.scale());
  }

  bool bounds_noise() const { return settings_->max_noise < kUnbounded; }
  bool few() const { return attempt_.problem().rho <= settings_->max_noise + 1e-9; }

  Label label_later(const Rows& rows) const {
    return Label(attempt_, chosen_, units_, sketch_, rows);
  }

  void carry(const BufferRef& off) {
    if (!carry_) {
      carry_ = off;
    } else {
      vectors_.blend(vectors_.at(carry_), 1.0, vectors_.at(off), 1.0);
    }
  }

  // A label at once: complete shards are taken away in the place of the missing ones,
  // and estimated from the others. Missing shards whose memory is old get no stand-in:
  // those that are always in time are easier to estimate.
  void mirror() {
    if (attempt_.scale() == 0.0) return;
    const decoder::Shards& shards = attempt_.shards();
    const auto age_of = [&](int u) {
      return shards.seen[u] ? shards.age[u] : static_cast<double>(attempt_.step() + 1);
    };
    std::vector<int> there, gone;
    std::vector<double> ages;
    for (int u = 0; u < shards.size(); ++u) {
      if (shards.alpha[u] < 1.0) continue;
      there.push_back(u);
      ages.push_back(age_of(u));
    }
    if (there.size() < 2) return;
    std::nth_element(ages.begin(), ages.begin() + ages.size() / 2, ages.end());
    const double usual = ages[ages.size() / 2];
    for (int u = 0; u < shards.size(); ++u) {
      if (shards.alpha[u] >= 1.0) continue;
      if (age_of(u) <= 2.0 * usual + 1.0) gone.push_back(u);
    }
    const std::size_t count = std::min(gone.size(), there.size() / 2);
    if (count == 0) return;
    for (std::size_t i = 0; i < count; ++i) {  // the first `count` are drawn
      std::swap(there[i], there[i + random_() % (there.size() - i)]);
    }
    learned_.teach(attempt_.base(), sketch_.tiles(), shards,
                   std::vector<int>(there.begin(), there.begin() + count));
  }

  const int bucket_, window_;
  const std::shared_ptr<const ApproximateSettings> settings_;
  const Sketch sketch_;
  const Vectors<T> vectors_;
  SliceMemory<T> memory_;
  Attempt<T> attempt_;  // the last one
  decoder::Chosen chosen_;
  std::deque<Label> pending_;  // of settled steps
  Label declined_;             // of an attempt that was not good enough
  BufferRef carry_;            // what estimates left out
  std::minstd_rand random_{1};
};

}  // namespace

std::unique_ptr<Estimator> Estimator::make(
    std::shared_ptr<const ApproximateSettings> settings, const Place& place,
    std::shared_ptr<BufferPool> pool) {
  if (place.slice.count == 0) return nullptr;
  Sketch sketch(place.slice, settings->tensors,
                static_cast<int>(settings->units.size()), place.buckets);
  if (place.dtype == DType::kFloat32) {
    return std::make_unique<SliceEstimator<float>>(settings, place, std::move(sketch),
                                                   std::move(pool));
  }
  return std::make_unique<SliceEstimator<double>>(settings, place, std::move(sketch),
                                                  std::move(pool));
}

}  // namespace codedgrad
