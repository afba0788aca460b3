// Every worker has one engine: a thread that drives all communication without Python's
// lock (GIL). It takes commands from the training thread and messages from the
// transport, and hands both to the sessions. It owns every buffer that is in flight.
//
// A training thread that waits for a step does the engine's work itself meanwhile, so
// that nothing has to be handed from thread to thread. Whoever does that work holds the
// wheel (engine_wheel.cpp). "The engine's thread" is the one that holds it.
//
// Control messages (start-up comparison, barrier, errors, goodbye) travel beside the
// gradients in the same order, so a worker that fails is heard by all who wait.
//
// Sessions have numbers, which are part of the addresses of their messages and must be
// the same everywhere. A number is used again only after close_session(), which all
// workers call together. A session that is dropped keeps its number; its memory is
// given back once every worker has dropped it, since nothing can come for it then.
//
// A worker whose process has died is *out* (engine_views.cpp): nothing is sent to it or
// heard from it, and nobody waits for it. Where that cannot be, the job ends.
#pragma once

#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "engine/mailbox.h"
#include "engine/session.h"

namespace codedgrad {

struct EngineStats {
  std::int64_t polls = 0;          // rounds of the loop
  std::size_t pool_bytes = 0;      // memory held
  std::size_t in_flight = 0;       // sends and receives not completed
  std::size_t held = 0;            // sends to workers that stand still, not begun
  std::size_t unpinned_bytes = 0;  // memory that could not be pinned for a device
  std::size_t sessions = 0;        // neither closed nor dropped by all workers
};

class Engine final : private Outbox {
 public:
  // With `least` workers may be lost from the first moment on, see survive().
  explicit Engine(std::unique_ptr<Transport> transport, int least = 0);
  ~Engine() override;

  int rank() const { return rank_; }
  int size() const { return size_; }

  // Sessions must be opened in the same order everywhere, and a publish/gather must
  // follow before the first post. Throws std::invalid_argument on bad settings.
  std::shared_ptr<Session> open_session(SessionSettings settings);
  void close_session(const std::shared_ptr<Session>& session);
  // Says that this worker has lost its hold on the session, at any time: not
  // collective. The session serves the others until they have dropped it, too.
  void drop_session(const std::shared_ptr<Session>& session);

  // Must come before the first session of a model on a device. The first device that is
  // bound stays; its number is returned. It reaches pinned memory for models on others.
  int bind_device(const DeviceCalls& calls);
  BufferRef acquire(std::size_t bytes, Memory memory = Memory::kHost) {
    return pool_->get(bytes, memory);
  }
  // Announces the step to the engine, then waits as Session::begin does.
  bool begin(const std::shared_ptr<Session>& session, std::int64_t step,
             double timeout_s, std::vector<int>* behind);
  // As Session::wait. Meanwhile the calling thread does the engine's work, where it
  // can.
  bool wait(const std::shared_ptr<Session>& session, std::int64_t step,
            double timeout_s, int seen = kAnyNeeds);
  // Sends one bucket of the row, or all of them (kAllBuckets), each once. The engine
  // shares the buffer until all of that is sent and decoded; until then the posted
  // buckets must not be written. With an `event` of the device they are sent once it
  // is done; the event must live until then, and may be recorded again before.
  void post(const std::shared_ptr<Session>& session, std::int64_t step, int row,
            int bucket, BufferRef data, void* event = nullptr);
  // The same, for a caller that waits for the step next: it sends by itself, where it
  // can, and the engine's own thread sleeps on.
  void post_and_wait(const std::shared_ptr<Session>& session, std::int64_t step,
                     int row, int bucket, BufferRef data);

  // An all-gather of small byte strings, round by round: each worker publishes its own,
  // then calls gather() until everybody's is there. On time-out gather() returns
  // nothing and says who is missing. A worker that is out has published nothing, unless
  // some other one has heard it: all who are left get the same.
  using Blobs = std::vector<std::optional<std::string>>;
  void publish(std::string bytes);
  std::optional<Blobs> gather(double timeout_s, std::vector<int>* missing);

