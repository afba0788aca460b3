#include "engine/estimator.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <random>
#include <stdexcept>

#include "engine/sketch.h"
#include "ops/cpu/weighted_sum.h"

namespace codedgrad {
namespace {

constexpr double kAverageKeep = 0.9, kMeanGain = 0.2;  // as in arrivals.py
constexpr int kReplayEvery = 4;                        // steps
constexpr int kMirrors = 2;                            // per settled step

// What a step's label is computed from, once its late rows are here.
struct Pending {
  std::int64_t step = 0;
  decoder::Problem problem;
  decoder::Chosen chosen;
  std::vector<float> span;     // [kSpan, sketch]
  std::vector<float> arrived;  // R on the sketch
  std::vector<float> missing;  // what came late, on the sketch
  double scale = 1.0;          // of the sketch
  std::vector<char> lacks;     // by part
  int left = 0;                // parts still lacking
  BufferRef guess;             // the estimate of what is missing, whole
  // Of units of which a part is here: those rows, of parts that do not overlap.
  std::vector<std::pair<int, BufferRef>> have;
  std::vector<const void*> have_data;
};

template <typename T>
class SliceEstimator final : public Estimator {
 public:
  SliceEstimator(std::shared_ptr<const ApproximateSettings> config, int bucket,
                 Sketch sketch, int window, std::shared_ptr<BufferPool> pool)
      : Estimator(std::move(config), sketch.tiles()),
        bucket_(bucket),
        window_(window),
        count_(sketch.count()),
        sketch_(std::move(sketch)),
        pool_(std::move(pool)),
        memory_(config_->units.size()),
        previous_(fresh()),
        average_(fresh()) {
    sketch_results();
  }

  bool finite(const void* row) const override {
    return all_finite(static_cast<const T*>(row), count_);
  }

  decoder::Prediction attempt(std::int64_t step, const Rows& rows) override {
    flush();
    step_ = step;
    look(*rows.data);
    chosen_ = learned_.choose(problem_);
    // Nothing but zeros says nothing about what is missing.
    if (scale_ == 0.0) chosen_.predicted = {1.0, 1.0};
    return chosen_.predicted;
  }

  void settle(void* out, const Rows& rows) override {
    Pending pending = label_later(rows);
    pending.guess = pool_->get(count_ * sizeof(T));
    T* guess = at(pending.guess);
    sum(*rows.data, static_cast<T*>(out), guess);
    for (const auto& [node, ref] : *rows.keep) {
      const int u = unit_of_[node];
      if (u >= 0 && !(shards_.alpha[u] < 1.0)) continue;
      pending.have.emplace_back(node, ref);
      pending.have_data.push_back((*rows.data)[node]);
    }
    settled_.push_back({step_, bucket_, problem_.rho, chosen_.predicted.mean,
                        chosen_.predicted.bound, -1});
    pending_.push_back(std::move(pending));
    while (static_cast<int>(pending_.size()) > window_) pending_.pop_front();
    tried_ = {};
    tried_step_ = -1;
  }

  void decline(const Rows& rows) override {
    if (tried_step_ == step_) return;
    tried_ = label_later(rows);
    tried_step_ = step_;
  }

  void decoded(std::int64_t step, const Rows& rows, const void* result,
               bool exact) override {
    const T* g = static_cast<const T*>(result);
    if (exact && tried_step_ == step) judge_attempt(g);
    for (int i = 0; !exact && i < kMirrors; ++i) mirror();
    if (exact && step % kReplayEvery == 0 && config_->units.size() > 1) {
      flush();
      step_ = step;
      look(*rows.data);
      if (scale_ > 0.0) learned_.replay(problem_);
    }
    for (std::size_t u = 0; u < memory_.size(); ++u) {
      std::vector<int> nodes;
      collect(config_->units[u], *rows.data, &nodes);
      if (!whole(static_cast<int>(u), nodes)) continue;
      remember(static_cast<int>(u), step, nodes, rows);
    }
    std::memcpy(at(previous_), g, count_ * sizeof(T));
    const double keep = decoded_ > 0 ? kAverageKeep : 0.0;
    blend(average_, keep, g, 1.0 - keep);
    sketch_results();
    decoded_ = step + 1;
  }

