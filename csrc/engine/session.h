// The exchange of one model: open steps, arrivals, decoded slices, the window.
//
// Two threads meet here. The training thread calls begin, wait, take, has, done; the
// engine's thread calls the rest. A training thread that waits may be both (see
// engine_wheel.cpp). Steps are made and changed by the engine's thread
// under `mutex_` (and erased by take once nothing refers to them), so that thread may
// read what it alone writes without the lock. Whatever may take long runs without it:
// decoding, the search for a cover, estimates, and making a step or a buffer, which may
// have to be pinned. So a question of the training thread never waits for these.
//
// Owners and lifetimes: a posted row belongs to its sends and to the open bucket; a
// decoded slice is kept twice, in a buffer of its own for the sends, and in the
// step's result, which the training thread may change once it has taken it.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "engine/address.h"
#include "engine/buffer_pool.h"
#include "engine/cover.h"
#include "engine/deputies.h"
#include "engine/device_sums.h"
#include "engine/estimator.h"
#include "engine/layout.h"
#include "engine/packing.h"

namespace codedgrad {

// What a session asks of the engine: to send, and to own `keep` until that is sent.
class Outbox {
 public:
  virtual ~Outbox() = default;
  virtual void send(int dest, Address address, const void* data, std::size_t bytes,
                    BufferRef keep) = 0;
  // Says that the worker seems to stand still: until something comes from it, few
  // messages to it should be under way.
  virtual void suspected(int worker) = 0;
};

// The first error of the job, seen by every wait.
class Failure {
 public:
  bool set(const std::string& text);  // false if there was one already
  bool failed() const { return failed_.load(std::memory_order_acquire); }
  std::string text() const;

 private:
  mutable std::mutex mutex_;
  std::atomic<bool> failed_{false};
  std::string text_;
};

struct SessionSettings {
  int id = 0;
  DType dtype = DType::kFloat32;
  std::vector<std::size_t> bucket_starts;  // elements; 0 first, the payload's size last
  int window = 16;                         // open steps at most, >= 2
  std::int64_t first_step = 0;
  std::shared_ptr<const Plan> plan;
  std::shared_ptr<const ApproximateSettings> approximate;  // null: exact
  Wire wire = Wire::kAsIs;  // in what type the first buckets travel
  int narrow_buckets = 0;   // how many; rows must hold values of that type there
  // Where rows and results lie. kDevice needs a device that sums, and a tree plan,
  // exact and unrounded; then the payload is never in the processor's memory.
  Memory memory = Memory::kHost;
  DeviceCalls device;  // of memory other than kHost
  // The least seconds after which another worker decodes a silent owner's slice; 0:
  // never. Needs exact sums of a tree, as they are, in the processor's memory.
  double deputy_s = 0.0;
  // Why no worker may be lost for good; "": the others compute and decode all of it.
  std::string needs_all = "its session needs all workers";
};

constexpr int kAllBuckets = -1;
constexpr int kAnyNeeds = std::numeric_limits<int>::max();

enum class ArrivalKind : int { kUseful = 0, kRedundant = 1, kLate = 2, kRefused = 3 };

struct Arrival {
  std::int64_t step;
  int source;
  int row;
  ArrivalKind kind;
  double time_s;  // of the monotonic clock
};

struct Counters {
  std::int64_t rows_useful = 0, rows_redundant = 0, rows_late = 0;
  std::int64_t rows_refused = 0;      // NaN or Inf; approximate only
  std::int64_t slices_deputised = 0;  // decoded here in place of their owner
  std::int64_t slices_decoded = 0, slices_settled = 0, bytes_sent = 0;
  std::int64_t messages_sent = 0;
  std::int64_t notes_sent = 0;        // of these; of deputies, none while all is well
  std::int64_t bytes_copied = 0;      // by deputies, within this worker's memory
  std::int64_t slices_on_device = 0;  // of those decoded
  // The time of all sums, for a device with the time in its queue.
  double decode_s = 0.0;
  // For estimates: the time of the decoder's choices, without the sums; and the time of
  // labels and memory, which is off the critical path.
  double choose_s = 0.0, learn_s = 0.0;
  std::int64_t slices_biased = 0;  // attempts that only the shards' bias has failed
};

// The engine around a session: which worker it is, and what its sessions share.
struct SessionHost {
  int rank = 0, size = 1, max_tag = 0;
  std::shared_ptr<BufferPool> pool;
  std::shared_ptr<Failure> failure;
  Outbox* outbox = nullptr;
};

class Session {
 public:
  Session(const SessionSettings& settings, const SessionHost& host);

