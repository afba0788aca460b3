#include "engine/cover.h"

#include <map>
#include <mutex>
#include <stdexcept>
#include <string>

#include "ops/cpu/least_squares.h"
#include "ops/cpu/sums.h"
#include "ops/cpu/weighted_sum.h"
#include "ops/device_sum.h"

namespace codedgrad {
namespace {

// ---- selection: rows are nodes of the summation tree ----

struct Tree {
  std::vector<int> left, right, parent;
  int root;
  std::vector<char> rounded;  // at or below a row
};

class TreeCover final : public Cover {
 public:
  explicit TreeCover(std::shared_ptr<const Tree> tree)
      : tree_(std::move(tree)),
        arrived_(tree_->left.size()),
        satisfied_(tree_->left.size()) {}

  bool add(int row) override {
    if (has(row)) return false;
    arrived_[row] = satisfied_[row] = 1;
    for (int node = tree_->parent[row]; node >= 0; node = tree_->parent[node]) {
      if (!satisfied_[tree_->left[node]] || !satisfied_[tree_->right[node]]) break;
      satisfied_[node] = 1;
    }
    return true;
  }

  bool has(int row) const override {
    for (int node = row; node >= 0; node = tree_->parent[node]) {
      if (satisfied_[node]) return true;
    }
    return false;
  }

  bool complete() const override { return satisfied_[tree_->root] != 0; }

  void decode(const std::vector<const void*>& rows, void* out, void* out2,
              std::size_t count, DType dtype, ops::Wire wire) const override {
    std::vector<int> program, inputs;
    emit(tree_->root, wire, &program, &inputs);
    if (dtype == DType::kFloat32) {
      run<float>(program, inputs, rows, out, out2, count, wire);
    } else {
      run<double>(program, inputs, rows, out, out2, count, wire);
    }
  }

  bool program(SumProgram* program, std::vector<int>* rows) const override {
    emit_deeper_first(tree_->root, program, rows);
    int next = 0;
    for (int& token : *program) {
      if (token != ops::kAdd) token = next++;
    }
    return next <= ops::kMostDeviceInputs;
  }

 private:
  // Returns the places on the stack that the node's sum needs. The side that needs more
  // comes first, so n rows need at most log2(n) + 1.
  int emit_deeper_first(int node, SumProgram* program, std::vector<int>* rows) const {
    if (arrived_[node]) {
      program->push_back(0);
      rows->push_back(node);
      return 1;
    }
    SumProgram first, second;
    std::vector<int> first_rows, second_rows;
    int more = emit_deeper_first(tree_->left[node], &first, &first_rows);
    int less = emit_deeper_first(tree_->right[node], &second, &second_rows);
    if (more < less) {
      std::swap(more, less);
      first.swap(second);
      first_rows.swap(second_rows);
    }
    program->insert(program->end(), first.begin(), first.end());
    program->insert(program->end(), second.begin(), second.end());
    program->push_back(ops::kAdd);
    rows->insert(rows->end(), first_rows.begin(), first_rows.end());
    rows->insert(rows->end(), second_rows.begin(), second_rows.end());
    return more == less ? more + 1 : more;
  }

  // A node that has arrived stands for its subtree, whose sum would have the same bits.
  void emit(int node, ops::Wire wire, std::vector<int>* program,
            std::vector<int>* inputs) const {
    if (arrived_[node]) {
      program->push_back(static_cast<int>(inputs->size()));
      inputs->push_back(node);
      return;
    }
    emit(tree_->left[node], wire, program, inputs);
    emit(tree_->right[node], wire, program, inputs);
    const bool rounded = wire != ops::Wire::kAsIs && tree_->rounded[node];
    program->push_back(rounded ? ops::kAddRounded : ops::kAdd);
  }

  template <typename T>
  void run(const std::vector<int>& program, const std::vector<int>& inputs,
           const std::vector<const void*>& rows, void* out, void* out2,
           std::size_t count, ops::Wire wire) const {
    std::vector<const T*> data;
    for (int row : inputs) data.push_back(static_cast<const T*>(rows[row]));
    ops::tree_sum<T>(program, data, static_cast<T*>(out), static_cast<T*>(out2), count,
                     wire);
  }

  std::shared_ptr<const Tree> tree_;
  std::vector<char> arrived_, satisfied_;
};

class TreePlan final : public Plan {
 public:
  TreePlan(std::shared_ptr<const Tree> tree, std::size_t sent)
      : tree_(std::move(tree)), sent_(static_cast<int>(sent)) {}
  int rows() const override { return static_cast<int>(tree_->left.size()); }
  int most_inputs() const override { return sent_; }
  std::unique_ptr<Cover> make_cover() const override {
    return std::make_unique<TreeCover>(tree_);
  }