  void late(std::int64_t step, int node, const void* data,
            const BufferRef& keep) override {
    const int u = unit_of_[node];
    if (u < 0 || !finite(data)) return;
    flush();
    const T* row = static_cast<const T*>(data);
    if (node == config_->units[u]) remember(u, step, row, keep);
    const auto found =
        std::find_if(pending_.begin(), pending_.end(),
                     [step](const Pending& p) { return p.step == step; });
    if (found == pending_.end()) return;
    if (!add_late(&*found, u, node, row, keep)) return;
    if (found->left > 0) return;
    const double truth = learn(*found, found->missing);
    const auto& p = found->chosen.predicted;
    settled_.push_back(
        {step, bucket_, found->problem.rho, p.mean, p.bound, std::max(truth, 0.0)});
    pending_.erase(found);
  }

  bool compensate(void* out) override {
    if (!carry_) return false;
    blend_into(static_cast<T*>(out), 1.0, at(carry_), 1.0);
    carry_.reset();
    return true;
  }

  bool idle() override {
    if (due_.empty()) return false;
    const Due due = std::move(due_.front());
    due_.pop_front();
    Shard& shard = memory_[due.unit];
    blend(shard.mean, 1.0 - due.gain, static_cast<const T*>(due.data), due.gain);
    sketch_.take(at(shard.mean), 1.0 / config_->weights[due.unit], &shard.mean_sketch);
    return true;
  }

 private:
  struct Shard {
    const T* last = nullptr;
    BufferRef keep, mean;
    std::vector<float> last_sketch, mean_sketch;  // of gradients, not weighted
    std::int64_t step = -1, seen = 0;
  };
  struct Due {
    int unit;
    double gain;
    const void* data;
    BufferRef keep;
  };

  T* at(const BufferRef& buffer) const { return reinterpret_cast<T*>(buffer->data()); }
  BufferRef fresh() const {
    BufferRef buffer = pool_->get(count_ * sizeof(T));
    std::memset(buffer->data(), 0, count_ * sizeof(T));
    return buffer;
  }
  void blend_into(T* out, double a, const T* b, double weight) const {
    ops::weighted_sum<T, T>({a, weight}, {out, b}, out, nullptr, count_);
  }
  void blend(const BufferRef& out, double a, const T* b, double weight) const {
    blend_into(at(out), a, b, weight);
  }
  void flush() {
    while (idle()) {
    }
  }

  void sketch_results() {
    sketch_.take(at(previous_), 1.0, &previous_sketch_);
    sketch_.take(at(average_), 1.0, &average_sketch_);
  }

  bool whole(int u, const std::vector<int>& nodes) const {
    int parts = 0;
    for (int node : nodes) parts += config_->stop[node] - config_->start[node];
    return parts ==
           config_->stop[config_->units[u]] - config_->start[config_->units[u]];
  }

  void remember(int u, std::int64_t step, const std::vector<int>& nodes,
                const Rows& rows) {
    const T* data = static_cast<const T*>((*rows.data)[nodes[0]]);
    BufferRef keep;
    for (const auto& [node, ref] : *rows.keep) {
      if (node == nodes[0]) keep = ref;
    }
    if (nodes.size() > 1) {
      keep = fresh();
      std::vector<const T*> inputs;
      for (int n : nodes) inputs.push_back(static_cast<const T*>((*rows.data)[n]));
      ops::weighted_sum<T, T>(std::vector<double>(inputs.size(), 1.0), inputs, at(keep),
                              nullptr, count_);
      data = at(keep);
    }
    remember(u, step, data, keep);
  }

  void remember(int u, std::int64_t step, const T* data, BufferRef keep) {
    Shard& shard = memory_[u];
    if (step <= shard.step) return;
    if (keep->bytes() >
        2 * count_ * sizeof(T) + 4096) {  // a whole row of the own worker
      BufferRef own = pool_->get(count_ * sizeof(T));
      std::memcpy(own->data(), data, count_ * sizeof(T));
      data = at(own);
      keep = std::move(own);
    }
    ++shard.seen;
    shard.step = step;
    shard.last = data;
    shard.keep = keep;
    sketch_.take(data, 1.0 / config_->weights[u], &shard.last_sketch);
    if (!shard.mean) shard.mean = fresh();
    const double gain = std::max(1.0 / static_cast<double>(shard.seen), kMeanGain);
    due_.push_back({u, gain, data, std::move(keep)});
    if (due_.size() > 4 * memory_.size()) idle();  // rows are not kept for ever
  }