  // ---- training thread ----
  // Waits until no worker is `window` steps behind. After timeout_s it returns false
  // and the workers that are.
  bool begin(std::int64_t step, double timeout_s, std::vector<int>* behind);
  // Returns true when decoded. It also ends when others lack rows of the step, more
  // often than `seen` times.
  bool wait(std::int64_t step, double timeout_s, int seen = kAnyNeeds);
  // Returns true when wait() would end.
  bool ready(std::int64_t step, int seen) const;
  // Says that a thread waits, or does not any more, without wait().
  void awaits(bool begins);
  std::int64_t posted() const { return posted_.load(); }  // the last step with a row
  void note_posted(std::int64_t step) { posted_.store(step); }
  int needs(std::int64_t step) const;  // how often others have lacked rows of it
  bool done(std::int64_t step) const { return done_through_.load() >= step; }
  // Returns true when the row has arrived here in every bucket, or is implied.
  bool has(std::int64_t step, int row) const;
  // Returns true when it has arrived in some bucket: its worker is in its last
  // backward.
  bool begun(std::int64_t step, int row) const;
  std::vector<int> missing(std::int64_t step) const;  // owners of missing slices
  BufferRef take(std::int64_t step);  // returns the decoded sum and closes the step
  std::vector<Arrival> drain_arrivals();
  Counters counters() const;
  // Returns true when half of the batch has arrived in every slice of this owner: a
  // worker that is not done then is late. In an exact session it is always false.
  bool past_half(std::int64_t step) const;
  std::vector<Settled> drain_settled();
  bool approximate() const { return approximate_ != nullptr; }
  bool long_addresses() const { return codec_.is_long(); }
  int rows() const { return plan_->rows(); }  // numbers of rows are below
  const Layout& layout() const { return layout_; }
  std::size_t payload_bytes() const { return layout_.count() * bytes_of(dtype_); }
  Memory memory() const { return memory_; }

  // ---- engine's thread ----
  void tell_progress(std::int64_t step);  // the training thread begins `step`
  // Sends one bucket of a row, or all of them. A pass may still write the other buckets
  // of `data`; the sends read those that were posted.
  void post(std::int64_t step, int row, int bucket, const BufferRef& data);
  Fields fields(Address address) const { return codec_.decode(address, near_.load()); }
  // Returns where an announced message goes; `keep` owns the place. Throws where the
  // message cannot be one of this session, whatever its sender believes.
  char* place(const Fields& f, int source, std::size_t bytes, BufferRef* keep);
  void received(const Fields& f, int source, const BufferRef& keep, std::size_t bytes);
  bool deputises() const { return deputies_ != nullptr; }
  const std::string& needs_all() const { return needs_all_; }
  // A worker is out for good: nothing more comes from it, and nobody waits for it.
  void lose(int worker);
  // Stands in for owners that are silent; returns true when it did something.
  bool deputise();
  void wake();
  bool open_work() const;  // something has arrived here and is not finished yet
  bool awaited() const;    // the training thread waits
  // Settles what is due, or does postponed work; returns true when it did either.
  bool tick();
  bool summing() const { return !sums_.empty(); }  // a device sums for this session
  bool poll_sums() { return sums_.poll(); }        // returns true when a sum is done
  // Lets the device sum own slices once it has shown that it can: always, or from the
  // size on from which it is faster than the processor. Where it refuses and need not
  // sum, returns the reason. Throws as DeviceSums::check does.
  std::string use_device_sums(bool always);
  // Returns the states by bucket, empty where this worker owns no slice.
  std::vector<std::vector<double>> decoder_states() const;
  void restore_decoders(const std::vector<double>& state);

 private:
  struct Bucket {
    std::unique_ptr<Cover> cover;
    std::vector<const void*> rows;                // this worker's slice, by row
    std::vector<std::pair<int, BufferRef>> keep;  // with the row that it keeps
    bool decoded = false;
    double half_s = 0.0;        // when half of the batch was here; 0: not yet
    bool tried = false;         // no arrival since the last attempt to settle
    bool hopeless = false;      // all that is not here was refused
    std::vector<char> refused;  // by unit; empty: none
  };
  struct Step {
    std::vector<Bucket> buckets;
    BufferRef result;
    std::vector<int> slices_missing;  // by owner
    int missing = 0;
    // With deputies, by slice_index(): the slice is here; it is being received into the
    // result.
    std::vector<char> in, coming;
  };

