// The engine's sends, worker by worker, and what becomes of those to a worker that
// stands still (docs/faults.md).
#include <algorithm>

#include "engine/clock.h"
#include "engine/engine.h"

namespace codedgrad {
namespace {

constexpr double kStuckS = 50e-3;  // nothing moved for so long: no copy is under way
// So many messages are under way to a worker that stands still. Open MPI's shared
// memory has 512 places for small messages and announcements of large ones, for all
// peers.
constexpr int kMostUnheard = 32;
// One of those that are held goes out all the same: a worker that has nothing to say
// may wait for it.
constexpr double kFirstReleaseS = 0.1, kLastReleaseS = 2.0;
// Many of them go out once it was heard, until it is suspected again.
constexpr double kAliveReleaseS = 1e-3;

}  // namespace

void Engine::send(int dest, Address address, const void* data, std::size_t bytes,
                  BufferRef keep) {
  if (lost_s_[dest] > 0.0) return;
  Traffic& traffic = traffic_[dest];
  const Held message{address, data, bytes, std::move(keep)};
  const bool full = traffic.suspected && traffic.unheard >= kMostUnheard;
  if (traffic.held.empty() && (!full || failure_->failed())) {
    start_send(dest, message);
    return;
  }
  if (traffic.held.empty()) {
    traffic.gap_s = kFirstReleaseS;
    traffic.release_s = now_s() + traffic.gap_s;
  }
  traffic.held.push_back(message);
  held_.fetch_add(1);
}

void Engine::start_send(int dest, const Held& message) {
  transport_->send(dest, message.address, message.data, message.bytes, next_id_);
  ++traffic_[dest].unheard;
  Pending pending;
  pending.peer = dest;
  pending.keep = message.keep;
  begin_transfer(std::move(pending));
}

// Whoever sends takes, too. What was held goes out bit by bit: all of it at once would
// fill the transport's memory for a moment.
void Engine::heard_from(int worker) {
  Traffic& traffic = traffic_[worker];
  traffic.unheard = 0;
  traffic.suspected = false;
  traffic.gap_s = kFirstReleaseS;
  if (!traffic.held.empty()) traffic.release_s = 0.0;
}

void Engine::release(int worker, std::size_t most) {
  Traffic& traffic = traffic_[worker];
  for (; most > 0 && !traffic.held.empty(); --most) {
    start_send(worker, traffic.held.front());
    traffic.held.pop_front();
    held_.fetch_sub(1);
  }
}

void Engine::drop_held(int worker) {
  Traffic& traffic = traffic_[worker];
  held_.fetch_sub(traffic.held.size());
  traffic.held.clear();
  traffic.suspected = false;
}

void Engine::release_held() {
  const double now = now_s();
  for (int worker = 0; worker < size_; ++worker) {
    Traffic& traffic = traffic_[worker];
    if (traffic.held.empty()) continue;
    if (failure_->failed()) {  // errors are heard as soon as they can be
      release(worker, traffic.held.size());
    } else if (now >= traffic.release_s && !traffic.suspected) {
      release(worker, kMostUnheard);
      traffic.release_s = now + kAliveReleaseS;
    } else if (now >= traffic.release_s) {
      release(worker, 1);
      traffic.gap_s = std::min(2.0 * traffic.gap_s, kLastReleaseS);
      traffic.release_s = now + traffic.gap_s;
    }
  }
}

std::uint64_t Engine::begin_transfer(Pending pending) {
  Traffic& traffic = traffic_[pending.peer];
  if (traffic.under_way++ == 0) traffic.moved_s = now_s();
  if (pending.receive) ++receives_;
  const std::uint64_t id = next_id_++;
  pending_.emplace(id, std::move(pending));
  return id;
}

// What a peer that stands still does not take is no reason to look often.
bool Engine::copies_run() const {
  std::size_t running = transport_->pending() + copying_.size();
  if (running == 0) return false;
  const double now = now_s();
  for (const Traffic& traffic : traffic_) {
    if (now - traffic.moved_s > kStuckS)
      running -= std::min(running, traffic.under_way);
  }
  return running > 0;
}

}  // namespace codedgrad
