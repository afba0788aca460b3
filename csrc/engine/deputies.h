// What a session remembers so that one worker can decode a slice in place of another
// (docs/faults.md has the protocol; session_deputies.cpp says when somebody acts,
// session_notes.cpp what is sent and heard).
//
// Owners and lifetimes: a kept row shares its buffer with the training thread's pool
// and lives until every worker has applied the step; a moved row lives until its slice
// is decoded. All but `needs` belongs to the engine's thread.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

#include "engine/buffer_pool.h"
#include "engine/cover.h"

namespace codedgrad {

enum class Note : std::int32_t { kAsk = 1, kMoved = 2, kInstead = 3, kNeed = 4 };

// Begins a note, a progress message that is not empty. Data follow at kNoteBytes.
struct NoteHeader {
  Note what = Note::kAsk;
  std::int32_t owner = 0, bucket = 0, row = 0;
};
constexpr std::size_t kNoteBytes = 64;

struct SliceKey {
  std::int64_t step = 0;
  int bucket = 0, owner = 0;
  bool operator<(const SliceKey& other) const {
    return std::tie(step, bucket, owner) <
           std::tie(other.step, other.bucket, other.owner);
  }
};

// The rows that this worker has sent in one step.
struct KeptRows {
  struct Part {
    int bucket = 0, row = 0;
    BufferRef data;  // all of the row
  };
  std::vector<Part> parts;
  std::map<int, int> buckets;  // by row: how many of its buckets are here
};

struct Deputies {
  // A slice that this worker decodes in place of its owner.
  struct Moved {
    std::unique_ptr<Cover> cover;
    std::vector<const void*> rows;
    std::vector<BufferRef> keep;
    bool done = false;
  };
  // What others lack of a step.
  struct Need {
    int times = 0;  // notes that said so
    std::set<int> rows;
    std::unique_ptr<Cover> again;  // what has been sent to all since the last of them
  };
  explicit Deputies(double least_s, int workers)
      : least_s(least_s), suspect(workers), heard_s(workers) {}
  double patience_s() const { return std::max(least_s, 0.2 * usual_s); }

  const double least_s;
  double usual_s = 0.0;                                         // a step's time
  std::map<std::int64_t, KeptRows> kept;                        // by step
  std::map<std::int64_t, std::set<std::pair<int, int>>> asked;  // owner, deputy
  std::map<SliceKey, Moved> moved;
  std::vector<std::int64_t> suspect;  // by worker: the step + 1; 0: it is not
  std::vector<double> heard_s;        // by worker: when its last slice or row came
  double row_s = 0.0;                 // when the last row came
  double lost_s = 0.0;                // when a worker was lost, the last time
  double next_look_s = 0.0, looked_s = 0.0;
  std::int64_t watched = -1;           // the step whose clock runs:
  double first_s = 0.0;                // when it was first looked at
  double since_s = 0.0;                // when own slices of it were in
  double asked_s = 0.0;                // when this worker asked as a deputy
  double needed_s = 0.0;               // when rows of it were last asked for
  int needed = 0;                      // how often
  std::vector<double> behind_s;        // by bucket: when only the own slice was missing
  std::map<std::int64_t, Need> needs;  // by step; under the session's lock
};

}  // namespace codedgrad
