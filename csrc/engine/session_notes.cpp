// The notes that deputies and those who serve them send: rows that were sent before, a
// slice in place of its owner's, and which rows are lacked. docs/faults.md has the
// protocol.
#include <algorithm>
#include <cstring>
#include <iterator>
#include <stdexcept>

#include "engine/clock.h"
#include "engine/session.h"

namespace codedgrad {
namespace {

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
  KeptRows& kept = d.kept[step];
  kept.parts.push_back({bucket, row, data});
  if (++kept.buckets[row] == layout_.buckets()) {
    std::lock_guard<std::mutex> lock(mutex_);
    sent_again(step, row);
  }
  const auto asked = d.asked.find(step);
  if (asked == d.asked.end()) return;
  const KeptRows::Part last = kept.parts.back();
  for (const auto& [owner, deputy] : asked->second) move_row(step, owner, deputy, last);
}

void Session::forget_kept() {
  Deputies& d = *deputies_;
  std::lock_guard<std::mutex> lock(mutex_);
  const std::int64_t all = *std::min_element(applied_.begin(), applied_.end());
  forget_through(&d.kept, all);
  forget_through(&d.asked, all);
  forget_through(&d.needs, done_through_.load());
  while (!d.moved.empty() && d.moved.begin()->first.step <= done_through_.load()) {
    d.moved.erase(d.moved.begin());
  }
}

void Session::move_row(std::int64_t step, int owner, int deputy,
                       const KeptRows::Part& kept) {
  const Slice slice = layout_.slice(kept.bucket, owner);
  if (slice.count == 0) return;
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
  send(dest, codec_.encode(Kind::kProgress, step), note->data(), kNoteBytes + bytes,
       note);
  std::lock_guard<std::mutex> lock(mutex_);
  ++counters_.notes_sent;
  counters_.bytes_copied += static_cast<std::int64_t>(bytes);
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
  const std::vector<KeptRows::Part> kept = d.kept[number].parts;
  for (const auto& part : kept) move_row(number, owner, rank_, part);
}

// ---- rows that are lacked ----

// The rows count as missing for the helpers until they are sent to all once more. Who
// lacks them still says so again, and then they are missing again.
void Session::need(std::int64_t step, const std::vector<std::int32_t>& rows) {
  Deputies& d = *deputies_;
  if (done(step)) return;
  const auto kept = d.kept.find(step);
  std::lock_guard<std::mutex> lock(mutex_);
  Deputies::Need& need = d.needs[step];
  ++need.times;
  // What was sent once more since is not lacked any more, unless it is said again.
  for (auto row = need.rows.begin(); row != need.rows.end();) {
    row = need.again->has(*row) ? need.rows.erase(row) : std::next(row);
  }
  need.rows.insert(rows.begin(), rows.end());
  need.again = plan_->make_cover();
  if (kept != d.kept.end()) {
    for (const auto& [row, buckets] : kept->second.buckets) {
      if (buckets == layout_.buckets()) need.again->add(row);
    }
  }
  changed_.notify_all();
}

int Session::times_needed(std::int64_t step) const {
  if (!deputies_) return 0;
  const auto found = deputies_->needs.find(step);
  return found == deputies_->needs.end() ? 0 : found->second.times;
}

bool Session::needs_again(std::int64_t step, int row) const {
  if (!deputies_ || done(step)) return false;
  const auto found = deputies_->needs.find(step);
  return found != deputies_->needs.end() && found->second.rows.count(row) > 0 &&
         !found->second.again->has(row);
}

void Session::sent_again(std::int64_t step, int row) {
  const auto found = deputies_->needs.find(step);
  if (found != deputies_->needs.end()) found->second.again->add(row);
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
    const auto kept = d.kept.find(step);
    if (kept == d.kept.end()) return;
    for (const auto& part : kept->second.parts) move_row(step, h.owner, source, part);
  } else if (h.what == Note::kMoved) {
    arrive_moved({step, h.bucket, h.owner}, h.row, data, keep);
  } else if (h.what == Note::kInstead) {
    if (adopt({step, h.bucket, h.owner}, data)) suspect(h.owner, step);
  } else {
    std::vector<std::int32_t> rows((bytes - kNoteBytes) / sizeof(std::int32_t));
    std::memcpy(rows.data(), data, bytes - kNoteBytes);
    need(step, rows);
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
  deputies_->row_s = now_s();
  if (!m.cover->complete()) return;
  m.done = true;
  const Slice slice = layout_.slice(key.bucket, key.owner);
  const std::size_t bytes = slice.count * bytes_of(dtype_);
  const BufferRef note = pool_->get(kNoteBytes + bytes);
  const NoteHeader header{Note::kInstead, key.owner, key.bucket, 0};
  std::memset(note->data(), 0, kNoteBytes);
  std::memcpy(note->data(), &header, sizeof header);
  m.cover->decode(m.rows, note->data() + kNoteBytes, nullptr, slice.count, dtype_,
                  Wire::kAsIs);
  m.rows.clear();
  m.keep.clear();
  if (!adopt(key, note->data() + kNoteBytes)) return;  // its owner was faster
  suspect(key.owner, key.step);
  const Address address = codec_.encode(Kind::kProgress, key.step);
  for (int i = 1; i < size_; ++i) {
    send((rank_ + i) % size_, address, note->data(), kNoteBytes + bytes, note);
  }
  std::lock_guard<std::mutex> lock(mutex_);
  ++counters_.slices_deputised;
  counters_.notes_sent += size_ - 1;
  counters_.bytes_sent += static_cast<std::int64_t>(bytes) * (size_ - 1);
}

}  // namespace codedgrad
