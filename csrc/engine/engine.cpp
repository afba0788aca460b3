#include "engine/engine.h"

#include <sys/prctl.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <stdexcept>

#include "engine/clock.h"

namespace codedgrad {

Engine::Engine(std::unique_ptr<Transport> transport, int least)
    : transport_(std::make_unique<Mailbox>(std::move(transport))),
      rank_(transport_->rank()),
      size_(transport_->size()),
      max_tag_(transport_->max_tag()),
      goodbye_(size_, false),
      lost_s_(size_, 0.0),
      least_(least),
      told_(size_),
      controls_(size_),
      heard_(size_, 0),
      traffic_(size_) {
  goodbye_[rank_] = true;
  last_event_s_ = now_s();
  thread_ = std::thread([this] { run(); });
}

Engine::~Engine() { stop(0.0); }

// ---- training thread ----

std::shared_ptr<Session> Engine::open_session(SessionSettings settings) {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto free = std::find_if(sessions_.begin(), sessions_.end(),
                                 [](const Place& place) { return !place.used; });
  const auto id = static_cast<int>(free - sessions_.begin());
  if (id >= kSessions) {
    throw std::invalid_argument("at most " + std::to_string(kSessions) +
                                " models can be exchanged in one job; close() those "
                                "that are not used any more, on every worker");
  }
  settings.id = id;
  settings.device = pool_->device();
  const SessionHost host{rank_, size_, max_tag_, pool_, failure_, this};
  Place place{true, std::make_shared<Session>(settings, host), {}};
  for (int w = 0; w < size_; ++w) {
    if (!out(w)) continue;
    if (!place.session->needs_all().empty()) {
      throw std::invalid_argument("worker " + std::to_string(w) +
                                  " is lost, and this exchange cannot go on without "
                                  "it: " +
                                  place.session->needs_all());
    }
    place.session->lose(w);
  }
  if (free == sessions_.end()) sessions_.emplace_back();
  sessions_[id] = std::move(place);
  return sessions_[id].session;
}

void Engine::close_session(const std::shared_ptr<Session>& session) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    for (Place& place : sessions_) {
      if (place.session == session) place = Place{};
    }
  }
  pool_->trim();
}

void Engine::drop_session(const std::shared_ptr<Session>& session) {
  submit({Command::What::kDrop, session, 0, 0, kAllBuckets, nullptr, {}, {}});
}

bool Engine::begin(const std::shared_ptr<Session>& session, std::int64_t step,
                   double timeout_s, std::vector<int>* behind) {
  // A row tells progress. Where none was sent, others may wait to hear of it.
  const bool wakes = session->posted() < step - 1;
  submit({Command::What::kBegin, session, step, 0, kAllBuckets, nullptr, {}, {}},
         wakes);
  return session->begin(step, timeout_s, behind);
}

int Engine::bind_device(const DeviceCalls& calls) {
  pool_->bind(calls);
  const DeviceCalls bound = pool_->device();
  int answer = 0;
  lends_.store(false);
  {
    std::lock_guard<std::mutex> wheel(wheel_);
  }  // who has it now gives it back then
  call([this, bound, &answer] {  // results are allocated there
    device_ = bound;
    answer = bound.set_device(bound.device);
  });
  if (answer != 0) {
    throw std::runtime_error("the device answered " + std::to_string(answer) +
                             " when the engine's thread chose device " +
                             std::to_string(bound.device) +
                             "; is it visible to this process, and free?");
  }
  return bound.device;
}

void Engine::post(const std::shared_ptr<Session>& session, std::int64_t step, int row,
                  int bucket, BufferRef data, void* event) {
  submit(post_command(session, step, row, bucket, std::move(data), event));
}

Engine::Command Engine::post_command(const std::shared_ptr<Session>& session,
                                     std::int64_t step, int row, int bucket,
                                     BufferRef data, void* event) const {
  if (bucket != kAllBuckets && (bucket < 0 || bucket >= session->layout().buckets())) {
    throw std::invalid_argument(
        "the payload has " + std::to_string(session->layout().buckets()) +
        " buckets, there is no bucket " + std::to_string(bucket));
  }
  if (row < 0 || row >= session->rows()) {
    throw std::invalid_argument("the code has " + std::to_string(session->rows()) +
                                " rows, there is no row " + std::to_string(row));
  }
  if (data->bytes() < session->payload_bytes()) {
    throw std::invalid_argument("a row must have " +
                                std::to_string(session->payload_bytes()) +
                                " bytes, got " + std::to_string(data->bytes()));
  }
  session->note_posted(step);
  return {Command::What::kPost, session, step, row,  bucket,
          std::move(data),      {},      {},   event};
}

bool Engine::call(std::function<void()> work) {
  const auto done = std::make_shared<bool>(false);
  submit({Command::What::kCall,
          nullptr,
          0,
          0,
          kAllBuckets,
          nullptr,
          {},
          [this, done, work = std::move(work)] {
            work();
            std::lock_guard<std::mutex> lock(mutex_);
            *done = true;
            gathered_.notify_all();
          }});
  std::unique_lock<std::mutex> lock(mutex_);
  gathered_.wait(lock, [&] { return *done || ended_; });
  return *done;
}

bool Engine::stop(double timeout_s) {
  if (!thread_.joinable()) return ended_together_;
  stop_timeout_s_.store(timeout_s);
  submit({Command::What::kStop, nullptr, 0, 0, kAllBuckets, nullptr, {}, {}});
  thread_.join();
  // A worker that has not said goodbye may never come to MPI_Finalize either.
  ended_together_ = pending_.empty() && all_have_left();
  if (pending_.empty()) return ended_together_;
  // MPI may still read or write these: they outlive the engine.
  new std::unordered_map<std::uint64_t, Pending>(std::move(pending_));
  transport_.release();
  pending_.clear();
  return false;
}

EngineStats Engine::stats() const {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto sessions =
      std::count_if(sessions_.begin(), sessions_.end(),
                    [](const Place& place) { return place.session != nullptr; });
  return {polls_.load(), pool_->bytes(),    in_flight_.load(),
          held_.load(),  pool_->unpinned(), static_cast<std::size_t>(sessions)};
}

void Engine::submit(Command command, bool wakes) {
  std::lock_guard<std::mutex> lock(mutex_);
  commands_.push_back(std::move(command));
  if (wakes) commanded_.notify_all();
}

}  // namespace codedgrad
