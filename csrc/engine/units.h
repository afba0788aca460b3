// The units of a batch in the summation tree: which rows belong to which unit, and how
// much of the batch has arrived.
#pragma once

#include <memory>
#include <vector>

#include "engine/approximate.h"

namespace codedgrad {

class Units {
 public:
  explicit Units(std::shared_ptr<const ApproximateSettings> settings);

  int count() const { return static_cast<int>(settings_->units.size()); }
  int node(int unit) const { return settings_->units[unit]; }
  double weight(int unit) const { return settings_->weights[unit]; }
  // Returns the unit that a row belongs to, -1 if it belongs to none.
  int of(int node) const { return of_[node]; }

  // A part is a leaf of the tree; a node stands for parts [first(node), end(node)).
  int first(int node) const { return settings_->start[node]; }
  int end(int node) const { return settings_->stop[node]; }
  int parts(int node) const { return end(node) - first(node); }
  int all_parts() const;
  // Returns one part's share of the batch, for parts of this unit.
  double part_weight(int unit) const;

  // Appends the arrived nodes below the unit's node; of one path the highest.
  void collect(int unit, const std::vector<const void*>& rows,
               std::vector<int>* nodes) const {
    collect_below(node(unit), rows, nodes);
  }
  // Returns true when the nodes, which do not overlap, make up the unit.
  bool whole(int unit, const std::vector<int>& nodes) const;

  // Returns the arrived share of the batch.
  double share(const std::vector<const void*>& rows) const;
  // Returns true when all but the refused units are here.
  bool rest_is_here(const std::vector<const void*>& rows,
                    const std::vector<char>& refused) const;

 private:
  void collect_below(int node, const std::vector<const void*>& rows,
                     std::vector<int>* nodes) const;

  const std::shared_ptr<const ApproximateSettings> settings_;
  std::vector<int> of_;  // by node
};

}  // namespace codedgrad
