// What a session remembers so that one worker can decode a slice in place of another
// (docs/faults.md has the protocol, session_deputies.cpp does it).
//
// Owners and lifetimes: a kept row shares its buffer with the training thread's pool
// and lives until every worker has applied the step; a moved row lives until its slice
// is decoded; a slice that is here lives as long as a kept row. All but `needed` and
// `posted` belongs to the engine's thread.
#pragma once

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

struct KeptRow {
  int bucket = 0, row = 0;
  BufferRef data;  // all of the row
};

struct Deputies {
  // A slice that this worker decodes in place of its owner.
  struct Moved {
    std::unique_ptr<Cover> cover;
    std::vector<const void*> rows;
    std::vector<BufferRef> keep;
    bool done = false;
  };
  explicit Deputies(double least_s, int workers) : least_s(least_s), suspect(workers) {}
  double patience_s() const {
    return least_s > 0.2 * usual_s ? least_s : 0.2 * usual_s;
  }

  const double least_s;
  double usual_s = 0.0;                                         // a step's time
  std::map<std::int64_t, std::vector<KeptRow>> kept;            // by step
  std::map<std::int64_t, std::set<std::pair<int, int>>> asked;  // owner, deputy
  std::map<SliceKey, Moved> moved;
  // Others' slices of steps that somebody has not applied, behind a note's header.
  std::map<SliceKey, BufferRef> sums;
  std::vector<std::int64_t> suspect;  // by worker: the step + 1; 0: it is not
  std::int64_t watched = -1;          // the step whose clock runs
  double since_s = 0.0;               // when own slices of it were in
  double first_s = 0.0;               // when it was first looked at
  double needed_s = 0.0;              // when rows of it were last asked for
  double looked_s = 0.0;              // the last look
  double scanned_s = 0.0;             // the last look at every bucket
  std::vector<double> behind_s;       // by bucket: when only the own slice was missing
  std::map<std::int64_t, std::set<int>> needed, posted;  // rows by step
};

}  // namespace codedgrad