  // The sketch of everything, its inner products, the step's problem.
  void look(const std::vector<const void*>& rows) {
    const int k = static_cast<int>(memory_.size());
    const auto& w = config_->weights;
    shards_ = {std::vector<double>(k), w, std::vector<char>(k), std::vector<double>(k)};
    nodes_.assign(k, {});
    const std::size_t s = sketch_.size();
    sketched_.assign(static_cast<std::size_t>(3 * k + 2) * s, 0.0f);
    const auto place = [&](int i) { return sketched_.data() + i * s; };
    for (int u = 0; u < k; ++u) {
      collect(config_->units[u], rows, &nodes_[u]);
      int parts = 0;
      for (int n : nodes_[u]) {
        sketch_.add(static_cast<const T*>(rows[n]), 1.0, place(u));
        parts += config_->stop[n] - config_->start[n];
      }
      shards_.alpha[u] =
          static_cast<double>(parts) /
          (config_->stop[config_->units[u]] - config_->start[config_->units[u]]);
      if (parts > 0) sketch_.multiply(1.0 / (shards_.alpha[u] * w[u]), place(u));
      const Shard& shard = memory_[u];
      shards_.seen[u] = shard.seen > 0;
      shards_.age[u] = shard.seen > 0 ? static_cast<double>(step_ - shard.step) : 0.0;
      if (shard.seen == 0) continue;
      std::copy(shard.last_sketch.begin(), shard.last_sketch.end(), place(k + u));
      std::copy(shard.mean_sketch.begin(), shard.mean_sketch.end(), place(2 * k + u));
    }
    std::copy(previous_sketch_.begin(), previous_sketch_.end(), place(3 * k));
    std::copy(average_sketch_.begin(), average_sketch_.end(), place(3 * k + 1));
    scale_ = sketch_.normalise(&sketched_, static_cast<std::size_t>(k) * s);
    weights_ = decoder::span_weights(shards_);
    base_ = sketch_.gram(sketched_, 3 * k + 2);
    problem_ = decoder::make_problem(base_, sketch_.tiles(), shards_, weights_);
  }

  // guess = rho V c and out = R + guess, tile by tile; the tail is rescaled.
  void sum(const std::vector<const void*>& rows, T* out, T* guess) const {
    const int k = static_cast<int>(memory_.size());
    const double rho = problem_.rho;
    for (int t = 0; t <= sketch_.tiles(); ++t) {
      const std::size_t begin = sketch_.begin(t), end = sketch_.begin(t + 1);
      if (begin == end) continue;
      std::vector<double> combined(3 * k + 2, 0.0);
      const bool tail = t == sketch_.tiles();
      for (int i = 0; i < 3 * k + 2; ++i) {
        for (int s = 0; s < decoder::kSpan; ++s) {
          const double c = tail ? (s == 0 ? 1.0 : 0.0) : chosen_.c[t][s];
          combined[i] += rho * weights_[i * decoder::kSpan + s] * c;
        }
      }
      std::vector<const T*> inputs, here;
      std::vector<double> weights;
      const auto use = [&](const T* data, double weight) {
        inputs.push_back(data + begin);
        weights.push_back(weight);
      };
      for (int u = 0; u < k; ++u) {
        const double w = config_->weights[u];
        for (int n : nodes_[u]) {
          use(static_cast<const T*>(rows[n]), combined[u] / (shards_.alpha[u] * w));
          here.push_back(inputs.back());
        }
        if (combined[k + u] != 0.0) use(memory_[u].last, combined[k + u] / w);
        if (combined[2 * k + u] == 0.0) continue;
        use(at(memory_[u].mean), combined[2 * k + u] / w);
      }
      use(at(previous_), combined[3 * k]);
      use(at(average_), combined[3 * k + 1]);
      const std::size_t n = end - begin;
      ops::weighted_sum<T, T>(weights, inputs, guess + begin, nullptr, n);
      here.push_back(guess + begin);
      ops::weighted_sum<T, T>(std::vector<double>(here.size(), 1.0), here, out + begin,
                              nullptr, n);
    }
  }

  Pending label_later(const Rows& rows) const {
    Pending pending;
    pending.step = step_;
    pending.problem = problem_;
    pending.chosen = chosen_;
    pending.scale = scale_;
    const int k = static_cast<int>(memory_.size());
    const std::size_t s = sketch_.size();
    pending.span.assign(decoder::kSpan * s, 0.0f);
    for (int i = 0; i < 3 * k + 2; ++i) {
      for (int v = 0; v < decoder::kSpan; ++v) {
        const auto w = static_cast<float>(weights_[i * decoder::kSpan + v]);
        if (w == 0.0f) continue;
        const float* from = &sketched_[i * s];
        float* to = &pending.span[v * s];
        for (std::size_t e = 0; e < s; ++e) to[e] += w * from[e];
      }
    }
    pending.arrived.assign(s, 0.0f);
    pending.missing.assign(s, 0.0f);
    pending.lacks.assign(config_->stop[root()], 1);
    for (int u = 0; u < k; ++u) {
      for (int n : nodes_[u]) {
        sketch_.add(static_cast<const T*>((*rows.data)[n]), scale_,
                    pending.arrived.data());
        std::fill(pending.lacks.begin() + config_->start[n],
                  pending.lacks.begin() + config_->stop[n], 0);
      }
    }
    pending.left =
        static_cast<int>(std::count(pending.lacks.begin(), pending.lacks.end(), 1));
    return pending;
  }

