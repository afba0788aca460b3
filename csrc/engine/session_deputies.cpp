// One worker decodes a slice in place of an owner that is silent. docs/faults.md has
// the protocol: who acts when, and what happens where two act at a time.
#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "engine/clock.h"
#include "engine/session.h"

namespace codedgrad {
namespace {

constexpr double kStoodStillS = 0.1;  // past the patience: it was this worker that did

template <typename Map>
void forget_through(Map* map, std::int64_t step) {
  while (!map->empty() && map->begin()->first <= step) map->erase(map->begin());
}

}  // namespace

// ---- rows are kept, and moved to who asks for them ----

void Session::keep_row(std::int64_t step, int bucket, int row, const BufferRef& data) {
  Deputies& d = *deputies_;
  forget_kept();
  if (!done(step)) open(step);  // a worker that owns nothing opens it by this alone
  auto& kept = d.kept[step];
  kept.push_back({bucket, row, data});
  const auto same = [row](const KeptRow& k) { return k.row == row; };
  if (std::count_if(kept.begin(), kept.end(), same) == layout_.buckets()) {
    std::lock_guard<std::mutex> lock(mutex_);
    d.posted[step].insert(row);
  }
  const auto asked = d.asked.find(step);
  if (asked == d.asked.end()) return;
  const KeptRow last = kept.back();
  for (const auto& [owner, deputy] : asked->second) move_row(step, owner, deputy, last);
}

void Session::forget_kept() {
  Deputies& d = *deputies_;
  std::lock_guard<std::mutex> lock(mutex_);
  const std::int64_t all = *std::min_element(applied_.begin(), applied_.end());
  forget_through(&d.kept, all);
  forget_through(&d.asked, all);
  forget_through(&d.needed, all);
  forget_through(&d.posted, all);
  while (!d.sums.empty() && d.sums.begin()->first.step <= all) {
    d.sums.erase(d.sums.begin());
  }
  const std::int64_t mine = std::min(done_through_.load(), near_.load());
  while (!d.moved.empty() && d.moved.begin()->first.step <= mine) {
    d.moved.erase(d.moved.begin());
  }
}

void Session::move_row(std::int64_t step, int owner, int deputy, const KeptRow& kept) {
  const Slice slice = layout_.slice(kept.bucket, owner);
  if (slice.count == 0) return;
  // The asker has been sent the sum instead, or has it.
  if (deputies_->sums.count({step, kept.bucket, owner}) > 0) return;
  const char* from = kept.data->data() + slice.offset * bytes_of(dtype_);
  if (deputy == rank_) {
    arrive_moved({step, kept.bucket, owner}, kept.row, from, kept.data);
  } else {
    send_note(deputy, step, {Note::kMoved, owner, kept.bucket, kept.row}, from,
              slice.count * bytes_of(dtype_));
  }
}

void Session::send_note(int dest, std::int64_t step, const NoteHeader& header,
                        const void* data, std::size_t bytes) {
  const BufferRef note = pool_->get(kNoteBytes + bytes);
  std::memset(note->data(), 0, kNoteBytes);
  std::memcpy(note->data(), &header, sizeof header);
  if (bytes > 0) std::memcpy(note->data() + kNoteBytes, data, bytes);
  outbox_->send(dest, codec_.encode(Kind::kProgress, step), note->data(),
                kNoteBytes + bytes, note);
}

// ---- the clock ----

bool Session::deputise() {
  Deputies& d = *deputies_;
  const double now = now_s();
  const bool slept = now - d.looked_s > kStoodStillS + d.patience_s();
  d.looked_s = now;
  const std::int64_t number = done_through_.load() + 1;
  const bool owns = layout_.slice(last_own_, rank_).count > 0;
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
    forget_kept();
    d.watched = number;
    d.first_s = d.scanned_s = now;
    d.since_s = d.needed_s = 0.0;
    d.behind_s.assign(layout_.buckets(), 0.0);
  }
  if (own_in && d.since_s == 0.0) d.since_s = owns ? now : now + 0.5 * d.usual_s;
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
  const double turn = (before + 1) * d.patience_s();
  if (!at_once && (d.since_s == 0.0 || now - d.since_s < turn)) return false;
  ask(number, owner);
  return true;
}

void Session::ask(std::int64_t number, int owner) {
  Deputies& d = *deputies_;
  d.asked[number].insert({owner, rank_});
  for (int bucket = 0; bucket < layout_.buckets(); ++bucket) {
    if (layout_.slice(bucket, owner).count == 0) continue;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      const Step* step = find(number);
      if (step == nullptr || step->in[slice_index(bucket, owner)]) continue;
    }
    Deputies::Moved& m = d.moved[{number, bucket, owner}];
    m.cover = plan_->make_cover();
    m.rows.assign(plan_->rows(), nullptr);
  }
  for (int i = 1; i < size_; ++i) {
    const int dest = (rank_ + i) % size_;
    if (dest != owner) send_note(dest, number, {Note::kAsk, owner, 0, 0}, nullptr, 0);
  }
  const std::vector<KeptRow> kept = d.kept[number];
  for (const KeptRow& row : kept) move_row(number, owner, rank_, row);
}

