#include "engine/units.h"

#include <utility>

namespace codedgrad {

Units::Units(std::shared_ptr<const ApproximateSettings> settings)
    : settings_(std::move(settings)), of_(settings_->left.size(), -1) {
  for (int unit = 0; unit < count(); ++unit) {
    std::vector<int> below = {node(unit)};
    while (!below.empty()) {
      const int top = below.back();
      below.pop_back();
      of_[top] = unit;
      if (settings_->left[top] < 0) continue;
      below.push_back(settings_->left[top]);
      below.push_back(settings_->right[top]);
    }
  }
}

int Units::all_parts() const {
  int root = 0;
  while (settings_->parent[root] >= 0) root = settings_->parent[root];
  return end(root);
}

double Units::part_weight(int unit) const { return weight(unit) / parts(node(unit)); }

void Units::collect_below(int node, const std::vector<const void*>& rows,
                          std::vector<int>* nodes) const {
  if (rows[node] != nullptr) {
    nodes->push_back(node);
  } else if (settings_->left[node] >= 0) {
    collect_below(settings_->left[node], rows, nodes);
    collect_below(settings_->right[node], rows, nodes);
  }
}

bool Units::whole(int unit, const std::vector<int>& nodes) const {
  int here = 0;
  for (int n : nodes) here += parts(n);
  return here == parts(node(unit));
}

double Units::share(const std::vector<const void*>& rows) const {
  double sum = 0.0;
  for (int unit = 0; unit < count(); ++unit) {
    std::vector<int> nodes;
    collect(unit, rows, &nodes);
    for (int n : nodes) sum += part_weight(unit) * parts(n);
  }
  return sum;
}

bool Units::rest_is_here(const std::vector<const void*>& rows,
                         const std::vector<char>& refused) const {
  double want = 0.0;
  for (int unit = 0; unit < count(); ++unit) {
    if (!refused[unit]) want += weight(unit);
  }
  return share(rows) >= want - 1e-9;
}

}  // namespace codedgrad