  // From now on workers may be lost, as long as so many are left, and as every open
  // session stands it. Before that a worker that is lost ends the job.
  void survive(int least);
  // Returns the workers that were lost, and when, by the monotonic clock.
  std::map<int, double> lost() const;

  // Runs `work` on the engine's thread and waits for it. Returns false when the engine
  // has ended.
  bool call(std::function<void()> work);
  void fail(const std::string& text);  // ends the job on every worker
  std::vector<int> departed() const;   // workers that have said goodbye
  // Returns what workers have published for the next round, which tells where they
  // wait.
  std::map<int, std::string> announced() const;
  bool failed() const { return failure_->failed(); }
  std::string failure() const { return failure_->text(); }

  // Says goodbye, and ends the thread when all workers have said it and all is sent.
  // After a failure, or when `timeout_s` has passed, it ends the thread regardless.
  // Returns true when all have said it and nothing was left under way.
  bool stop(double timeout_s);
  EngineStats stats() const;

 private:
  struct Command {
    enum class What { kBegin, kPost, kPublish, kFail, kStop, kCall, kDrop } what;
    std::shared_ptr<Session> session;
    std::int64_t step = 0;
    int row = 0, bucket = kAllBuckets;
    BufferRef data;
    std::string bytes;
    std::function<void()> work;
    void* event = nullptr;
  };
  struct Pending {
    bool receive = false;
    int peer = 0;
    std::shared_ptr<Session> session;  // null for control messages
    Fields fields;
    BufferRef keep;
    std::size_t bytes = 0;
  };

  void send(int dest, Address address, const void* data, std::size_t bytes,
            BufferRef keep) override;
  void suspected(int worker) override { traffic_[worker].suspected = true; }
  void tell_blob(std::string bytes);
  // ---- workers that are out (engine_views.cpp) ----
  bool next_letter(Letter* letter);
  bool lose_some();
  void lose(int worker, const std::string& how);
  std::string why_not_one_less() const;  // under mutex_; "": the job goes on
  void forget_receives(int worker);
  void tell_view();
  void hear_view(int source, const std::string& said);
  bool out(int worker) const { return lost_s_[worker] > 0.0; }  // under mutex_
  bool settled() const;                  // under mutex_: all name the same as out
  bool whole(std::int64_t round) const;  // under mutex_
  void say_goodbye();
  void give_up(const std::string& text);
  void send_control(char type, const std::string& text);
  // Without `wakes` the engine finds the command when it looks next.
  void submit(Command command, bool wakes = true);
  void send_control_to(int dest, char type, const std::string& text);
  BufferRef control_of(char type, const std::string& text);
  void run();
  void loop();
  bool borrow_wheel();
  void return_wheel();
  // Works until `ready`, at most until then, or until it is not to go on.
  bool work_now();  // once; false: another thread has the wheel
  Command post_command(const std::shared_ptr<Session>& session, std::int64_t step,
                       int row, int bucket, BufferRef data, void* event) const;
  void drive(const std::function<bool()>& ready, double until_s);
  bool drive_once(double* nap_s);
  void finish_sends(double until_s);
  void tell_before_the_end(const std::string& text);
  // Looks after sessions that watch the clock, or for which a device sums.
  bool attend();
  bool turn();  // one round of the loop; true when something happened
  bool complete_all(bool busy);
  void execute(Command& command);
  bool post_copied();  // posts the rows whose copy from the device is done
  void take_message(const Letter& letter);
  std::shared_ptr<Session> session_of(Address address) const;
  void tell_dropped(const std::shared_ptr<Session>& session);
  void dropped_by(int worker, int session);
  bool free_if_dropped(int number);  // false: there is no such session
  void complete(std::uint64_t id);
  void hear(int source, std::uint64_t id);
  void control(int source, const char* data, std::size_t bytes);
  void set_failure(const std::string& text);
  bool all_have_left() const;  // every worker has said goodbye
  bool finished() const;
  bool copies_run() const;  // something under way that is not stuck with its peer
  // Returns for how long to sleep where nothing has happened; 0: only yield, which it
  // says for `spin_s` after an event.
  double nap_s(double spin_s);
  void sleep(double nap_s);  // of a thread that waits
  void rouse();              // under mutex_: wakes the engine's own thread