  int root() const {
    int node = 0;
    while (config_->parent[node] >= 0) node = config_->parent[node];
    return node;
  }

  // True when the row brought something that was lacking.
  bool add_late(Pending* p, int u, int node, const T* row, const BufferRef& keep) {
    const auto from = p->lacks.begin() + config_->start[node];
    const auto to = p->lacks.begin() + config_->stop[node];
    const int parts = config_->stop[node] - config_->start[node];
    const int lacking = static_cast<int>(std::count(from, to, 1));
    std::vector<const T*> inputs = {row};
    std::vector<double> weights = {1.0};
    if (lacking < parts) {
      // A whole unit of which some was here: the rest is what is new.
      if (lacking == 0 || node != config_->units[u]) return false;
      for (std::size_t i = 0; i < p->have.size(); ++i) {
        if (unit_of_[p->have[i].first] != u) continue;
        inputs.push_back(static_cast<const T*>(p->have_data[i]));
        weights.push_back(-1.0);
      }
    }
    if (lacking < parts || node != config_->units[u]) {
      p->have.emplace_back(node, keep);
      p->have_data.push_back(row);
    }
    std::fill(from, to, 0);
    p->left -= lacking;
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      sketch_.add(inputs[i], weights[i] * p->scale, p->missing.data());
    }
    // The result of that step was off by this.
    inputs.push_back(at(p->guess));
    weights.push_back(-lacking * part_weight(u) / p->problem.rho);
    const BufferRef off = pool_->get(count_ * sizeof(T));
    ops::weighted_sum<T, T>(weights, inputs, at(off), nullptr, count_);
    const double age = static_cast<double>(decoded_ - 1 - p->step);
    if (age == 0.0) blend(previous_, 1.0, at(off), 1.0);
    blend(average_, 1.0, at(off), (1.0 - kAverageKeep) * std::pow(kAverageKeep, age));
    sketch_results();
    if (!config_->compensate) return true;
    if (!carry_) {
      carry_ = off;
    } else {
      blend(carry_, 1.0, at(off), 1.0);
    }
    return true;
  }

  // A label at once: complete shards are taken away in the place of the missing, and
  // estimated from the others. Not in the place of shards whose memory is old: those
  // that are always in time are easier to estimate.
  void mirror() {
    if (scale_ == 0.0) return;
    std::vector<int> there, gone;
    std::vector<double> ages;
    for (int u = 0; u < shards_.size(); ++u) {
      if (shards_.alpha[u] < 1.0) continue;
      there.push_back(u);
      ages.push_back(shards_.seen[u] ? shards_.age[u] : static_cast<double>(step_ + 1));
    }
    if (there.size() < 2) return;
    std::nth_element(ages.begin(), ages.begin() + ages.size() / 2, ages.end());
    const double usual = ages[ages.size() / 2];
    for (int u = 0; u < shards_.size(); ++u) {
      if (shards_.alpha[u] >= 1.0) continue;
      const double age =
          shards_.seen[u] ? shards_.age[u] : static_cast<double>(step_ + 1);
      if (age <= 2.0 * usual + 1.0) gone.push_back(u);
    }
    const std::size_t count = std::min(gone.size(), there.size() / 2);
    if (count == 0) return;
    for (std::size_t i = 0; i < count; ++i) {  // the first `count` are drawn
      std::swap(there[i], there[i + random_() % (there.size() - i)]);
    }
    learned_.teach(base_, sketch_.tiles(), shards_,
                   std::vector<int>(there.begin(), there.begin() + count));
  }

  void judge_attempt(const T* result) {
    std::vector<float> x(sketch_.size(), 0.0f);
    sketch_.add(result, tried_.scale, x.data());
    for (std::size_t e = 0; e < x.size(); ++e) x[e] -= tried_.arrived[e];
    learn(tried_, x);
    tried_ = {};
    tried_step_ = -1;
  }

