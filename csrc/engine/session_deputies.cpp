// When one worker decodes a slice in place of an owner that is silent, and when it says
// that rows are lacking. docs/faults.md has the protocol; session_notes.cpp sends.
#include <algorithm>
#include <limits>

#include "engine/clock.h"
#include "engine/session.h"

namespace codedgrad {
namespace {

constexpr double kLookS = 0.5e-3;     // between two looks
constexpr double kStoodStillS = 0.1;  // past the patience: it was this worker that did
constexpr double kAnswerS = 2e-3;     // until the rows that others keep are here

}  // namespace

bool Session::deputise() {
  Deputies& d = *deputies_;
  const double now = now_s();
  if (now < d.next_look_s) return false;
  d.next_look_s = now + kLookS;
  const bool slept = now - d.looked_s > kStoodStillS + d.patience_s();
  d.looked_s = now;
  const std::int64_t number = done_through_.load() + 1;
  bool own_in = false;
  std::vector<int> silent;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    const Step* step = find(number);
    if (step == nullptr) return false;
    own_in = step->slices_missing[rank_] == 0;
    for (int w = 0; w < size_; ++w) {
      if (w != rank_ && step->slices_missing[w] > 0) silent.push_back(w);
    }
  }
  if (d.watched != number || slept) {
    if (d.watched != number) d.needed = 0;
    d.watched = number;
    d.first_s = now;
    d.since_s = d.asked_s = d.needed_s = 0.0;
    d.behind_s.assign(layout_.buckets(), 0.0);
  }
  if (own_in && d.since_s == 0.0) {
    const bool owns = layout_.slice(last_own_, rank_).count > 0;
    d.since_s = owns ? now : now + 0.5 * d.usual_s;
  }
  bool did = false;
  for (int owner : silent) did = stand_in(number, owner, silent, now) || did;
  return ask_for_rows(number, now) || did;
}

// The next worker after the owner stands in for it, and later the one after that. For
// a suspect the next one does so from the step's begin, the others as for a usual one.
bool Session::stand_in(std::int64_t number, int owner, const std::vector<int>& silent,
                       double now) {
  Deputies& d = *deputies_;
  const auto asked = d.asked.find(number);
  if (asked != d.asked.end() && asked->second.count({owner, rank_}) > 0) return false;
  int before = 0, trusted = 0;
  for (int w = (owner + 1) % size_; w != rank_; w = (w + 1) % size_) {
    trusted += d.suspect[w] == 0;
    before += d.suspect[w] == 0 && std::count(silent.begin(), silent.end(), w) == 0;
  }
  const bool at_once = d.suspect[owner] > 0 && trusted == 0;
  // An owner whose slices are coming is not silent.
  const double quiet = now - std::max(d.since_s, d.heard_s[owner]);
  const double turn = (before + 1) * d.patience_s();
  if (!at_once && (d.since_s == 0.0 || quiet < turn)) return false;
  d.asked_s = now;
  ask(number, owner);
  return true;
}

// Rows that reached others, or nobody, and not who needs them.
bool Session::ask_for_rows(std::int64_t number, double now) {
  Deputies& d = *deputies_;
  const double again = std::max(2.0 * d.patience_s(), 0.5 * d.usual_s);
  if (d.needed > 0 && now - d.needed_s < again * d.needed) return false;
  std::set<int> rows;
  lacking(number, now, &rows);
  if (rows.empty()) return false;
  d.needed_s = now;
  ++d.needed;
  const std::vector<std::int32_t> list(rows.begin(), rows.end());
  for (int i = 1; i < size_; ++i) {
    send_note((rank_ + i) % size_, number, {Note::kNeed, 0, 0, 0}, list.data(),
              list.size() * sizeof list[0]);
  }
  need(number, list);
  return true;
}

void Session::lacking(std::int64_t number, double now, std::set<int>* rows) {
  Deputies& d = *deputies_;
  const auto add = [&](const Cover& cover) {
    for (int row = 0; row < plan_->rows(); ++row) {
      if (!cover.has(row)) rows->insert(row);
    }
  };
  // A deputy whose own slices are in: all have been able to send what there is.
  const double answered = std::max({d.since_s, d.asked_s, d.row_s});
  if (d.asked_s > 0.0 && d.since_s > 0.0 && now - answered > kAnswerS) {
    for (auto at = d.moved.lower_bound({number, 0, 0});
         at != d.moved.end() && at->first.step == number; ++at) {
      if (!at->second.done) add(*at->second.cover);
    }
  }
  std::lock_guard<std::mutex> lock(mutex_);
  const Step* step = find(number);
  if (step == nullptr || step->slices_missing[rank_] == 0) return;
  const bool long_ago = now - d.first_s > 0.1 + 2.0 * d.usual_s;
  // Where a worker was lost in this step, its rows will not come by themselves.
  const bool loss = d.lost_s > d.first_s;
  const double patience =
      loss ? d.patience_s() : std::max(2.0 * d.patience_s(), 0.5 * d.usual_s);
  for (int bucket = 0; bucket < layout_.buckets(); ++bucket) {
    const Bucket& b = step->buckets[bucket];
    if (!b.cover || b.decoded) continue;
    // Where another owner's slice is here and the own one does not come, a row has
    // reached that owner and not this one. Where no slice is, each may lack another's.
    const char* in = &step->in[slice_index(bucket, 0)];
    double& since = d.behind_s[bucket];
    if (since == 0.0 && std::count(in, in + size_, 1) > 0) since = now;
    const double quiet = now - std::max(since, d.row_s);
    if (since > 0.0 ? quiet > patience : long_ago) add(*b.cover);
  }
}

void Session::alive(int worker, std::int64_t step) {
  Deputies& d = *deputies_;
  d.heard_s[worker] = now_s();
  if (step >= d.suspect[worker]) d.suspect[worker] = 0;
}

void Session::suspect(int worker, std::int64_t step) {
  Deputies& d = *deputies_;
  if (worker == rank_) return;
  d.suspect[worker] = std::max(d.suspect[worker], step + 1);
  outbox_->suspected(worker);
}

// Whose message is the last word is a suspect for ever: the next worker that is left
// decodes its slices from the begin of each step. Steps that are open may lack its
// rows, so those who wait look again.
void Session::lose(int worker) {
  if (deputies_) {
    deputies_->suspect[worker] = std::numeric_limits<std::int64_t>::max();
    deputies_->lost_s = now_s();
  }
  std::vector<std::int64_t> open;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    applied_[worker] = std::numeric_limits<std::int64_t>::max();
    for (const auto& [number, step] : steps_) {
      if (step.missing > 0) open.push_back(number);
    }
    changed_.notify_all();
  }
  for (std::int64_t number : open) {
    if (deputies_) need(number, {});
  }
}

// Quickly down, slowly up: the first step waits for the start of all.
void Session::learn_usual(double took_s) {
  double& usual = deputies_->usual_s;
  const double share = took_s < usual ? 0.5 : 0.1;
  usual =
      usual == 0.0 ? took_s : usual + share * (std::min(took_s, 2.0 * usual) - usual);
}

}  // namespace codedgrad
