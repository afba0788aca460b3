// The exchange of one model: open steps, arrivals, decoded slices, the window.
//
// Two threads meet here. The training thread calls begin, wait, take, has, done; the
// engine's thread calls the rest. Steps are changed by the engine's thread under
// `mutex_` (and erased by take once nothing refers to them), so that thread may read
// what it alone writes without the lock; decoding, the only long work, runs unlocked.
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
#include <string>
#include <vector>

#include "engine/buffer_pool.h"
#include "engine/cover.h"
#include "engine/device_sums.h"
#include "engine/estimator.h"
#include "engine/layout.h"
#include "engine/packing.h"

namespace codedgrad {

// What a session asks of the engine: send, and keep `keep` until it is sent.
class Outbox {
 public:
  virtual ~Outbox() = default;
  virtual void send(int dest, int tag, const void* data, std::size_t bytes,
                    BufferRef keep) = 0;
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
  // Of rows and results. kDevice needs a device that sums, and a tree plan, exact and
  // as is; then nothing of the payload is ever in the processor's memory.
  Memory memory = Memory::kHost;
  DeviceCalls device;  // unless kHost
};

constexpr int kAllBuckets = -1;

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
  std::int64_t rows_refused = 0;  // NaN or Inf; approximate only
  std::int64_t slices_decoded = 0, slices_settled = 0, bytes_sent = 0;
  std::int64_t slices_on_device = 0;  // of those decoded
  // All sums, on a device with their time in its queue. Of slices that were settled:
  double decode_s = 0.0;
  double choose_s = 0.0;  // what the decoder took, the sum aside
  double learn_s = 0.0;   // labels and memory, off the critical path
};

class Session {
 public:
  Session(const SessionSettings& config, int rank, int size, int max_tag,
          std::shared_ptr<BufferPool> pool, std::shared_ptr<Failure> failure,
          Outbox* outbox);

  // ---- training thread ----
  // Waits until no worker is `window` steps behind; else, after timeout_s, false and
  // the workers that are.
  bool begin(std::int64_t step, double timeout_s, std::vector<int>* behind);
  bool wait(std::int64_t step, double timeout_s);  // true when decoded
  bool done(std::int64_t step) const { return done_through_.load() >= step; }
  bool has(std::int64_t step, int row) const;  // arrived in every bucket, seen here
  // In some bucket, seen here: what computes it is in its last backward.
  bool begun(std::int64_t step, int row) const;
  std::vector<int> missing(std::int64_t step) const;  // owners not heard of
  BufferRef take(std::int64_t step);  // the decoded sum; closes the step
  std::vector<Arrival> drain_arrivals();
  Counters counters() const;
  // True when half of the batch has arrived in every own slice: a worker that is not
  // done then is late. Always false in an exact session.
  bool past_half(std::int64_t step) const;
  std::vector<Settled> drain_settled();
  bool approximate() const { return approximate_ != nullptr; }
  const Layout& layout() const { return layout_; }
  std::size_t payload_bytes() const { return layout_.count() * bytes_of(dtype_); }
  Memory memory() const { return memory_; }

  // ---- engine's thread ----
  void tell_progress(std::int64_t step);  // the training thread begins `step`
  // One bucket of a row, or all of them. While a pass still writes the other buckets
  // of `data`, those of its buckets that were posted are read by the sends.
  void post(std::int64_t step, int row, int bucket, const BufferRef& data);
  TagFields fields(int tag) const { return codec_.decode(tag, near_.load()); }
  // Where an announced message goes; `keep` owns the place.
  char* place(const TagFields& f, int source, std::size_t bytes, BufferRef* keep);
  void received(const TagFields& f, int source, const BufferRef& keep);
  void wake();
  bool open_work() const;  // something has arrived here and is not finished
  bool awaited() const;    // the training thread waits
  bool tick();             // settles what is due; else postponed work. True: did some
  bool summing() const { return !sums_.empty(); }  // a device sums for us
  bool poll_sums() { return sums_.poll(); }        // true when a sum is done
  // Lets the device sum own slices from the size on from which it is faster than the
  // processor, or always, once it has shown that it can. Returns why it does not,
  // where it refuses and need not. Throws as DeviceSums::check.
  std::string use_device_sums(bool always);
  // By bucket, empty where there is no slice of mine.
  std::vector<std::vector<double>> decoder_states() const;
  void restore_decoders(const std::vector<double>& state);

 private:
  struct Bucket {
    std::unique_ptr<Cover> cover;
    std::vector<const void*> rows;                // my slice, by row
    std::vector<std::pair<int, BufferRef>> keep;  // with the row it keeps
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
  };

  Step* open(std::int64_t step);  // null when it is closed already; under mutex_
  Wire wire(int bucket) const { return bucket < narrow_buckets_ ? wire_ : Wire::kAsIs; }
  std::size_t bytes_on_wire(int bucket) const {
    return wire(bucket) == Wire::kAsIs ? bytes_of(dtype_) : kPackedBytes;
  }
  char* result_at(Step* step, const Slice& slice);
  // For rows that come and sums that go; where the device has no more, pinned memory,
  // which it reaches, too.
  BufferRef slice_memory(std::size_t bytes);
  // One bucket of a row, for the wire; a slice from the wire.
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
  // `arrived`: after an arrival, not by the clock.
  bool settle_if_due(std::int64_t step, int bucket, bool arrived);
  bool refused(const Bucket& b, int row) const;
  void collect_settled(Estimator* estimator);
  Bucket* undecoded(std::int64_t step, int bucket);  // under mutex_
  void slice_in(std::int64_t step, int owner);
  void applied(int worker, std::int64_t step);
  void note(std::int64_t step, int bucket, int source, int row, ArrivalKind kind);

  const int id_, rank_, size_, window_;
  const DType dtype_;
  const Layout layout_;
  const TagCodec codec_;
  const std::shared_ptr<const Plan> plan_;
  const Wire wire_;
  const int narrow_buckets_;
  const std::shared_ptr<BufferPool> pool_;
  const std::shared_ptr<Failure> failure_;
  Outbox* const outbox_;
  const Memory memory_;
  DeviceSums sums_;  // engine's thread
  // Slices of so many bytes and more are summed by the device.
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
  std::vector<std::int64_t> told_;  // engine's thread: what each worker knows of me
  const std::shared_ptr<const ApproximateSettings> approximate_;
  std::vector<std::unique_ptr<Estimator>> estimators_;  // by bucket; engine's thread
  std::vector<Settled> settled_;                        // under mutex_
  double done_s_;  // when the last step was decoded; engine's thread
  int last_own_;   // the last bucket with a slice of mine: with it a row is noted
};

}  // namespace codedgrad