  std::unique_ptr<Mailbox> transport_;
  const int rank_, size_, max_tag_;
  const std::shared_ptr<BufferPool> pool_ = std::make_shared<BufferPool>();
  const std::shared_ptr<Failure> failure_ = std::make_shared<Failure>();

  std::mutex wheel_;          // is locked before mutex_
  mutable std::mutex mutex_;  // guards what follows, up to the engine thread's own
  bool lent_ = false;         // the wheel, to a thread that waits
  bool roused_ = false;       // the engine's own thread is to look again
  std::condition_variable commanded_, gathered_;
  std::deque<Command> commands_;
  struct Place {
    bool used = false;                 // until it is closed everywhere
    std::shared_ptr<Session> session;  // null once it is closed, or dropped by all
    std::set<int> dropped;             // the workers that have dropped it
  };
  std::vector<Place> sessions_;                                // by number
  std::map<std::int64_t, std::map<int, std::string>> rounds_;  // round -> by worker
  std::map<int, std::string> last_round_;  // the one that was gathered last
  std::int64_t published_ = 0, gathered_rounds_ = 0;
  std::vector<double> lost_s_;       // by worker: when it was lost; 0: it is not
  std::vector<std::set<int>> told_;  // by worker: who is out, by its own last words
  int least_ = 0;                    // workers that must be left; 0: all
  bool ended_ = false;
  std::vector<bool> goodbye_;  // by worker; the own entry is always set

  // Only the engine's thread uses these: who holds the wheel.
  std::exception_ptr broken_;  // what ended the work: nobody may do any more
  std::unordered_map<std::uint64_t, Pending> pending_;
  std::uint64_t next_id_ = 0;
  std::vector<std::uint64_t> done_;
  std::deque<Command> copying_;                     // posts that wait for their event
  std::vector<std::shared_ptr<Session>> restless_;  // in attend()
  DeviceCalls device_;
  // Control messages that were announced, by worker. They are heard in that order,
  // although a later one may be received first.
  struct Control {
    std::uint64_t id = 0;
    BufferRef data;
    std::size_t bytes = 0;
    bool here = false;
  };
  std::vector<std::deque<Control>> controls_;
  std::vector<std::int64_t> heard_;  // control rounds received, by worker
  struct Loss {
    int worker = 0;
    std::string how;
    bool gone = false;  // the transport says so
  };
  std::vector<Loss> losing_;  // found in this turn
  struct Held {
    Address address = 0;
    const void* data = nullptr;
    std::size_t bytes = 0;
    BufferRef keep;
  };
  struct Traffic {
    std::size_t under_way = 0;  // sends to the worker and receives from it
    double moved_s = 0.0;       // when one was completed, or the first one begun
    // Messages to a worker that stands still wait here: a transport has memory for so
    // many that nobody takes, and then none for those of the others.
    std::deque<Held> held;
    bool suspected = false;  // it seems to stand still
    int unheard = 0;         // messages to it since the last one from it
    double release_s = 0.0;  // when the next of the held ones is sent all the same
    double gap_s = 0.0;
  };
  std::vector<Traffic> traffic_;  // by worker
  std::uint64_t begin_transfer(Pending pending);
  void start_send(int dest, const Held& message);
  void heard_from(int worker);
  void release(int worker, std::size_t most);
  void release_held();
  void drop_held(int worker);
  bool stopping_ = false;
  std::size_t receives_ = 0;  // of those that are pending
  int unpolled_ = 0;          // turns since the transport was last polled
  double last_event_s_ = 0.0, stop_by_s_ = 0.0;
  std::atomic<bool> lends_{true};  // a device is selected by the engine's own thread
  std::atomic<bool> leaves_work_{false};  // who returned the wheel last
  std::atomic<std::int64_t> polls_{0};
  std::atomic<std::size_t> in_flight_{0}, held_{0};

  std::atomic<double> stop_timeout_s_{0.0};
  bool ended_together_ = false;  // what `stop` returned
  std::thread thread_;
};

}  // namespace codedgrad
