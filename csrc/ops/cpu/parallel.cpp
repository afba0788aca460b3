#include "ops/cpu/parallel.h"

#include <unistd.h>

#include <cfenv>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

namespace codedgrad::ops {
namespace {

// The threads of one process. Never freed: they wait for work until the process ends.
class Pool {
 public:
  explicit Pool(pid_t process) : process_(process) {}

  // A fork has none of its parent's threads, and makes a pool of its own.
  static Pool& of_this_process() {
    static std::atomic<Pool*> current{nullptr};
    Pool* found = current.load();
    while (found == nullptr || found->process_ != getpid()) {
      Pool* made = new Pool(getpid());
      if (current.compare_exchange_strong(found, made)) return *made;
      delete made;
    }
    return *found;
  }

  // Ends the process where the body throws: others may be in it.
  void run(int others, const std::function<void()>& body) noexcept {
    std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
    if (!turn.owns_lock()) {
      body();
      return;
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      grow(others);
      body_ = &body;
      std::fegetenv(&arithmetic_);
      wanted_ = std::min(others, threads_);
    }
    work_.notify_all();
    body();
    std::unique_lock<std::mutex> lock(mutex_);
    wanted_ = 0;  // who has not begun finds nothing left
    done_.wait(lock, [this] { return running_ == 0; });
  }

 private:
  void grow(int others) {
    try {
      for (; threads_ < others; ++threads_) std::thread([this] { loop(); }).detach();
    } catch (const std::system_error&) {
      // No more threads to be had: those that are there do it.
    }
  }

  void loop() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
      work_.wait(lock, [this] { return wanted_ > 0; });
      --wanted_;
      ++running_;
      const std::function<void()>& body = *body_;
      std::fesetenv(&arithmetic_);
      lock.unlock();
      body();
      lock.lock();
      if (--running_ == 0) done_.notify_one();
    }
  }

  const pid_t process_;
  std::mutex turn_;  // one call at a time
  std::mutex mutex_;
  std::condition_variable work_, done_;
  const std::function<void()>* body_ = nullptr;  // the caller's, until it returns
  std::fenv_t arithmetic_;                       // the caller's: rounding, denormals
  int threads_ = 0;
  int wanted_ = 0;  // threads that may still begin
  int running_ = 0;
};

}  // namespace

void share(int others, const std::function<void()>& body) {
  Pool::of_this_process().run(others, body);
}

}  // namespace codedgrad::ops
