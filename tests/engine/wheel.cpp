// Who holds the engine's wheel, at chosen moments: a thread is stopped in the middle of
// a turn, in the transport, while others come, leave, post, stop or fail. Built with
// -fsanitize=thread by test_stress.py.
//
// The worker is rank 0 of 2. What rank 1 sends is put into the transport by the case.
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "engine/control.h"
#include "engine/engine.h"
#include "late_device.h"

namespace {

using namespace codedgrad;
using Clock = std::chrono::steady_clock;

constexpr double kLimitS = 20.0;
constexpr std::size_t kHalf = 32, kCount = 2 * kHalf;
const char* running = "";

void want(bool good, const char* what) {
  if (good) return;
  std::fprintf(stderr, "%s: not so: %s\n", running, what);
  std::_Exit(1);
}

// What the case says to the transport, and sees of it.
class Script {
 public:
  void put(Address tag, std::string bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    inbox_.push_back({static_cast<int>(tag), std::move(bytes)});
  }
  void fail() { fails_.store(true); }

  // From now on whoever begins a turn stops in it.
  void shut() {
    std::lock_guard<std::mutex> lock(mutex_);
    shut_ = true;
  }
  // Returns once a thread stands at the gate: which one.
  std::thread::id stopped() {
    std::unique_lock<std::mutex> lock(mutex_);
    const auto there = [&] { return at_gate_ != std::thread::id(); };
    want(changed_.wait_for(lock, std::chrono::duration<double>(kLimitS), there),
         "a thread comes to the gate");
    return at_gate_;
  }
  void open() {
    std::lock_guard<std::mutex> lock(mutex_);
    shut_ = false;
    changed_.notify_all();
  }
  int sends() const { return sends_.load(); }

 private:
  friend class Scripted;
  struct Message {
    int tag = 0;
    std::string bytes;
  };
  std::mutex mutex_;
  std::condition_variable changed_;
  bool shut_ = false;
  std::thread::id at_gate_;
  std::deque<Message> inbox_;
  std::atomic<bool> fails_{false};
  std::atomic<int> inside_{0}, sends_{0};
};

class Scripted final : public Transport {
 public:
  explicit Scripted(std::shared_ptr<Script> script) : script_(std::move(script)) {}
  int rank() const override { return 0; }
  int size() const override { return 2; }
  int max_tag() const override { return (1 << 30) - 1; }
  void send(int, int, const void*, std::size_t, std::uint64_t id) override {
    const Inside inside(script_.get());
    ++script_->sends_;
    done_.push_back(id);
  }
  bool probe(Envelope* envelope) override {
    const Inside inside(script_.get());
    std::unique_lock<std::mutex> lock(script_->mutex_);
    if (script_->shut_) {
      script_->at_gate_ = std::this_thread::get_id();
      script_->changed_.notify_all();
      script_->changed_.wait(lock, [&] { return !script_->shut_; });
      script_->at_gate_ = std::thread::id();
    }
    if (script_->fails_.exchange(false)) throw std::runtime_error("as scripted");
    if (script_->inbox_.empty()) return false;
    taken_ = std::move(script_->inbox_.front());
    script_->inbox_.pop_front();
    *envelope = {1, taken_.tag, taken_.bytes.size()};
    return true;
  }
  void receive(void* into, std::uint64_t id) override {
    const Inside inside(script_.get());
    if (!taken_.bytes.empty()) {
      std::memcpy(into, taken_.bytes.data(), taken_.bytes.size());
    }
    done_.push_back(id);
  }
  void poll(std::vector<std::uint64_t>* done) override {
    const Inside inside(script_.get());
    done->insert(done->end(), done_.begin(), done_.end());
    done_.clear();
  }
  std::size_t pending() const override { return done_.size(); }

