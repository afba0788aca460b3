// Many small steps of several engines in one process, with random delays, duplicate
// rows and workers that lag; built with -fsanitize=thread by test_stress.py.
//
//   stress WORKERS STEPS MAX_DELAY_US SEED [MODE]
//
// Every sum is checked: gradients are small integers, so floats add exactly. With
// `settle` owners do not wait for the late, whose rows come after all or never, some of
// them NaN: then all workers must have the same finite bits. With `pinned` a device
// sums rows in pinned memory, with `device` rows in its own. With `headers` no address
// fits a tag. With `deputies` a worker stands still now and then, its engine too, and
// the others decode its slices.
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <mutex>
#include <random>
#include <string>
#include <thread>

#include "engine/engine.h"
#include "late_device.h"
#include "transport/local_transport.h"

namespace {

using namespace codedgrad;

constexpr std::size_t kCount = 157;  // no multiple of the slices' grain
const std::vector<std::size_t> kStarts = {0, 64, kCount};
std::atomic<std::int64_t> deputised{0};
constexpr int kMicro = 2;  // rows: a shard's own, or its micro-batches

// Leaves 0 .. kMicro * n - 1, then shard nodes, then a comb over the shards.
struct Tree {
  std::vector<int> left, right, parent, start, stop;
  int root;
};

Tree tree_of(int n) {
  std::vector<int> left(kMicro * n, -1), right(kMicro * n, -1);
  for (int shard = 0; shard < n; ++shard) {
    left.push_back(kMicro * shard);
    right.push_back(kMicro * shard + 1);
  }
  int root = kMicro * n;
  for (int shard = 1; shard < n; ++shard) {
    left.push_back(root);
    right.push_back(kMicro * n + shard);
    root = static_cast<int>(left.size()) - 1;
  }
  std::vector<int> parent(left.size(), -1);
  for (std::size_t i = 0; i < left.size(); ++i) {
    if (left[i] >= 0) parent[left[i]] = parent[right[i]] = static_cast<int>(i);
  }
  std::vector<int> start(left.size()), stop(left.size());
  for (int i = 0; i < static_cast<int>(left.size()); ++i) {
    start[i] = left[i] < 0 ? i : start[left[i]];
    stop[i] = left[i] < 0 ? i + 1 : stop[right[i]];
  }
  return {left, right, parent, start, stop, root};
}

std::shared_ptr<const ApproximateSettings> settling(int n, bool compensate) {
  const Tree tree = tree_of(n);
  auto config = std::make_shared<ApproximateSettings>();
  config->max_error = 1e9;
  config->patience = 0.0;
  config->compensate = compensate;
  config->left = tree.left, config->right = tree.right, config->parent = tree.parent;
  config->start = tree.start, config->stop = tree.stop;
  for (int shard = 0; shard < n; ++shard) {
    config->units.push_back(kMicro * n + shard);
    config->weights.push_back(1.0 / n);
  }
  config->tensors = {30, 70, kCount - 20};  // the rest: flags, the loss
  auto network = std::make_shared<decoder::Network>();
  network->w1.assign(decoder::kHidden * decoder::kContext, 0.1);
  network->b1.assign(decoder::kHidden, 0.0);
  network->w2.assign(decoder::kOutputs * decoder::kHidden, 0.05);
  network->b2.assign(decoder::kOutputs, 0.0);
  config->network = network;
  return config;
}

// What the first worker to take a step has; the others must have the same.
class Results {
 public:
  bool same(std::int64_t step, const float* got) {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto [found, fresh] = steps_.try_emplace(step, got, got + kCount);
    (void)fresh;
    steps_.erase(steps_.begin(), steps_.lower_bound(step - 64));
    return std::memcmp(found->second.data(), got, kCount * sizeof(float)) == 0;
  }