 private:
  std::shared_ptr<const Tree> tree_;
  int sent_;
};

// ---- general combinations: weights by least squares, cached by arrival set ----

constexpr double kTolerance = 1e-8;    // |1 - a^T B_S| below this is a cover
constexpr std::size_t kCached = 1024;  // arrival sets remembered

class LinearPlan;

class LinearCover final : public Cover {
 public:
  LinearCover(const LinearPlan* plan, int rows) : plan_(plan), arrived_(rows) {}
  bool add(int row) override {
    if (has(row)) return false;
    arrived_[row] = true;
    ++count_;
    return true;
  }
  bool search() override;
  void found() override { complete_ = true; }
  bool has(int row) const override { return complete_ || arrived_[row]; }
  bool complete() const override { return complete_; }
  void decode(const std::vector<const void*>& rows, void* out, void* out2,
              std::size_t count, DType dtype, ops::Wire) const override {
    if (dtype == DType::kFloat32) {
      run<float>(rows, out, out2, count);
    } else {
      run<double>(rows, out, out2, count);
    }
  }

 private:
  template <typename T>
  void run(const std::vector<const void*>& rows, void* out, void* out2,
           std::size_t count) const {
    std::vector<const T*> data;
    std::vector<double> weights;
    for (std::size_t row = 0; row < rows.size(); ++row) {
      if (weights_[row] == 0.0) continue;
      data.push_back(static_cast<const T*>(rows[row]));
      weights.push_back(weights_[row]);
    }
    ops::weighted_sum<T>(weights, data, static_cast<T*>(out), static_cast<T*>(out2),
                         count);
  }

  const LinearPlan* plan_;
  std::vector<bool> arrived_;
  int count_ = 0;
  bool complete_ = false;
  std::vector<double> weights_;  // by row, once they cover; of the engine's thread
};

class LinearPlan final : public Plan {
 public:
  LinearPlan(std::vector<double> matrix, int rows, int parts, int least)
      : subsets_(std::move(matrix), rows, parts), rows_(rows), least_(least) {}
  int rows() const override { return rows_; }
  int least() const { return least_; }
  std::unique_ptr<Cover> make_cover() const override {
    return std::make_unique<LinearCover>(this, rows_);
  }

  // Returns the weights by row for the arrival set; none when it does not cover.
  std::vector<double> weights(const std::vector<bool>& arrived) const {
    auto known = cache_.find(arrived);
    if (known != cache_.end()) return known->second;
    double residual = 0.0;
    std::vector<double> result = subsets_.solve(arrived, &residual);
    if (!(residual < kTolerance)) result.clear();
    if (cache_.size() >= kCached) cache_.clear();
    cache_[arrived] = result;
    return result;
  }

 private:
  ops::RowSubsets subsets_;
  int rows_, least_;
  mutable std::map<std::vector<bool>, std::vector<double>> cache_;  // engine's thread
};

bool LinearCover::search() {
  if (count_ < plan_->least()) return false;
  weights_ = plan_->weights(arrived_);
  return !weights_.empty();
}

}  // namespace

std::shared_ptr<const Plan> make_tree_plan(std::vector<int> left,
                                           std::vector<int> right,
                                           std::vector<int> parent, int root,
                                           const std::vector<int>& rows) {
  const int nodes = static_cast<int>(left.size());
  auto inside = [nodes](int node) { return node >= -1 && node < nodes; };
  bool good = right.size() == left.size() && parent.size() == left.size() &&
              root >= 0 && root < nodes;
  for (int i = 0; good && i < nodes; ++i) {
    good = inside(left[i]) && inside(right[i]) && inside(parent[i]) &&
           (left[i] < 0) == (right[i] < 0);
  }
  std::vector<char> rounded(left.size(), 0);
  for (int row : rows) {
    good = good && row >= 0 && row < nodes;
    if (good) rounded[row] = 1;
  }
  if (!good) throw std::invalid_argument("the summation tree is not well formed");
  for (int i = nodes - 1; i >= 0; --i) {  // parents come after their children
    if (parent[i] >= 0 && rounded[parent[i]]) rounded[i] = 1;
  }
  const std::size_t sent = rows.empty() ? left.size() : rows.size();
  auto tree = std::make_shared<const Tree>(Tree{
      std::move(left), std::move(right), std::move(parent), root, std::move(rounded)});
  return std::make_shared<TreePlan>(std::move(tree), sent);
}

std::shared_ptr<const Plan> make_linear_plan(std::vector<double> matrix, int rows,
                                             int parts, int least) {
  if (rows <= 0 || parts <= 0 ||
      matrix.size() != static_cast<std::size_t>(rows) * parts) {
    throw std::invalid_argument("the code's matrix must be rows x parts");
  }
  return std::make_shared<LinearPlan>(std::move(matrix), rows, parts, least);
}

}  // namespace codedgrad