  // Makes the step unless it is there or closed already; without the lock.
  void open(std::int64_t step);
  Step make_step() const;
  Step* find(std::int64_t step);  // null when it is closed; under mutex_
  // Returns the memory of the step's sum, null when the step is closed; without the
  // lock.
  BufferRef result_of(std::int64_t step);
  void check(const Fields& f, int source, std::size_t bytes) const;
  Wire wire(int bucket) const { return bucket < narrow_buckets_ ? wire_ : Wire::kAsIs; }
  std::size_t bytes_on_wire(int bucket) const {
    return wire(bucket) == Wire::kAsIs ? bytes_of(dtype_) : kPackedBytes;
  }
  char* result_at(const BufferRef& result, const Slice& slice) const {
    return result->data() + slice.offset * bytes_of(dtype_);
  }
  // Returns memory for rows that come and sums that go. Where the device has no more,
  // it is pinned memory, which the device reaches, too.
  BufferRef slice_memory(std::size_t bytes);
  // Return one bucket of a row as it travels, and a slice that has travelled.
  BufferRef packed(int bucket, const BufferRef& data);
  BufferRef unpacked(const Slice& slice, Wire wire, const BufferRef& data);
  void arrive(std::int64_t step, int bucket, int row, int source, const void* data,
              const BufferRef& keep);
  void decode(std::int64_t step, int bucket);
  bool decode_on_device(std::int64_t step, int bucket);  // false: it cannot
  void send_result(std::int64_t step, int bucket, const BufferRef& sent);
  void close_bucket(std::int64_t step, int bucket, double decode_s);
  // Sends the slice that `fill` writes, and closes the bucket.
  using Fill = std::function<void(void* out, void* out2)>;
  void conclude(std::int64_t step, int bucket, bool exact, const Fill& fill);
  void late(std::int64_t step, int bucket, int row, const void* data,
            const BufferRef& keep);
  bool refuse(std::int64_t step, int bucket, int row, int source, const void* data);
  // `arrived` says that it is called after an arrival, not by the clock.
  bool settle_if_due(std::int64_t step, int bucket, bool arrived);
  bool refused(const Bucket& b, int row) const;
  void collect_settled(Estimator* estimator);
  Bucket* undecoded(std::int64_t step, int bucket);  // under mutex_
  void slice_in(std::int64_t step, int bucket, int owner);
  void send(int dest, Address address, const void* data, std::size_t bytes,
            const BufferRef& keep);
  // ---- deputies: when (session_deputies.cpp) ----
  std::size_t slice_index(int bucket, int owner) const {
    return static_cast<std::size_t>(bucket) * size_ + owner;
  }
  bool stand_in(std::int64_t step, int owner, const std::vector<int>& silent,
                double now);
  bool ask_for_rows(std::int64_t step, double now);
  void lacking(std::int64_t step, double now, std::set<int>* rows);
  void alive(int worker, std::int64_t step);
  void suspect(int worker, std::int64_t step);
  void learn_usual(double took_s);
  // ---- what is sent and heard (session_notes.cpp) ----
  void keep_row(std::int64_t step, int bucket, int row, const BufferRef& data);
  void forget_kept();
  void ask(std::int64_t step, int owner);
  void move_row(std::int64_t step, int owner, int deputy, const KeptRows::Part& kept);
  void arrive_moved(const SliceKey& key, int row, const void* data,
                    const BufferRef& keep);
  void send_note(int dest, std::int64_t step, const NoteHeader& header,
                 const void* data, std::size_t bytes);
  void hear_note(std::int64_t step, int source, const BufferRef& keep,
                 std::size_t bytes);
  void check_note(const NoteHeader& header, int source, std::size_t bytes) const;
  void need(std::int64_t step, const std::vector<std::int32_t>& rows);
  int times_needed(std::int64_t step) const;           // under mutex_
  bool needs_again(std::int64_t step, int row) const;  // under mutex_
  void sent_again(std::int64_t step, int row);         // under mutex_
  // ---- slices that come twice (session_adopt.cpp) ----
  char* place_result(const Fields& f, int source, std::size_t bytes, BufferRef* keep);
  void result_came(const SliceKey& key, const BufferRef& keep);
  // Uses a slice that lies elsewhere, unless it is here already. Returns whether.
  bool adopt(const SliceKey& key, const char* data);
  void set_aside(Step* step);
  void applied(int worker, std::int64_t step);
  void note(std::int64_t step, int bucket, int source, int row, ArrivalKind kind);

  const int rank_, size_, window_;
  const DType dtype_;
  const Layout layout_;
  const AddressCodec codec_;
  const std::shared_ptr<const Plan> plan_;
  const Wire wire_;
  const int narrow_buckets_;
  const std::shared_ptr<BufferPool> pool_;
  const std::shared_ptr<Failure> failure_;
  Outbox* const outbox_;
  const Memory memory_;
  DeviceSums sums_;  // of the engine's thread
  // The device sums slices of so many bytes and more.
  std::size_t device_sums_from_ = std::numeric_limits<std::size_t>::max();

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  int waiting_ = 0;  // threads that wait for it
  std::map<std::int64_t, Step> steps_;
  std::int64_t floor_;                 // steps below are closed
  std::vector<std::int64_t> applied_;  // by worker: all steps up to here are applied
  std::deque<Arrival> arrivals_;
  Counters counters_;
  std::atomic<std::int64_t> done_through_;
  std::atomic<std::int64_t> near_;  // the training thread's step
  std::atomic<std::int64_t> posted_;
  std::vector<std::int64_t> told_;  // engine's thread: what each worker knows of me
  const std::shared_ptr<const ApproximateSettings> approximate_;
  std::vector<std::unique_ptr<Estimator>> estimators_;  // by bucket; engine's thread
  std::vector<Settled> settled_;                        // under mutex_
  double done_s_;  // when the last step was decoded; engine's thread
  int last_own_;   // the last bucket with a slice of mine: with it a row is noted
  std::unique_ptr<Deputies> deputies_;  // null: there are none
  const std::string needs_all_;
  std::atomic<std::int64_t> messages_{0};
};

}  // namespace codedgrad
