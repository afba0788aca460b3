#include "engine/engine.h"

#include <sys/prctl.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <stdexcept>

#include "engine/clock.h"

namespace codedgrad {
namespace {

constexpr int kMessagesPerTurn = 64;
constexpr double kSpinS = 30e-6;  // after an event: yield, do not sleep
constexpr double kShortestNapS = 10e-6;
constexpr double kCopyNapS = 50e-6;     // when the other side or a device copies now
constexpr double kAwaitedNapS = 1e-3;   // when this worker waits
constexpr double kOpenNapS = 2e-3;      // when a step is open here
constexpr double kIdleNapS = 2e-3;      // when none is; longer in long silence,
constexpr double kLongIdleNapS = 8e-3;  // up to this
constexpr double kUnusedNapS = 20e-3;   // when no session is, and nobody waits

}  // namespace

Engine::Engine(std::unique_ptr<Transport> transport)
    : transport_(std::make_unique<Mailbox>(std::move(transport))),
      rank_(transport_->rank()),
      size_(transport_->size()),
      max_tag_(transport_->max_tag()),
      goodbye_(size_, false),
      controls_(size_),
      heard_(size_, 0) {
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
  submit({Command::What::kBegin, session, step, 0, kAllBuckets, nullptr, {}, {}});
  return session->begin(step, timeout_s, behind);
}

int Engine::bind_device(const DeviceCalls& calls) {
  pool_->bind(calls);
  const DeviceCalls bound = pool_->device();
  int answer = 0;
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
  submit({Command::What::kPost,
          session,
          step,
          row,
          bucket,
          std::move(data),
          {},
          {},
          event});
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
  return {polls_.load(), pool_->bytes(), in_flight_.load(), pool_->unpinned(),
          static_cast<std::size_t>(sessions)};
}

void Engine::submit(Command command) {
  std::lock_guard<std::mutex> lock(mutex_);
  commands_.push_back(std::move(command));
  commanded_.notify_one();
}

// ---- engine's thread ----

void Engine::run() {
  prctl(PR_SET_NAME, "codedgrad");
  prctl(PR_SET_TIMERSLACK, 1000UL);  // short naps are short
  try {
    loop();
  } catch (const std::exception& error) {
    const std::string text =
        "the engine of worker " + std::to_string(rank_) + " failed: " + error.what();
    set_failure(text);
    tell_before_the_end(text);
  }
  std::lock_guard<std::mutex> lock(mutex_);
  ended_ = true;
  gathered_.notify_all();
}

void Engine::loop() {
  while (true) {
    if (turn()) {
      last_event_s_ = now_s();
    } else if (finished()) {
      return;
    } else {
      back_off();
    }
    polls_.fetch_add(1, std::memory_order_relaxed);
  }
}

bool Engine::turn() {
  bool busy = post_copied();
  std::deque<Command> commands;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    commands.swap(commands_);
  }
  for (Command& command : commands) {
    execute(command);
    busy = true;
  }
  Letter letter;
  for (int i = 0; i < kMessagesPerTurn && transport_->probe(&letter); ++i) {
    take_message(letter);
    busy = true;
  }
  done_.clear();
  transport_->poll(&done_);
  in_flight_.store(transport_->pending());
  for (std::uint64_t id : done_) {
    complete(id);
    busy = true;
  }
  return attend() || busy;
}

bool Engine::attend() {
  restless_.clear();
  {
    std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& [used, session, dropped] : sessions_) {
      if (session && (session->approximate() || session->summing())) {
        restless_.push_back(session);
      }
    }
  }
  bool busy = false;
  for (const auto& session : restless_) {
    if (failure_->failed()) break;
    try {
      busy = session->poll_sums() || busy;
    } catch (const std::exception& error) {
      give_up("worker " + std::to_string(rank_) + ": " + error.what());
      continue;
    }
    if (session->approximate()) busy = session->tick() || busy;
  }
  restless_.clear();
  return busy;
}

void Engine::execute(Command& command) {
  switch (command.what) {
    case Command::What::kBegin:
      command.session->tell_progress(command.step);
      break;
    case Command::What::kPost:
      if (command.event != nullptr) {
        copying_.push_back(std::move(command));
        break;
      }
      command.session->post(command.step, command.row, command.bucket, command.data);
      break;
    case Command::What::kPublish:
      post_copied();  // rows that are copied by now are sent before it
      tell_blob(std::move(command.bytes));
      break;
    case Command::What::kFail:
      if (!failure_->failed()) give_up(command.bytes);
      break;
    case Command::What::kCall:
      command.work();
      break;
    case Command::What::kStop:
      say_goodbye();
      break;
    case Command::What::kDrop:
      tell_dropped(command.session);
      break;
  }
}

