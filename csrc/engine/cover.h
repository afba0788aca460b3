// When do the arrivals cover the batch, and how is the sum formed from them? The one
// place where the engine knows a code, compiled by Python into a plan of integers.
#pragma once

#include <cstddef>
#include <limits>
#include <memory>
#include <vector>

#include "ops/wire.h"

namespace codedgrad {

enum class DType { kFloat32, kFloat64 };

inline std::size_t bytes_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : 8; }

using SumProgram = std::vector<int>;  // see ops/cpu/sums.h

// The arrivals of one slice of one bucket in one step. add() is called under the
// session's lock and by the engine's thread only, which may therefore read without it.
class Cover {
 public:
  virtual ~Cover() = default;
  // Notes that `row` has arrived. False when that brought nothing new.
  virtual bool add(int row) = 0;
  // True when `row` has arrived or is implied by what has.
  virtual bool has(int row) const = 0;
  virtual bool complete() const = 0;
  // out = sum over the batch (and out2, unless null), from rows[row] -> data; rows
  // that have not arrived are null. Only when complete(). `wire`: what the senders of
  // rows round their sums to.
  virtual void decode(const std::vector<const void*>& rows, void* out, void* out2,
                      std::size_t count, DType dtype, ops::Wire wire) const = 0;
  // The same, unrounded, as a program for a device that pushes rows[0], rows[1], ...
  // in turn, on as small a stack as can be; the same bits (but for those of a NaN)
  // since only the sides of additions are exchanged. False where there is none.
  virtual bool program(SumProgram*, std::vector<int>* /*rows*/) const { return false; }
};

class Plan {
 public:
  virtual ~Plan() = default;
  virtual int rows() const = 0;
  // Of the programs of its covers; the largest int where they have none.
  virtual int most_inputs() const { return std::numeric_limits<int>::max(); }
  virtual std::unique_ptr<Cover> make_cover() const = 0;
};

// Every row is a node of a binary summation tree; arrays of length nodes, -1 = none.
// `rows`: the nodes that are rows. A row's worker rounds, where messages are narrow,
// after every addition, so an addition at or below a row's node is rounded here too;
// those above are not.
std::shared_ptr<const Plan> make_tree_plan(std::vector<int> left,
                                           std::vector<int> right,
                                           std::vector<int> parent, int root,
                                           const std::vector<int>& rows = {});

// Rows are general combinations: matrix [rows, parts], row-major. A cover is looked
// for once `least` rows have arrived.
std::shared_ptr<const Plan> make_linear_plan(std::vector<double> matrix, int rows,
                                             int parts, int least);

}  // namespace codedgrad
