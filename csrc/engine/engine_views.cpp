// Workers that are out: their processes have died, or nobody can reach them any more.
// docs/faults.md says what the others do then.
//
// Who finds that a worker is out tells all others, with what that worker has published
// for rounds that may not be over everywhere. So what each knows of who is out grows
// until all know the same; nothing is voted on. Training needs no more, since its sums
// have the same bits whoever adds them up. A round of gather() does: it is complete
// without a worker only when all who are left have named the same ones. Then whatever
// one of them has heard from those who are out, all have.
#include <algorithm>
#include <sstream>
#include <stdexcept>
#include <utility>

#include "engine/clock.h"
#include "engine/control.h"
#include "engine/engine.h"

namespace codedgrad {

// ---- training thread ----

void Engine::survive(int least) {
  std::lock_guard<std::mutex> lock(mutex_);
  least_ = std::max(1, least);
}

std::map<int, double> Engine::lost() const {
  std::lock_guard<std::mutex> lock(mutex_);
  std::map<int, double> found;
  for (int w = 0; w < size_; ++w) {
    if (out(w)) found[w] = lost_s_[w];
  }
  return found;
}

// ---- engine's thread ----

bool Engine::next_letter(Letter* letter) {
  try {
    return transport_->probe(letter);
  } catch (const PeerGone& gone) {
    // What has come from it before is completed first.
    losing_.push_back({gone.rank, gone.what(), true});
    return false;
  }
}

bool Engine::lose_some() {
  const std::vector<Loss> losses = std::exchange(losing_, {});
  for (const auto& [worker, how, gone] : losses) {
    if (gone) forget_receives(worker);
    lose(worker, how);
  }
  return !losses.empty();
}

void Engine::lose(int worker, const std::string& how) {
  if (lost_s_[worker] > 0.0) return;
  std::vector<std::shared_ptr<Session>> sessions;
  {
    std::lock_guard<std::mutex> lock(mutex_);  // no session is opened in between
    const bool owes = !(stopping_ && goodbye_[worker]);
    const std::string why = failure_->failed() || !owes ? "" : why_not_one_less();
    if (!why.empty()) {
      throw std::runtime_error(how + "; the job cannot go on without it: " + why);
    }
    lost_s_[worker] = now_s();
    goodbye_[worker] = true;
    for (const Place& place : sessions_) {
      if (place.session) sessions.push_back(place.session);
    }
  }
  drop_held(worker);
  controls_[worker].clear();
  transport_->drop(worker);
  for (const auto& session : sessions) session->lose(worker);
  sessions.clear();
  for (int number = 0; number < kSessions; ++number) {
    if (!free_if_dropped(number)) break;
  }
  if (!failure_->failed()) tell_view();
  std::lock_guard<std::mutex> lock(mutex_);
  gathered_.notify_all();
}

std::string Engine::why_not_one_less() const {
  if (all_have_left()) return "";
  if (least_ == 0) return "no training that outlives a worker has begun";
  int left = -1;
  for (int w = 0; w < size_; ++w) left += !out(w);
  if (left < least_) {
    return std::to_string(left) + " worker(s) would be left, and min_workers is " +
           std::to_string(least_);
  }
  for (const Place& place : sessions_) {
    if (place.session && !place.session->needs_all().empty()) {
      return place.session->needs_all();
    }
  }
  return "";
}

// The transport writes there no more, and does not report them.
void Engine::forget_receives(int worker) {
  for (auto at = pending_.begin(); at != pending_.end();) {
    const bool drop = at->second.receive && at->second.peer == worker;
    if (drop) {
      --traffic_[worker].under_way;
      --receives_;
    }
    at = drop ? pending_.erase(at) : std::next(at);
  }
}

void Engine::tell_view() {
  std::ostringstream text;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    for (int w = 0; w < size_; ++w) {
      if (out(w)) text << w << ' ';
    }
    text << '\n';
    const auto add = [&](std::int64_t round, const std::map<int, std::string>& blobs) {
      for (const auto& [w, bytes] : blobs) {
        if (!out(w)) continue;
        text << w << ' ' << round << ' ' << bytes.size() << '\n' << bytes;
      }
    };
    add(gathered_rounds_ - 1, last_round_);
    for (const auto& [round, blobs] : rounds_) add(round, blobs);
  }
  send_control(kView, text.str());
}

void Engine::hear_view(int source, const std::string& said) {
  std::istringstream text(said);
  std::string line;
  std::getline(text, line);
  std::istringstream names(line);
  std::set<int> view;
  for (int w = 0; names >> w;) {
    if (w >= 0 && w < size_) view.insert(w);
  }
  if (view.count(rank_) > 0) {
    // The others ignore this one from now on, so it tells them nothing.
    set_failure("worker " + std::to_string(source) + " has lost worker " +
                std::to_string(rank_) + ", and the others go on without it");
    return;
  }
  {
    std::lock_guard<std::mutex> lock(mutex_);
    while (std::getline(text, line)) {
      std::istringstream head(line);
      int w = -1;
      std::int64_t round = -1;
      std::size_t size = 0;
      head >> w >> round >> size;
      std::string bytes(std::min(size, said.size()), '\0');
      text.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
      if (view.count(w) > 0 && round >= gathered_rounds_) {
        rounds_[round].emplace(w, std::move(bytes));
      }
    }
    told_[source] = view;
    gathered_.notify_all();
  }
  for (int w : view) {
    if (lost_s_[w] > 0.0) continue;
    const std::string how =
        "worker " + std::to_string(source) + " has lost worker " + std::to_string(w);
    drop_held(w);  // so that this is sent at once
    send_control_to(w, kError, how + ", and the others go on without it");
    losing_.push_back({w, how, false});
  }
}

bool Engine::settled() const {
  std::set<int> view;
  for (int w = 0; w < size_; ++w) {
    if (out(w)) view.insert(w);
  }
  for (int w = 0; w < size_; ++w) {
    if (w != rank_ && !out(w) && told_[w] != view) return false;
  }
  return true;
}

bool Engine::whole(std::int64_t round) const {
  const auto found = rounds_.find(round);
  if (found == rounds_.end() || found->second.count(rank_) == 0) return false;
  for (int w = 0; w < size_; ++w) {
    if (found->second.count(w) == 0 && !(out(w) && settled())) return false;
  }
  return true;
}

}  // namespace codedgrad