// Rows that reached others, or nobody, and not who needs them.
bool Session::ask_for_rows(std::int64_t number, double now) {
  Deputies& d = *deputies_;
  const double patience = d.patience_s();
  std::set<int> rows;
  if (now - d.scanned_s > 0.25 * patience) {
    d.scanned_s = now;
    scan_own(number, now, &rows);
  }
  if (d.since_s > 0.0 && now - std::max(d.since_s, d.needed_s) > 2.0 * patience) {
    for (auto at = d.moved.lower_bound({number, 0, 0});
         at != d.moved.end() && at->first.step == number; ++at) {
      for (int row = 0; !at->second.done && row < plan_->rows(); ++row) {
        if (!at->second.cover->has(row)) rows.insert(row);
      }
    }
  }
  if (rows.empty()) return false;
  d.needed_s = now;
  const std::vector<std::int32_t> list(rows.begin(), rows.end());
  for (int i = 1; i < size_; ++i) {
    send_note((rank_ + i) % size_, number, {Note::kNeed, 0, 0, 0}, list.data(),
              list.size() * sizeof list[0]);
  }
  need(number, {list.begin(), list.end()});
  return true;
}

// Where another owner's slice of a bucket is here and the own one does not come, a row
// reached that owner and not this one.
void Session::scan_own(std::int64_t number, double now, std::set<int>* rows) {
  Deputies& d = *deputies_;
  std::lock_guard<std::mutex> lock(mutex_);
  const Step* step = find(number);
  if (step == nullptr || step->slices_missing[rank_] == 0) return;
  for (int bucket = 0; bucket < layout_.buckets(); ++bucket) {
    const Bucket& b = step->buckets[bucket];
    if (!b.cover || b.decoded) continue;
    const char* in = &step->in[slice_index(bucket, 0)];
    if (std::count(in, in + size_, 1) == 0) continue;
    double& since = d.behind_s[bucket];
    if (since == 0.0) since = now;
    if (now - std::max(since, d.needed_s) < 2.0 * d.patience_s()) continue;
    for (int row = 0; row < plan_->rows(); ++row) {
      if (!b.cover->has(row)) rows->insert(row);
    }
  }
}

void Session::need(std::int64_t step, const std::vector<int>& rows) {
  Deputies& d = *deputies_;
  if (done(step)) return;
  std::set<int> mine;
  for (int row : rows) {
    const auto same = [row](const KeptRow& k) { return k.row == row; };
    const auto kept = d.kept.find(step);
    if (kept != d.kept.end() && std::count_if(kept->second.begin(), kept->second.end(),
                                              same) == layout_.buckets()) {
      mine.insert(row);
    }
  }
  std::lock_guard<std::mutex> lock(mutex_);
  d.needed[step].insert(rows.begin(), rows.end());
  d.posted[step] = mine;
  changed_.notify_all();
}

bool Session::needs_again(std::int64_t step, int row) const {
  if (!deputies_ || done(step)) return false;
  const auto needed = deputies_->needed.find(step);
  if (needed == deputies_->needed.end() || needed->second.count(row) == 0) return false;
  const auto posted = deputies_->posted.find(step);
  return posted == deputies_->posted.end() || posted->second.count(row) == 0;
}

// ---- what comes ----

void Session::check_note(const NoteHeader& h, int source, std::size_t bytes) const {
  const bool owner = h.owner >= 0 && h.owner < size_;
  const bool place = owner && h.bucket >= 0 && h.bucket < layout_.buckets();
  const std::size_t data = bytes - kNoteBytes;
  bool good = place && h.row >= 0 && h.row < plan_->rows();
  if (h.what == Note::kMoved || h.what == Note::kInstead) {
    good = good && data > 0 &&
           data == layout_.slice(h.bucket, h.owner).count * bytes_of(dtype_);
  } else if (h.what == Note::kNeed) {
    good = good && data > 0 && data % sizeof(std::int32_t) == 0;
  } else {
    good = good && h.what == Note::kAsk && data == 0;
  }
  if (good) return;
  throw std::runtime_error("worker " + std::to_string(source) + " sent a note (" +
                           std::to_string(static_cast<int>(h.what)) + ") of " +
                           std::to_string(bytes) + " bytes about bucket " +
                           std::to_string(h.bucket) + " of owner " +
                           std::to_string(h.owner) + ", which cannot be right");
}