  // `sum`: what was missing, weighted, on the sketch. Returns the true error.
  double learn(const Pending& p, const std::vector<float>& sum) {
    if (p.scale == 0.0 || p.problem.rho <= 0.0) return 0.0;
    const double inverse = 1.0 / p.problem.rho;
    decoder::Label label;
    const std::size_t s = sketch_.size();
    for (int t = 0; t < sketch_.tiles(); ++t) {
      decoder::Coefficients target{};
      double norm = 0.0, cross = 0.0;
      for (std::size_t e = sketch_.first(t); e < sketch_.first(t + 1); ++e) {
        const double x = inverse * sum[e];
        norm += x * x;
        cross += x * p.arrived[e];
        for (int v = 0; v < decoder::kSpan; ++v) target[v] += x * p.span[v * s + e];
      }
      label.target.push_back(target);
      label.norm.push_back(norm);
      label.cross.push_back(cross);
    }
    learned_.learn(p.problem, p.chosen, label);
    return decoder::true_error(p.problem, p.chosen.c, label);
  }

  const int bucket_, window_;
  const std::size_t count_;
  const Sketch sketch_;
  const std::shared_ptr<BufferPool> pool_;
  std::vector<Shard> memory_;  // rows as sent: weight times gradient
  BufferRef previous_, average_, carry_;
  std::vector<float> previous_sketch_, average_sketch_;
  std::deque<Due> due_;
  std::minstd_rand random_{1};
  std::deque<Pending> pending_;
  std::int64_t decoded_ = 0;

  // The last attempt.
  std::int64_t step_ = -1;
  decoder::Shards shards_;
  std::vector<std::vector<int>> nodes_;  // by unit, those that are here
  std::vector<float> sketched_;
  double scale_ = 0.0;
  std::vector<double> base_, weights_;
  decoder::Problem problem_;
  decoder::Chosen chosen_;
  Pending tried_;
  std::int64_t tried_step_ = -1;
};

}  // namespace

Estimator::Estimator(std::shared_ptr<const ApproximateSettings> config, int tiles)
    : config_(std::move(config)),
      unit_of_(config_->left.size(), -1),
      learned_(tiles, config_->network) {
  for (std::size_t u = 0; u < config_->units.size(); ++u) {
    std::vector<int> below = {config_->units[u]};
    while (!below.empty()) {
      const int node = below.back();
      below.pop_back();
      unit_of_[node] = static_cast<int>(u);
      if (config_->left[node] < 0) continue;
      below.push_back(config_->left[node]);
      below.push_back(config_->right[node]);
    }
  }
}

void Estimator::collect(int node, const std::vector<const void*>& rows,
                        std::vector<int>* nodes) const {
  if (rows[node] != nullptr) {
    nodes->push_back(node);
  } else if (config_->left[node] >= 0) {
    collect(config_->left[node], rows, nodes);
    collect(config_->right[node], rows, nodes);
  }
}

double Estimator::part_weight(int u) const {
  const int node = config_->units[u];
  return config_->weights[u] / (config_->stop[node] - config_->start[node]);
}

double Estimator::share(const std::vector<const void*>& rows) const {
  double sum = 0.0;
  for (std::size_t u = 0; u < config_->units.size(); ++u) {
    std::vector<int> nodes;
    collect(config_->units[u], rows, &nodes);
    for (int node : nodes) {
      sum += part_weight(static_cast<int>(u)) *
             (config_->stop[node] - config_->start[node]);
    }
  }
  return sum;
}

bool Estimator::rest_is_here(const std::vector<const void*>& rows,
                             const std::vector<char>& refused) const {
  double want = 0.0;
  for (std::size_t u = 0; u < config_->units.size(); ++u) {
    if (!refused[u]) want += config_->weights[u];
  }
  return share(rows) >= want - 1e-9;
}

std::unique_ptr<Estimator> Estimator::make(
    std::shared_ptr<const ApproximateSettings> config, int bucket, int buckets,
    const Slice& slice, int window, DType dtype, std::shared_ptr<BufferPool> pool) {
  if (slice.count == 0) return nullptr;
  Sketch sketch(slice, config->tensors, static_cast<int>(config->units.size()),
                buckets);
  if (dtype == DType::kFloat32) {
    return std::make_unique<SliceEstimator<float>>(
        std::move(config), bucket, std::move(sketch), window, std::move(pool));
  }
  return std::make_unique<SliceEstimator<double>>(
      std::move(config), bucket, std::move(sketch), window, std::move(pool));
}

}  // namespace codedgrad
