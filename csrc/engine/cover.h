// When the arrivals cover the batch, and how the sum is formed from them. This is the
// only place where the engine knows a code, which Python has compiled into a plan.
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

// The arrivals of one slice of one bucket in one step. Only the engine's thread changes
// it, under the session's lock, so that thread may read without the lock. search(),
// decode() and program() may take long: they change nothing that other threads read,
// and are called without the lock.
class Cover {
 public:
  virtual ~Cover() = default;
  // Notes that `row` has arrived. Returns false when that brought nothing new.
  virtual bool add(int row) = 0;
  // Looks whether what has arrived covers, where add() could not tell. When it returns
  // true, found() must follow, under the lock.
  virtual bool search() { return false; }
  virtual void found() {}
  // Returns true when `row` has arrived or is implied by what has.
  virtual bool has(int row) const = 0;
  virtual bool complete() const = 0;
  // Writes the sum over the batch to `out`, and to `out2` unless it is null. It may be
  // called only when complete(). `rows` gives the data by row, null for rows that have
  // not arrived; `wire` is the type to which the senders of rows round their sums.
  virtual void decode(const std::vector<const void*>& rows, void* out, void* out2,
                      std::size_t count, DType dtype, ops::Wire wire) const = 0;
  // Returns the same sum, unrounded, as a program for a device, which pushes rows[0],
  // rows[1], ... in turn; false where there is none. Its stack is as small as can be.
  // Only the sides of additions are exchanged, so it has the same bits (but for those
  // of a NaN).
  virtual bool program(SumProgram*, std::vector<int>* /*rows*/) const { return false; }
};

class Plan {
 public:
  virtual ~Plan() = default;
  virtual int rows() const = 0;
  // Returns the most rows that a program of its covers has; the largest int where the
  // covers have no programs.
  virtual int most_inputs() const { return std::numeric_limits<int>::max(); }
  virtual std::unique_ptr<Cover> make_cover() const = 0;
};

// Every row is a node of a binary summation tree, given by arrays over the nodes, -1
// where there is none. `rows` are the nodes that are sent as rows. Where messages are
// narrow, a row's worker rounds after every addition; so additions at or below a row's
// node are rounded here too, and those above are not.
std::shared_ptr<const Plan> make_tree_plan(std::vector<int> left,
                                           std::vector<int> right,
                                           std::vector<int> parent, int root,
                                           const std::vector<int>& rows = {});

// Rows are general combinations of parts, given by a matrix [rows, parts], row-major.
// The plan looks for a cover once `least` rows have arrived.
std::shared_ptr<const Plan> make_linear_plan(std::vector<double> matrix, int rows,
                                             int parts, int least);

}  // namespace codedgrad