void Session::hear_note(std::int64_t step, int source, const BufferRef& keep,
                        std::size_t bytes) {
  if (!deputies_) return;  // rows lie elsewhere here, where no deputy reads them
  NoteHeader h;
  std::memcpy(&h, keep->data(), sizeof h);
  check_note(h, source, bytes);
  Deputies& d = *deputies_;
  const char* data = keep->data() + kNoteBytes;
  if (h.what == Note::kAsk) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (step <= *std::min_element(applied_.begin(), applied_.end())) return;
    }
    if (!d.asked[step].insert({h.owner, source}).second) return;
    for (int bucket = 0; bucket < layout_.buckets(); ++bucket) {
      const auto sum = d.sums.find({step, bucket, h.owner});
      if (sum != d.sums.end()) send_sum(sum->first, sum->second, source);
    }
    const auto kept = d.kept.find(step);
    if (kept == d.kept.end()) return;
    for (const KeptRow& row : kept->second) move_row(step, h.owner, source, row);
  } else if (h.what == Note::kMoved) {
    arrive_moved({step, h.bucket, h.owner}, h.row, data, keep);
  } else if (h.what == Note::kInstead) {
    adopt({step, h.bucket, h.owner}, keep, source == h.owner);
  } else {
    std::vector<std::int32_t> rows((bytes - kNoteBytes) / sizeof(std::int32_t));
    std::memcpy(rows.data(), data, bytes - kNoteBytes);
    need(step, {rows.begin(), rows.end()});
  }
}

void Session::arrive_moved(const SliceKey& key, int row, const void* data,
                           const BufferRef& keep) {
  const auto found = deputies_->moved.find(key);
  if (found == deputies_->moved.end() || found->second.done) return;
  Deputies::Moved& m = found->second;
  if (!m.cover->add(row)) return;
  m.rows[row] = data;
  m.keep.push_back(keep);
  if (!m.cover->complete()) return;
  m.done = true;
  const Slice slice = layout_.slice(key.bucket, key.owner);
  const std::size_t bytes = slice.count * bytes_of(dtype_);
  const BufferRef sum = pool_->get(kNoteBytes + bytes);
  m.cover->decode(m.rows, sum->data() + kNoteBytes, nullptr, slice.count, dtype_,
                  Wire::kAsIs);
  m.rows.clear();
  m.keep.clear();
  {
    std::lock_guard<std::mutex> lock(mutex_);
    const Step* step = find(key.step);
    if (step == nullptr || step->in[slice_index(key.bucket, key.owner)]) return;
    ++counters_.slices_deputised;
    counters_.bytes_sent += static_cast<std::int64_t>(bytes) * (size_ - 1);
  }
  adopt(key, sum, false);
  for (int i = 1; i < size_; ++i) send_sum(key, sum, (rank_ + i) % size_);
}

void Session::adopt(const SliceKey& key, const BufferRef& sum, bool from_owner) {
  open(key.step);
  const BufferRef result = result_of(key.step);
  if (!result) return;  // the step is closed
  {
    std::lock_guard<std::mutex> lock(mutex_);
    const Step* step = find(key.step);
    if (step == nullptr || step->in[slice_index(key.bucket, key.owner)]) return;
  }
  // Until slice_in() the slice is missing, so the step stays and its result is ours.
  const Slice slice = layout_.slice(key.bucket, key.owner);
  std::memcpy(result_at(result, slice), sum->data() + kNoteBytes,
              slice.count * bytes_of(dtype_));
  Deputies& d = *deputies_;
  const NoteHeader header{Note::kInstead, key.owner, key.bucket, 0};
  std::memset(sum->data(), 0, kNoteBytes);
  std::memcpy(sum->data(), &header, sizeof header);
  d.sums[key] = sum;
  if (key.owner == rank_) {
    std::lock_guard<std::mutex> lock(mutex_);
    Bucket& b = find(key.step)->buckets[key.bucket];
    b.decoded = true;
    b.keep.clear();
    b.rows.clear();
  } else if (!from_owner) {
    d.suspect[key.owner] = std::max(d.suspect[key.owner], key.step + 1);
  }
  const auto asked = d.asked.find(key.step);
  if (asked != d.asked.end()) {
    for (const auto& [owner, deputy] : asked->second) {
      if (owner == key.owner && deputy != rank_) send_sum(key, sum, deputy);
    }
  }
  slice_in(key.step, key.bucket, key.owner);
}

void Session::send_sum(const SliceKey& key, const BufferRef& sum, int dest) {
  const Slice slice = layout_.slice(key.bucket, key.owner);
  outbox_->send(dest, codec_.encode(Kind::kProgress, key.step), sum->data(),
                kNoteBytes + slice.count * bytes_of(dtype_), sum);
}

void Session::alive(int worker, std::int64_t step) {
  std::int64_t& suspect = deputies_->suspect[worker];
  if (step >= suspect) suspect = 0;
}

}  // namespace codedgrad
