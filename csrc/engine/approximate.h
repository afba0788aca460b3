// The settings of estimated steps, and what is told of each estimate.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "decoder/network.h"
#include "engine/buffer_pool.h"

namespace codedgrad {

// How a step may end without a cover. A unit is what a worker sends in one row when
// nobody is late: usually a shard.
struct ApproximateSettings {
  double max_error = 0.1;  // bound on |g^ - g|^2 / |g|^2 of a slice
  // Bound on what an estimate adds to the batch's own noise, as a share of that, and on
  // the missing share of the batch; infinite: none.
  double max_noise = std::numeric_limits<double>::infinity();
  double patience = 0.1;  // as a share of the time until half of the batch was there
  bool compensate = false;
  std::vector<int> left, right, parent, start, stop;  // the summation tree, by node
  std::vector<int> units;                             // their nodes
  std::vector<double> weights;                        // their shares of the batch
  std::vector<std::size_t> tensors;  // ends of the gradient's tensors in the payload
  std::shared_ptr<const decoder::Network> network;
};

// The rows of a slice that are here, by node (null where there is none), and the
// buffers that keep them.
struct Rows {
  const std::vector<const void*>* data;
  const std::vector<std::pair<int, BufferRef>>* keep;
};

// A slice that was settled. It is told a second time, with the truth, once all late
// rows have come.
struct Settled {
  std::int64_t step = 0;
  int bucket = 0;
  double missing = 0, predicted = 0, bound = 0;
  double truth = -1;  // -1: it is not known (yet)
  // What it adds to the noise, as a share of the batch's own; infinite where that is
  // not known.
  double noise = 0, true_noise = 0;
};

}  // namespace codedgrad
