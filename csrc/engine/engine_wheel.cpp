// Who does the engine's work: its own thread, or one that waits for a step.
//
// A wait that the engine's own thread ends costs two changes of threads, one to wake it
// with the row and one to be woken by it. So a thread that waits takes the wheel; the
// engine's own thread looks now and then whether it has been returned. Both sleep by
// the same rules, so a long wait takes no more from those who compute.
#include <sys/prctl.h>

#include <algorithm>
#include <cfenv>
#include <chrono>
#include <optional>
#include <stdexcept>

#include "engine/clock.h"
#include "engine/engine.h"

namespace codedgrad {
namespace {

constexpr double kLookS = 2e-3;  // between two looks whether the wheel is back
constexpr int kTries = 64;       // to take the wheel, before a sleep until it is free
// After an event: yield, do not sleep.
constexpr double kSpinS = 30e-6;
constexpr double kWaitSpinS = 100e-6;  // who waits itself, as MPI_Wait does for ever
// Who waited for a step stays for so long, if needed, until its own sends are done. The
// others wait for them now, and to wake the engine's own thread takes as long.
constexpr double kFinishS = 30e-6;
constexpr unsigned long kSlackNs = 1000;

// Short naps are short, for a thread that is not the engine's own.
class ShortNaps {
 public:
  ShortNaps() : before_(prctl(PR_GET_TIMERSLACK)) {
    prctl(PR_SET_TIMERSLACK, kSlackNs);
  }
  ~ShortNaps() {
    if (before_ > 0) prctl(PR_SET_TIMERSLACK, static_cast<unsigned long>(before_));
  }
  ShortNaps(const ShortNaps&) = delete;
  ShortNaps& operator=(const ShortNaps&) = delete;

 private:
  const int before_;
};

// Around the turns of a thread that is not the engine's own, however many they are.
// Sums have the same bits whoever adds them up, and each thread has its own rules for
// rounding and for denormal numbers, which the user's thread may have changed.
class UsualArithmetic {
 public:
  UsualArithmetic() {
    std::fegetenv(&before_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~UsualArithmetic() { std::fesetenv(&before_); }
  UsualArithmetic(const UsualArithmetic&) = delete;
  UsualArithmetic& operator=(const UsualArithmetic&) = delete;

 private:
  std::fenv_t before_;
};

}  // namespace

// ---- training thread ----

bool Engine::wait(const std::shared_ptr<Session>& session, std::int64_t step,
                  double timeout_s, int seen) {
  if (session->done(step)) return true;
  const double until = now_s() + timeout_s;
  if (timeout_s > 0.0 && borrow_wheel()) {
    const UsualArithmetic usual_arithmetic;
    session->awaits(true);
    drive([&] { return session->ready(step, seen); }, until);
    if (session->done(step)) finish_sends(now_s() + kFinishS);
    session->awaits(false);
    return_wheel();
  }
  return session->wait(step, std::max(0.0, until - now_s()), seen);
}

void Engine::post_and_wait(const std::shared_ptr<Session>& session, std::int64_t step,
                           int row, int bucket, BufferRef data) {
  submit(post_command(session, step, row, bucket, std::move(data), nullptr), false);
  const bool worked = work_now();
  std::lock_guard<std::mutex> lock(mutex_);
  // Where workers are out, their part may be computed next, without a wait.
  const bool all = std::all_of(lost_s_.begin(), lost_s_.end(),
                               [](double lost_s) { return lost_s == 0.0; });
  if (!worked || !all) rouse();
}

bool Engine::work_now() {
  if (!lends_.load()) return false;
  std::unique_lock<std::mutex> wheel(wheel_, std::try_to_lock);
  const UsualArithmetic usual_arithmetic;
  double nap = 0.0;
  return wheel.owns_lock() && drive_once(&nap);
}

bool Engine::borrow_wheel() {
  if (!lends_.load()) return false;
  std::lock_guard<std::mutex> lock(mutex_);
  if (lent_ || ended_) return false;
  lent_ = true;
  return true;
}

// The engine's own thread is woken where something is under way, or somebody else
// waits.
void Engine::return_wheel() {
  std::lock_guard<std::mutex> lock(mutex_);
  lent_ = false;
  const bool awaited = std::any_of(
      sessions_.begin(), sessions_.end(),
      [](const Place& place) { return place.session && place.session->awaited(); });
  if (awaited || leaves_work_.load() || !commands_.empty()) rouse();
}

void Engine::rouse() {
  roused_ = true;
  commanded_.notify_all();
}

void Engine::drive(const std::function<bool()>& ready, double until_s) {
  std::optional<ShortNaps> short_naps;  // most waits end without a nap
  double nap = 0.0;
  for (bool first = true;; first = false) {
    {
      std::unique_lock<std::mutex> wheel(wheel_, std::defer_lock);
      for (int i = 0; i < kTries && !wheel.try_lock(); ++i) std::this_thread::yield();
      if (!wheel.owns_lock()) wheel.lock();
      if (first) last_event_s_ = now_s();  // as if: who waits from now waits for soon
      if (!drive_once(&nap)) return;
    }
    if (ready() || failure_->failed()) return;
    const double left = until_s - now_s();
    if (left <= 0.0) return;
    if (nap > 0.0 && !short_naps) short_naps.emplace();
    sleep(std::min(nap, left));
  }
}

void Engine::sleep(double nap) {
  if (nap <= 0.0) {
    std::this_thread::yield();
    return;
  }
  std::unique_lock<std::mutex> lock(mutex_);
  commanded_.wait_for(lock, std::chrono::duration<double>(nap),
                      [this] { return !commands_.empty(); });
}

void Engine::finish_sends(double until_s) {
  double nap = 0.0;
  while (leaves_work_.load() && !failure_->failed() && now_s() < until_s) {
    std::this_thread::yield();
    std::lock_guard<std::mutex> wheel(wheel_);
    if (!drive_once(&nap)) return;
  }
}

bool Engine::drive_once(double* nap) {
  if (broken_ || stopping_ || !lends_.load()) return false;
  try {
    const bool busy = turn();
    if (busy) last_event_s_ = now_s();
    *nap = busy ? 0.0 : nap_s(kWaitSpinS);
  } catch (const std::exception&) {
    broken_ = std::current_exception();
  }
  leaves_work_.store(broken_ || transport_->pending() > 0 || !copying_.empty() ||
                     held_.load() > 0);
  polls_.fetch_add(1, std::memory_order_relaxed);
  return !broken_;
}

// ---- engine's own thread ----

void Engine::loop() {
  while (true) {
    {
      std::unique_lock<std::mutex> lock(mutex_);
      while (lent_) {
        commanded_.wait_for(lock, std::chrono::duration<double>(kLookS),
                            [this] { return !lent_; });
      }
    }
    double nap = 0.0;
    {
      std::lock_guard<std::mutex> wheel(wheel_);
      if (broken_) std::rethrow_exception(broken_);
      try {
        if (turn()) {
          last_event_s_ = now_s();
        } else if (finished()) {
          return;
        } else {
          nap = nap_s(kSpinS);
        }
      } catch (const std::exception&) {
        broken_ = std::current_exception();  // nobody else may work from now on
        throw;
      }
    }
    polls_.fetch_add(1, std::memory_order_relaxed);
    if (nap <= 0.0) {
      std::this_thread::yield();
      continue;
    }
    std::unique_lock<std::mutex> lock(mutex_);
    commanded_.wait_for(lock, std::chrono::duration<double>(nap),
                        [this] { return roused_ || !commands_.empty(); });
    roused_ = false;
  }
}

}  // namespace codedgrad