 private:
  std::mutex mutex_;
  std::map<std::int64_t, std::vector<float>> steps_;
};

float value(std::int64_t step, int part, std::size_t i) {
  return static_cast<float>((step * 7 + part * 3 + i) % 64);
}

BufferRef filled(Engine* engine, const std::shared_ptr<Session>& session,
                 std::int64_t step, int first, int last) {
  BufferRef data = engine->acquire(session->payload_bytes(), session->memory());
  float* out = reinterpret_cast<float*>(data->data());
  for (std::size_t i = 0; i < kCount; ++i) {
    out[i] = 0;
    for (int part = first; part < last; ++part) out[i] += value(step, part, i);
  }
  return data;
}

void pause(std::mt19937_64* random, int max_us) {
  const auto us = (*random)() % (max_us + 1);
  std::this_thread::sleep_for(std::chrono::microseconds(us));
}

// A row bucket by bucket: the second is still written while the first is sent, and
// may be left out once the step is decoded, as when a backward is abandoned.
void post_in_pieces(Engine* engine, const std::shared_ptr<Session>& session,
                    std::int64_t step, int row, const BufferRef& data,
                    std::mt19937_64* random, int max_us) {
  float* rest = reinterpret_cast<float*>(data->data()) + kStarts[1];
  const std::vector<float> values(rest, rest + kCount - kStarts[1]);
  engine->post(session, step, row, 0, data);
  std::fill(rest, rest + values.size(), -1.0f);
  pause(random, max_us);
  if (session->done(step)) return;
  std::copy(values.begin(), values.end(), rest);
  engine->post(session, step, row, 1, data);
}

[[noreturn]] void die(const char* what, int rank, std::int64_t step) {
  std::fprintf(stderr, "worker %d, step %lld: %s\n", rank, static_cast<long long>(step),
               what);
  std::exit(1);
}

struct Mode {
  bool settles = false, compensates = false, deputies = false;
  Memory memory = Memory::kHost;
  Results* results = nullptr;
};

void check(const Mode& mode, const float* got, int n, int rank, std::int64_t step) {
  if (mode.settles && !mode.results->same(step, got)) die("other bits", rank, step);
  for (std::size_t i = 0; i < kCount; ++i) {
    float want = 0;
    for (int part = 0; part < kMicro * n; ++part) want += value(step, part, i);
    if (mode.settles ? !std::isfinite(got[i]) : got[i] != want) {
      die("wrong sum", rank, step);
    }
  }
}

// Back-ups of the neighbour's rows, one in two of those that are missing.
void help(Engine* engine, const std::shared_ptr<Session>& session, std::int64_t step,
          std::mt19937_64* random) {
  const int neighbour = (engine->rank() + 1) % engine->size();
  for (int micro = 0; micro < kMicro && !session->done(step); ++micro) {
    const int part = kMicro * neighbour + micro;
    if ((*random)() % 2 == 0 || session->has(step, part)) continue;
    engine->post(session, step, part, kAllBuckets,
                 filled(engine, session, step, part, part + 1));
  }
}

// As a process that a signal has stopped: the training thread waits for its engine.
void stand_still(Engine* engine, std::mt19937_64* random) {
  engine->call([random] { pause(random, 40000); });
}

void work(Engine* engine, int steps, int max_delay_us, std::uint64_t seed, Mode mode) {
  const int n = engine->size(), rank = engine->rank();
  std::mt19937_64 random(seed * 1000 + rank);
  SessionSettings config;
  config.bucket_starts = kStarts;
  config.window = 4;
  if (mode.deputies) {
    config.deputy_s = 0.002;
  } else if (mode.memory == Memory::kHost) {
    config.wire = Wire::kFloat16;  // holds all sums here; the second bucket is wide
    config.narrow_buckets = 1;
  } else {
    engine->bind_device(late_device::calls());
    config.memory = mode.memory;
  }
  const Tree tree = tree_of(n);
  config.plan = make_tree_plan(tree.left, tree.right, tree.parent, tree.root);
  if (mode.settles) config.approximate = settling(n, mode.compensates);
  auto session = engine->open_session(config);
  if (mode.memory == Memory::kPinned) {
    engine->call([&] { session->use_device_sums(true); });
    if (late_device::state().sums == 0) die("no trial", rank, 0);
  }
  engine->publish("ready");
  std::vector<int> who;
  while (!engine->gather(1.0, &who)) {
  }
  for (std::int64_t step = 0; step < steps; ++step) {
    if (!engine->begin(session, step, 30.0, &who)) die("no room", rank, step);
    if (random() % 8 == 0) pause(&random, 4 * max_delay_us);  // a straggler
    if (mode.deputies && random() % 64 == 0) stand_still(engine, &random);
    if (!session->done(step) || (mode.settles && random() % 2 == 0)) {
      const int row = kMicro * n + rank;
      const BufferRef data =
          filled(engine, session, step, kMicro * rank, kMicro * (rank + 1));
      if (mode.settles && rank == 0 && random() % 16 == 0) {
        reinterpret_cast<float*>(data->data())[random() % kCount] =
            std::numeric_limits<float>::quiet_NaN();
      }
      if (random() % 2 == 0) {
        if (random() % 2 == 0) {
          engine->post(session, step, row, kAllBuckets, data);
        } else {
          engine->post_and_wait(session, step, row, kAllBuckets, data);
        }
      } else {
        post_in_pieces(engine, session, step, row, data, &random, 2 * max_delay_us);
      }
    }
    help(engine, session, step, &random);
    for (int i = 0; mode.deputies && i < 15000 && !engine->wait(session, step, 0.002);
         ++i) {
      help(engine, session, step, &random);  // rows may be needed again
    }
    if (!engine->wait(session, step, 30.0)) die("not decoded", rank, step);
    const BufferRef result = session->take(step);
    check(mode, reinterpret_cast<const float*>(result->data()), n, rank, step);
    if (step % 64 == 0) session->drain_arrivals();
    if (step % 64 == 0 && mode.settles) {
      session->drain_settled();
      std::vector<std::vector<double>> states;
      if (!engine->call([&] { states = session->decoder_states(); })) {
        die("no states", rank, step);
      }
    }
  }
  const Counters counters = session->counters();
  if (mode.memory != Memory::kHost &&
      counters.slices_on_device != counters.slices_decoded) {
    die("the processor has summed", rank, steps);
  }
  deputised += counters.slices_deputised;
  if (!engine->stop(30.0)) die("did not end", rank, steps);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5 && argc != 6) return 2;
  const int workers = std::atoi(argv[1]), steps = std::atoi(argv[2]);
  const int delay = std::atoi(argv[3]);
  const auto seed = std::strtoull(argv[4], nullptr, 10);
  const std::string how = argc == 6 ? argv[5] : "";
  const int max_tag = how == "headers" ? 255 : (1 << 30) - 1;
  auto hub = std::make_shared<LocalHub>(workers, delay, seed, max_tag);
  std::vector<std::unique_ptr<Engine>> engines;
  for (int rank = 0; rank < workers; ++rank) {
    engines.push_back(std::make_unique<Engine>(make_local_transport(hub, rank)));
  }
  std::vector<std::thread> threads;
  Results results;
  Mode mode;
  mode.settles = how == "settle" || how == "compensate";
  mode.deputies = how == "deputies";
  mode.compensates = how == "compensate";
  if (how == "pinned") mode.memory = Memory::kPinned;
  if (how == "device") mode.memory = Memory::kDevice;
  mode.results = &results;
  for (auto& engine : engines)
    threads.emplace_back(work, engine.get(), steps, delay, seed, mode);
  for (auto& thread : threads) thread.join();
  if (mode.deputies && deputised == 0) die("no deputy has acted", 0, steps);
  std::printf("ok\n");
}