bool Engine::post_copied() {
  bool busy = false;
  for (std::size_t i = copying_.size(); i-- > 0;) {  // in turn, each once
    Command command = std::move(copying_.front());
    copying_.pop_front();
    if (failure_->failed()) continue;
    const int answer = device_.query(command.event);
    if (answer == device_.not_ready) {
      copying_.push_back(std::move(command));
    } else if (answer == 0) {
      command.session->post(command.step, command.row, command.bucket, command.data);
      busy = true;
    } else {
      give_up("worker " + std::to_string(rank_) + ": the device answered " +
              std::to_string(answer) + " when asked whether a row of step " +
              std::to_string(command.step) +
              " is copied; an earlier kernel may have failed: run with "
              "CUDA_LAUNCH_BLOCKING=1 to see which");
    }
  }
  return busy;
}

void Engine::send(int dest, Address address, const void* data, std::size_t bytes,
                  BufferRef keep) {
  const std::uint64_t id = next_id_++;
  transport_->send(dest, address, data, bytes, id);
  Pending pending;
  pending.keep = std::move(keep);
  pending_.emplace(id, std::move(pending));
}

std::shared_ptr<Session> Engine::session_of(Address address) const {
  const auto number = static_cast<std::size_t>(AddressCodec::session_of(address));
  std::lock_guard<std::mutex> lock(mutex_);
  return number < sessions_.size() ? sessions_[number].session : nullptr;
}

void Engine::take_message(const Letter& letter) {
  Pending pending;
  pending.receive = true;
  pending.source = letter.source;
  pending.bytes = letter.bytes;
  const Kind kind = AddressCodec::kind_of(letter.address);
  char* into = nullptr;
  if (kind != Kind::kControl && !failure_->failed()) {
    pending.session = session_of(letter.address);
  }
  if (pending.session) {
    pending.fields = pending.session->fields(letter.address);
    into = pending.session->place(pending.fields, letter.source, letter.bytes,
                                  &pending.keep);
  } else {
    pending.fields.kind = kind;
    pending.keep = pool_->get(letter.bytes);
    into = pending.keep->data();
  }
  const std::uint64_t id = next_id_++;
  if (kind == Kind::kControl) {
    controls_[letter.source].push_back({id, pending.keep, letter.bytes, false});
  }
  pending_.emplace(id, std::move(pending));
  transport_->receive(into, id);
}

void Engine::complete(std::uint64_t id) {
  auto found = pending_.find(id);
  Pending pending = std::move(found->second);
  pending_.erase(found);
  if (!pending.receive) return;
  if (pending.session) {
    pending.session->received(pending.fields, pending.source, pending.keep);
  } else if (pending.fields.kind == Kind::kControl) {
    hear(pending.source, id);
  }  // else: a message of a closed or dropped session, or after a failure
}

// The longer nothing has happened, the longer is the nap. While something is open it is
// an eighth of the silence, so that a message waits for an eighth at most. Otherwise it
// is half of the silence, up to 2 ms or a thirty-second part of it: each look takes
// some 20 us from the passes that compute on the same core, and displaces their data
// from its caches.
void Engine::back_off() {
  const double silent = now_s() - last_event_s_;
  if (silent < kSpinS) {
    std::this_thread::yield();
    return;
  }
  double share = 0.125, longest = kOpenNapS;
  if (transport_->pending() > 0 || !copying_.empty()) {
    longest = kCopyNapS;
  } else {
    std::lock_guard<std::mutex> lock(mutex_);
    const bool gathering = published_ > gathered_rounds_;
    bool used = stopping_ || gathering, open = false, awaited = false, summing = false;
    for (const auto& [taken, session, dropped] : sessions_) {
      if (!session) continue;
      used = true;
      open = session->open_work() || open;
      awaited = session->awaited() || awaited;
      summing = (session->summing() && !failure_->failed()) || summing;
    }
    if (summing) {
      longest = kCopyNapS;
    } else if (awaited) {
      longest = kAwaitedNapS;
    } else if (!open) {
      share = 0.5;
      longest = std::clamp(silent / 32, kIdleNapS, kLongIdleNapS);
      if (gathering) longest = kIdleNapS;
      if (!used) longest = kUnusedNapS;
    }
  }
  const double nap = std::clamp(share * silent, kShortestNapS, longest);
  std::unique_lock<std::mutex> lock(mutex_);
  commanded_.wait_for(lock, std::chrono::duration<double>(nap),
                      [this] { return !commands_.empty(); });
}

}  // namespace codedgrad