 private:
  struct Inside {
    explicit Inside(Script* script) : script(script) {
      want(script->inside_.fetch_add(1) == 0, "one thread at a time is in a turn");
    }
    ~Inside() { script->inside_.fetch_sub(1); }
    Script* script;
  };
  const std::shared_ptr<Script> script_;
  Script::Message taken_;
  std::vector<std::uint64_t> done_;
};

// An engine with two models, and what happens to them.
struct Worker {
  std::shared_ptr<Script> script = std::make_shared<Script>();
  std::unique_ptr<Engine> engine =
      std::make_unique<Engine>(std::make_unique<Scripted>(script));
  std::shared_ptr<const Plan> plan =
      make_tree_plan({-1, -1, 0}, {-1, -1, 1}, {2, 2, -1}, 2);
  std::vector<std::shared_ptr<Session>> sessions;

  Worker() {
    for (int i = 0; i < 2; ++i) {
      SessionSettings settings;
      settings.plan = plan;
      settings.bucket_starts = {0, kCount};
      settings.window = 4;
      sessions.push_back(engine->open_session(settings));
    }
  }
  BufferRef row(float value) const {
    BufferRef data = engine->acquire(kCount * sizeof(float));
    auto* out = reinterpret_cast<float*>(data->data());
    std::fill(out, out + kCount, value);
    return data;
  }
  // Rank 1's row for this worker, and its slice of the sum.
  void other(int session) const {
    const AddressCodec codec(session, 4, 1, plan->rows(), (1 << 30) - 1);
    const std::vector<float> row(kHalf, 2.0f), result(kHalf, 3.0f);
    const auto bytes = [](const std::vector<float>& values) {
      return std::string(reinterpret_cast<const char*>(values.data()),
                         values.size() * sizeof(float));
    };
    script->put(codec.encode(Kind::kRow, 0, 0, 1), bytes(row));
    script->put(codec.encode(Kind::kResult, 0, 0), bytes(result));
  }
  void taken(int session) const {
    const BufferRef sum = sessions[session]->take(0);
    const auto* got = reinterpret_cast<const float*>(sum->data());
    for (std::size_t i = 0; i < kCount; ++i) want(got[i] == 3.0f, "the sum is right");
  }
  void goodbye() const { script->put(kControlAddress, std::string(1, kGoodbye)); }
  void ends() {
    goodbye();
    want(engine->stop(kLimitS), "the engine ends well");
  }
};

// A thread that waits for a step of one model.
struct Waiter {
  Waiter(Worker* worker, int session, double timeout_s) : session(session) {
    thread = std::thread([this, worker, timeout_s] {
      const auto begin = Clock::now();
      decoded = worker->engine->wait(worker->sessions[this->session], 0, timeout_s);
      took_s = std::chrono::duration<double>(Clock::now() - begin).count();
    });
    id = thread.get_id();
    const auto limit = Clock::now() + std::chrono::duration<double>(kLimitS);
    while (!worker->sessions[session]->awaited()) {
      want(Clock::now() < limit, "the thread waits");
      std::this_thread::yield();
    }
  }
  void join(bool decodes) {
    thread.join();
    want(decoded == decodes, decodes ? "it is decoded" : "it is not decoded");
    want(took_s < 0.5 * kLimitS, "the wait has ended early");
  }
  const int session;
  bool decoded = false;
  double took_s = 0.0;
  std::thread thread;
  std::thread::id id;
};

void one_leaves_while_another_waits() {
  Worker worker;
  worker.script->shut();
  Waiter first(&worker, 0, 0.05);  // it takes the wheel, or waits for it
  worker.script->stopped();
  Waiter second(&worker, 1, kLimitS);  // the wheel is lent already
  worker.engine->post(worker.sessions[1], 0, 0, kAllBuckets, worker.row(1.0f));
  std::this_thread::sleep_for(std::chrono::milliseconds(60));
  worker.script->open();
  first.join(false);
  worker.other(1);  // the engine's own thread goes on for the one that is left
  second.join(true);
  worker.taken(1);
  worker.ends();
}

void one_enters_while_another_is_done() {
  Worker worker;
  for (int session = 0; session < 2; ++session) {
    worker.engine->post(worker.sessions[session], 0, 0, kAllBuckets, worker.row(1.0f));
  }
  Waiter first(&worker, 0, kLimitS);
  worker.script->shut();
  worker.script->stopped();
  worker.other(0);
  Waiter second(&worker, 1, kLimitS);
  worker.script->open();
  first.join(true);
  worker.other(1);
  second.join(true);
  worker.taken(0);
  worker.taken(1);
  worker.ends();
}

// The row of who posts and waits next is sent by the thread that is in a turn, or by
// the engine's own.
void one_posts_during_anothers_turn() {
  Worker worker;
  Waiter first(&worker, 0, kLimitS);
  worker.script->shut();
  worker.script->stopped();
  worker.engine->post_and_wait(worker.sessions[1], 0, 0, kAllBuckets, worker.row(1.0f));
  worker.engine->post(worker.sessions[0], 0, 0, kAllBuckets, worker.row(1.0f));
  want(worker.script->sends() == 0, "nobody sends during another's turn");
  worker.script->open();
  worker.other(1);
  want(worker.engine->wait(worker.sessions[1], 0, kLimitS), "it is decoded");
  worker.other(0);
  first.join(true);
  worker.taken(0);
  worker.taken(1);
  worker.ends();
}

// `before`: the turn that fails is the engine's own thread's, and the other thread
// comes during it. Else it is that of the thread that waits.
void an_error_in_a_turn(bool before) {
  Worker worker;
  std::unique_ptr<Waiter> first;
  if (!before) first = std::make_unique<Waiter>(&worker, 0, kLimitS);
  worker.script->shut();
  const std::thread::id who = worker.script->stopped();
  if (before) first = std::make_unique<Waiter>(&worker, 0, kLimitS);
  if (before) want(who != first->id, "the engine's own thread is in the turn");
  Waiter second(&worker, 1, kLimitS);
  worker.script->fail();
  worker.script->open();
  first->join(false);
  second.join(false);
  want(worker.engine->failed(), "the engine has failed");
  want(worker.engine->failure().find("as scripted") != std::string::npos,
       "it says why");
  want(!worker.engine->call([] { want(false, "no work after the end"); }),
       "a call after the end returns");
  want(!worker.engine->stop(kLimitS), "it did not end well");
}

void an_error_where_nobody_waits() { an_error_in_a_turn(true); }
void an_error_of_one_that_waits() { an_error_in_a_turn(false); }

void a_stop_during_a_turn() {
  Worker worker;
  Waiter first(&worker, 0, 0.5);
  worker.script->shut();
  worker.script->stopped();
  bool well = false;
  std::thread stops([&] { well = worker.engine->stop(kLimitS); });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  worker.goodbye();
  worker.script->open();
  stops.join();
  want(well, "the engine ends well");
  first.join(false);
}

// Selecting a device is the engine's own thread's business, whoever has the wheel.
void a_device_is_bound_during_a_turn() {
  Worker worker;
  Waiter first(&worker, 0, kLimitS);
  worker.script->shut();
  worker.script->stopped();
  std::thread binds([&] { worker.engine->bind_device(late_device::calls()); });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  worker.script->open();
  binds.join();
  std::thread::id who;
  want(worker.engine->call([&] { who = std::this_thread::get_id(); }), "it is called");
  want(who != first.id, "the engine's own thread calls the device");
  worker.engine->post(worker.sessions[0], 0, 0, kAllBuckets, worker.row(1.0f));
  worker.other(0);
  first.join(true);
  worker.taken(0);
  worker.ends();
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::pair<const char*, std::function<void()>>> cases = {
      {"one leaves while another waits", one_leaves_while_another_waits},
      {"one enters while another is done", one_enters_while_another_is_done},
      {"one posts during another's turn", one_posts_during_anothers_turn},
      {"an error where nobody waits", an_error_where_nobody_waits},
      {"an error of one that waits", an_error_of_one_that_waits},
      {"a stop during a turn", a_stop_during_a_turn},
      {"a device is bound during a turn", a_device_is_bound_during_a_turn},
  };
  const int times = argc == 2 ? std::atoi(argv[1]) : 1;
  for (int i = 0; i < times; ++i) {
    for (const auto& [name, run] : cases) {
      running = name;
      run();
    }
  }
  std::printf("ok\n");
}
