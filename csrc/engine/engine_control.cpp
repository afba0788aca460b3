// What workers tell each other beside the gradients: small byte strings, errors and the
// goodbye (see engine.h).
#include <algorithm>
#include <chrono>
#include <cstring>
#include <stdexcept>

#include "engine/clock.h"
#include "engine/control.h"
#include "engine/engine.h"

namespace codedgrad {
namespace {

constexpr double kFailureGraceS = 3.0;  // to send and hear of errors

}  // namespace

// ---- training thread ----

void Engine::publish(std::string bytes) {
  submit({Command::What::kPublish,
          nullptr,
          0,
          0,
          kAllBuckets,
          nullptr,
          std::move(bytes),
          {}});
}

std::optional<Engine::Blobs> Engine::gather(double timeout_s,
                                            std::vector<int>* missing) {
  std::unique_lock<std::mutex> lock(mutex_);
  const std::int64_t round = gathered_rounds_;
  const auto ready = [&] { return failure_->failed() || ended_ || whole(round); };
  gathered_.wait_for(lock, std::chrono::duration<double>(timeout_s), ready);
  missing->clear();
  auto& got = rounds_[round];
  if (!whole(round)) {
    for (int w = 0; w < size_; ++w) {
      if (got.count(w) == 0 && !out(w)) missing->push_back(w);
    }
    return std::nullopt;
  }
  Blobs blobs(size_);
  for (const auto& [worker, bytes] : got) blobs[worker] = bytes;
  last_round_ = std::move(got);
  rounds_.erase(round);
  ++gathered_rounds_;
  return blobs;
}

void Engine::fail(const std::string& text) {
  submit({Command::What::kFail, nullptr, 0, 0, kAllBuckets, nullptr, text, {}});
}

std::vector<int> Engine::departed() const {
  std::lock_guard<std::mutex> lock(mutex_);
  std::vector<int> workers;
  for (int w = 0; w < size_; ++w) {
    if (w != rank_ && goodbye_[w] && !out(w)) workers.push_back(w);
  }
  return workers;
}

std::map<int, std::string> Engine::announced() const {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = rounds_.find(gathered_rounds_);
  if (found == rounds_.end()) return {};
  std::map<int, std::string> here;
  for (const auto& [worker, bytes] : found->second) {
    if (!out(worker)) here[worker] = bytes;
  }
  return here;
}

// ---- engine's thread ----

void Engine::tell_blob(std::string bytes) {
  send_control(kBlob, bytes);
  std::lock_guard<std::mutex> lock(mutex_);
  rounds_[published_++][rank_] = std::move(bytes);
  gathered_.notify_all();
}

void Engine::say_goodbye() {
  send_control(kGoodbye, "");
  stopping_ = true;
  stop_by_s_ = now_s() + stop_timeout_s_.load();
}

void Engine::give_up(const std::string& text) {
  send_control(kError, text);
  set_failure(text);
}

BufferRef Engine::control_of(char type, const std::string& text) {
  const BufferRef data = pool_->get(text.size() + 1);
  data->data()[0] = type;
  std::memcpy(data->data() + 1, text.data(), text.size());
  return data;
}

void Engine::send_control(char type, const std::string& text) {
  const BufferRef data = control_of(type, text);
  for (int i = 1; i < size_; ++i) {
    send((rank_ + i) % size_, kControlAddress, data->data(), text.size() + 1, data);
  }
}

void Engine::send_control_to(int dest, char type, const std::string& text) {
  const BufferRef data = control_of(type, text);
  send(dest, kControlAddress, data->data(), text.size() + 1, data);
}

void Engine::hear(int source, std::uint64_t id) {
  auto& waiting = controls_[source];
  for (Control& message : waiting) {
    if (message.id == id) message.here = true;
  }
  while (!waiting.empty() && waiting.front().here) {
    const Control message = std::move(waiting.front());
    waiting.pop_front();
    control(source, message.data->data(), message.bytes);
  }
}

void Engine::control(int source, const char* data, std::size_t bytes) {
  if (bytes == 0) {
    throw std::runtime_error("worker " + std::to_string(source) +
                             " sent a control message of 0 bytes");
  }
  const std::string text(data + 1, bytes - 1);
  if (data[0] == kBlob) {
    std::lock_guard<std::mutex> lock(mutex_);
    rounds_[heard_[source]++][source] = text;
    gathered_.notify_all();
  } else if (data[0] == kError) {
    set_failure(text);
  } else if (data[0] == kDropped) {
    dropped_by(source, std::stoi(text));
  } else if (data[0] == kView) {
    hear_view(source, text);
  } else {
    std::lock_guard<std::mutex> lock(mutex_);
    goodbye_[source] = true;
  }
}

void Engine::tell_dropped(const std::shared_ptr<Session>& session) {
  int number = -1;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    for (std::size_t i = 0; i < sessions_.size(); ++i) {
      if (sessions_[i].session == session) number = static_cast<int>(i);
    }
  }
  if (number < 0 || stopping_) return;  // it was closed, or the job ends
  send_control(kDropped, std::to_string(number));
  dropped_by(rank_, number);
}

void Engine::dropped_by(int worker, int session) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (session < 0 || session >= static_cast<int>(sessions_.size())) return;
    sessions_[session].dropped.insert(worker);
  }
  free_if_dropped(session);
}

bool Engine::free_if_dropped(int number) {
  std::shared_ptr<Session> last;  // its memory is freed without the lock
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (number >= static_cast<int>(sessions_.size())) return false;
    Place& place = sessions_[number];
    for (int w = 0; w < size_; ++w) {
      if (place.dropped.count(w) == 0 && !out(w)) return true;
    }
    last = std::move(place.session);
    place.session = nullptr;
    place.dropped = {};
  }
  last.reset();
  pool_->trim();
  return true;
}

void Engine::set_failure(const std::string& text) {
  failure_->set(text);
  std::lock_guard<std::mutex> lock(mutex_);
  gathered_.notify_all();
  for (auto& place : sessions_) {
    if (place.session) place.session->wake();
  }
}

void Engine::tell_before_the_end(const std::string& text) {
  const double until = now_s() + kFailureGraceS;
  const std::uint64_t first = next_id_;
  try {
    send_control(kError, text);
    for (std::uint64_t left = next_id_ - first; left > 0 && now_s() < until;) {
      done_.clear();
      transport_->poll(&done_);
      for (std::uint64_t id : done_) {
        left -= id >= first;
        pending_.erase(id);
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  } catch (const std::exception&) {  // then the transport is what has failed
  }
}

bool Engine::all_have_left() const {
  return std::all_of(goodbye_.begin(), goodbye_.end(), [](bool said) { return said; });
}

bool Engine::finished() const {
  if (!stopping_) return false;
  if (all_have_left() && transport_->pending() == 0 && copying_.empty() &&
      held_.load() == 0) {
    return true;
  }
  const double grace = stop_timeout_s_.load();
  const double limit = failure_->failed()
                           ? stop_by_s_ - grace + std::min(grace, kFailureGraceS)
                           : stop_by_s_;
  return now_s() > limit;
}

}  // namespace codedgrad
