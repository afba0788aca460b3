// The engine's thread: what it looks at in every turn, and how long it sleeps between.
#include <sys/prctl.h>

#include <algorithm>
#include <cfenv>
#include <chrono>
#include <cstring>
#include <stdexcept>

#include "engine/clock.h"
#include "engine/engine.h"

namespace codedgrad {
namespace {

constexpr int kMessagesPerTurn = 64;
constexpr int kTurnsUnpolled = 4;
constexpr double kShortestNapS = 10e-6;
constexpr double kCopyNapS = 50e-6;     // when the other side or a device copies now
constexpr double kAwaitedNapS = 1e-3;   // when this worker waits
constexpr double kOpenNapS = 2e-3;      // when a step is open here
constexpr double kIdleNapS = 2e-3;      // when none is; longer in long silence,
constexpr double kLongIdleNapS = 8e-3;  // up to this
constexpr double kUnusedNapS = 20e-3;   // when no session is, and nobody waits

}  // namespace

void Engine::run() {
  prctl(PR_SET_NAME, "codedgrad");
  prctl(PR_SET_TIMERSLACK, 1000UL);  // short naps are short
  std::fesetenv(FE_DFL_ENV);         // as for a thread that waits
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
  for (int i = 0; i < kMessagesPerTurn && next_letter(&letter); ++i) {
    take_message(letter);
    busy = true;
  }
  if (held_.load(std::memory_order_relaxed) > 0) release_held();
  return complete_all(busy) || busy;
}

// Each call to a transport moves its messages on, which may cost a change of processes.
// So where nothing happens and only sends are under way, whose end nobody waits for, a
// probe is enough most of the time.
bool Engine::complete_all(bool busy) {
  if (!busy && losing_.empty() && receives_ == 0 && ++unpolled_ < kTurnsUnpolled)
    return attend();
  unpolled_ = 0;
  done_.clear();
  transport_->poll(&done_);
  in_flight_.store(transport_->pending());
  for (std::uint64_t id : done_) {
    complete(id);
    busy = true;
  }
  busy = lose_some() || busy;
  return attend() || busy;
}

bool Engine::attend() {
  restless_.clear();
  {
    std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& [used, session, dropped] : sessions_) {
      if (session &&
          (session->approximate() || session->summing() || session->deputises())) {
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
    if (session->deputises()) busy = session->deputise() || busy;
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

std::shared_ptr<Session> Engine::session_of(Address address) const {
  const auto number = static_cast<std::size_t>(AddressCodec::session_of(address));
  std::lock_guard<std::mutex> lock(mutex_);
  return number < sessions_.size() ? sessions_[number].session : nullptr;
}

void Engine::take_message(const Letter& letter) {
  Pending pending;
  pending.receive = true;
  pending.peer = letter.source;
  heard_from(letter.source);
  pending.bytes = letter.bytes;
  const Kind kind = AddressCodec::kind_of(letter.address);
  char* into = nullptr;
  // What comes from a worker that is out is received, and dropped.
  const bool heeded = lost_s_[letter.source] == 0.0;
  if (heeded && kind != Kind::kControl && !failure_->failed()) {
    pending.session = session_of(letter.address);
  }
  if (pending.session) {
    pending.fields = pending.session->fields(letter.address);
    into = pending.session->place(pending.fields, letter.source, letter.bytes,
                                  &pending.keep);
  } else {
    pending.fields.kind = heeded ? kind : Kind::kProgress;
    pending.keep = pool_->get(letter.bytes);
    into = pending.keep->data();
  }
  if (heeded && kind == Kind::kControl) {
    controls_[letter.source].push_back({next_id_, pending.keep, letter.bytes, false});
  }
  const std::uint64_t id = begin_transfer(std::move(pending));
  transport_->receive(into, id);
}

void Engine::complete(std::uint64_t id) {
  auto found = pending_.find(id);
  Pending pending = std::move(found->second);
  pending_.erase(found);
  Traffic& traffic = traffic_[pending.peer];
  --traffic.under_way;
  if (pending.receive) --receives_;
  traffic.moved_s = now_s();
  if (!pending.receive || lost_s_[pending.peer] > 0.0) return;
  if (pending.session) {
    pending.session->received(pending.fields, pending.peer, pending.keep,
                              pending.bytes);
  } else if (pending.fields.kind == Kind::kControl) {
    hear(pending.peer, id);
  }  // else: a message of a closed or dropped session, or after a failure
}

// The longer nothing has happened, the longer is the nap. While something is open it is
// an eighth of the silence, so that a message waits for an eighth at most. Otherwise it
// is half of the silence, up to 2 ms or a thirty-second part of it: each look takes
// some 20 us from the passes that compute on the same core, and displaces their data
// from its caches.
double Engine::nap_s(double spin_s) {
  const double silent = now_s() - last_event_s_;
  if (silent < spin_s) return 0.0;
  double share = 0.125, longest = kOpenNapS;
  if (copies_run()) {
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
  unpolled_ = kTurnsUnpolled;  // after a nap all is looked at
  return std::clamp(share * silent, kShortestNapS, longest);
}

}  // namespace codedgrad
