// The Python module codedgrad.job._engine. Every call that may wait releases the GIL.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "engine/engine.h"
#include "transport/local_transport.h"
#include "transport/mpi_transport.h"

namespace codedgrad {
void define_decoder(pybind11::module_& m);  // bindings_decoder.cpp
}
namespace py = pybind11;
using namespace pybind11::literals;

namespace codedgrad {
namespace {

// The job has failed, here or elsewhere; what() is the same on every worker.
class EngineFailure : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

using Release = py::gil_scoped_release;
template <typename T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

template <typename T>
std::vector<T> to_vector(const Array<T>& array) {
  return std::vector<T>(array.data(), array.data() + array.size());
}

// What Python holds: one model's exchange and the engine that drives it.
class Exchange {
 public:
  Exchange(std::shared_ptr<Engine> engine, SessionConfig config)
      : engine_(std::move(engine)),
        session_(engine_->open_session(std::move(config))) {}

  void close() { engine_->close_session(session_); }

  std::pair<bool, std::vector<int>> begin(std::int64_t step, double timeout_s) {
    std::vector<int> behind;
    const bool ok = engine_->begin(session_, step, timeout_s, &behind);
    check();
    return {ok, behind};
  }
  bool wait(std::int64_t step, double timeout_s) {
    const bool ok = session_->wait(step, timeout_s);
    if (!ok) check();
    return ok;
  }
  // Cheap enough for every module boundary of a pass.
  bool done(std::int64_t step) const {
    return session_->done(step) || engine_->failed();
  }
  bool has(std::int64_t step, int row) const { return session_->has(step, row); }
  bool begun(std::int64_t step, int row) const { return session_->begun(step, row); }
  std::vector<int> missing(std::int64_t step) const { return session_->missing(step); }
  BufferRef take(std::int64_t step) { return session_->take(step); }
  BufferRef acquire() {
    return engine_->acquire(session_->payload_bytes(), session_->memory());
  }
  std::string use_device_sums(bool always) {
    std::string why;
    on_engine([&] { why = session_->use_device_sums(always); });
    return why;
  }
  void post(std::int64_t step, int row, BufferRef data, int bucket,
            std::uintptr_t event) {
    check();
    engine_->post(session_, step, row, bucket, std::move(data),
                  reinterpret_cast<void*>(event));
  }
  bool past_half(std::int64_t step) const { return session_->past_half(step); }
  std::vector<Settled> drain_settled() { return session_->drain_settled(); }
  std::vector<std::vector<double>> decoder_states() {
    std::vector<std::vector<double>> out;
    engine_->call([&] { out = session_->decoder_states(); });
    check();
    return out;
  }
  void restore_decoders(const std::vector<double>& state) {
    on_engine([&] { session_->restore_decoders(state); });
  }
  std::vector<Arrival> drain_arrivals() { return session_->drain_arrivals(); }
  Counters counters() const { return session_->counters(); }

 private:
  // What it throws is thrown here.
  void on_engine(const std::function<void()>& work) {
    std::exception_ptr error;
    engine_->call([&] {
      try {
        work();
      } catch (...) {
        error = std::current_exception();
      }
    });
    if (error) std::rethrow_exception(error);
    check();
  }
  void check() const {
    if (engine_->failed()) throw EngineFailure(engine_->failure());
  }
  std::shared_ptr<Engine> engine_;
  std::shared_ptr<Session> session_;
};

Wire wire_of(const std::string& name) {
  if (name == "float32") return Wire::kAsIs;
  if (name == "bfloat16") return Wire::kBFloat16;
  if (name == "float16") return Wire::kFloat16;
  throw py::value_error("wire must be float32, bfloat16 or float16, got " + name);
}

Memory memory_of(const std::string& name) {
  if (name == "host") return Memory::kHost;
  if (name == "pinned") return Memory::kPinned;
  if (name == "device") return Memory::kDevice;
  throw py::value_error("memory must be host, pinned or device, got " + name);
}

std::shared_ptr<Exchange> open_exchange(std::shared_ptr<Engine> engine, bool is_double,
                                        std::vector<std::size_t> bucket_starts,
                                        int window, std::int64_t first_step,
                                        std::shared_ptr<Plan> plan,
                                        const std::string& wire, int narrow_buckets,
                                        std::shared_ptr<ApproximateConfig> approximate,
                                        const std::string& memory) {
  SessionConfig config;
  config.memory = memory_of(memory);
  config.approximate = std::move(approximate);
  config.dtype = is_double ? DType::kFloat64 : DType::kFloat32;
  config.bucket_starts = std::move(bucket_starts);
  config.window = window;
  config.first_step = first_step;
  config.plan = std::move(plan);
  config.wire = wire_of(wire);
  config.narrow_buckets = narrow_buckets;
  return std::make_shared<Exchange>(std::move(engine), std::move(config));
}

// The functions as addresses, see engine/device.h.
int bind_device(Engine& engine, int device, std::uintptr_t set_device,
                std::uintptr_t pin, std::uintptr_t unpin, std::uintptr_t query,
                unsigned pin_flags, int not_ready, std::uintptr_t allocate,
                std::uintptr_t release, std::uintptr_t start_sum,
                std::uintptr_t sum_done, std::uintptr_t take_error) {
  DeviceCalls calls;
  calls.device = device;
  calls.not_ready = not_ready;
  calls.pin_flags = pin_flags;
  calls.set_device = reinterpret_cast<int (*)(int)>(set_device);
  calls.pin = reinterpret_cast<int (*)(void*, std::size_t, unsigned)>(pin);
  calls.unpin = reinterpret_cast<int (*)(void*)>(unpin);
  calls.query = reinterpret_cast<int (*)(void*)>(query);
  calls.allocate = reinterpret_cast<int (*)(void**, std::size_t)>(allocate);
  calls.release = reinterpret_cast<int (*)(void*)>(release);
  calls.start_sum = reinterpret_cast<int (*)(const ops::DeviceSum*, void**)>(start_sum);
  calls.sum_done = reinterpret_cast<int (*)(void*)>(sum_done);
  calls.take_error = reinterpret_cast<int (*)()>(take_error);
  return engine.bind_device(calls);
}

std::map<int, py::bytes> announced(const Engine& engine) {
  std::map<int, py::bytes> out;
  for (auto& [worker, blob] : engine.announced()) out.emplace(worker, blob);
  return out;
}

using Gathered = std::pair<std::optional<std::vector<py::bytes>>, std::vector<int>>;

Gathered gather(Engine& engine, double timeout_s) {
  std::vector<int> missing;
  std::optional<std::vector<std::string>> got;
  {
    Release release;
    got = engine.gather(timeout_s, &missing);
  }
  if (!got) {
    if (engine.failed()) throw EngineFailure(engine.failure());
    return {std::nullopt, missing};
  }
  return {std::vector<py::bytes>(got->begin(), got->end()), missing};
}

void define_engine(py::module_& m) {
  py::class_<LocalHub, std::shared_ptr<LocalHub>>(m, "LocalHub")
      .def(py::init<int, int, std::uint64_t>(), "size"_a, "max_delay_us"_a = 0,
           "seed"_a = 0);
  py::class_<EngineStats>(m, "EngineStats")
      .def_readonly("polls", &EngineStats::polls)
      .def_readonly("pool_bytes", &EngineStats::pool_bytes)
      .def_readonly("in_flight", &EngineStats::in_flight)
      .def_readonly("unpinned_bytes", &EngineStats::unpinned_bytes);
  py::class_<Engine, std::shared_ptr<Engine>>(m, "Engine")
      .def_static(
          "over_mpi",
          [](int comm) { return std::make_shared<Engine>(make_mpi_transport(comm)); },
          "fortran_comm"_a)
      .def_static(
          "over_local",
          [](std::shared_ptr<LocalHub> hub, int rank) {
            return std::make_shared<Engine>(make_local_transport(hub, rank));
          },
          "hub"_a, "rank"_a)
      .def_property_readonly("rank", &Engine::rank)
      .def_property_readonly("size", &Engine::size)
      .def(
          "publish", [](Engine& e, const py::bytes& b) { e.publish(b); }, "data"_a)
      .def("gather", &gather, "timeout_s"_a)
      .def("fail", &Engine::fail, "text"_a)
      .def_property_readonly("failed", &Engine::failed)
      .def_property_readonly("failure", &Engine::failure)
      .def_property_readonly("departed", &Engine::departed)
      .def("announced", &announced)
      .def("bind_device", &bind_device, "device"_a, "set_device"_a, "pin"_a, "unpin"_a,
           "query"_a, "pin_flags"_a, "not_ready"_a, "allocate"_a, "release"_a,
           "start_sum"_a, "sum_done"_a, "take_error"_a, py::call_guard<Release>())
      .def("stop", &Engine::stop, "timeout_s"_a, py::call_guard<Release>())
      .def("stats", &Engine::stats);
}

void define_exchange(py::module_& m) {
  py::class_<Buffer, BufferRef>(m, "Buffer", py::buffer_protocol())
      .def_buffer([](Buffer& b) {
        if (b.memory() == Memory::kDevice) {
          throw py::type_error("a device's memory cannot be read as a buffer");
        }
        return py::buffer_info(b.data(), 1, "B", static_cast<py::ssize_t>(b.bytes()));
      })
      .def_property_readonly(
          "address",
          [](const Buffer& b) { return reinterpret_cast<std::uintptr_t>(b.data()); })
      .def_property_readonly("bytes", &Buffer::bytes);
  py::class_<Plan, std::shared_ptr<Plan>>(m, "Plan")
      .def_property_readonly("rows", &Plan::rows)
      .def_property_readonly("most_inputs", &Plan::most_inputs);
  m.def(
      "tree_plan",
      [](const Array<int>& left, const Array<int>& right, const Array<int>& parent,
         int root, const std::vector<int>& rows) {
        return std::const_pointer_cast<Plan>(make_tree_plan(
            to_vector(left), to_vector(right), to_vector(parent), root, rows));
      },
      "left"_a, "right"_a, "parent"_a, "root"_a, "rows"_a = std::vector<int>());
  m.def(
      "linear_plan",
      [](const Array<double>& matrix, int least) {
        if (matrix.ndim() != 2) throw py::value_error("the matrix must be 2-D");
        return std::const_pointer_cast<Plan>(
            make_linear_plan(to_vector(matrix), static_cast<int>(matrix.shape(0)),
                             static_cast<int>(matrix.shape(1)), least));
      },
      "matrix"_a, "least"_a);
  py::class_<Counters>(m, "Counters")
      .def_readonly("rows_useful", &Counters::rows_useful)
      .def_readonly("rows_redundant", &Counters::rows_redundant)
      .def_readonly("rows_late", &Counters::rows_late)
      .def_readonly("slices_decoded", &Counters::slices_decoded)
      .def_readonly("slices_on_device", &Counters::slices_on_device)
      .def_readonly("bytes_sent", &Counters::bytes_sent)
      .def_readonly("rows_refused", &Counters::rows_refused)
      .def_readonly("slices_settled", &Counters::slices_settled)
      .def_readonly("choose_s", &Counters::choose_s)
      .def_readonly("learn_s", &Counters::learn_s)
      .def_readonly("decode_s", &Counters::decode_s);
  py::class_<Arrival>(m, "Arrival")
      .def_readonly("step", &Arrival::step)
      .def_readonly("source", &Arrival::source)
      .def_readonly("row", &Arrival::row)
      .def_property_readonly("kind",
                             [](const Arrival& a) { return static_cast<int>(a.kind); })
      .def_readonly("time_s", &Arrival::time_s);
  py::class_<Exchange, std::shared_ptr<Exchange>>(m, "Exchange")
      .def(py::init(&open_exchange), "engine"_a, "is_double"_a, "bucket_starts"_a,
           "window"_a, "first_step"_a, "plan"_a, "wire"_a = "float32",
           "narrow_buckets"_a = 0, "approximate"_a = nullptr, "memory"_a = "host")
      .def("close", &Exchange::close, py::call_guard<Release>())
      .def("use_device_sums", &Exchange::use_device_sums, "always"_a,
           py::call_guard<Release>())
      .def("begin", &Exchange::begin, "step"_a, "timeout_s"_a,
           py::call_guard<Release>())
      .def("wait", &Exchange::wait, "step"_a, "timeout_s"_a, py::call_guard<Release>())
      .def("done", &Exchange::done, "step"_a)
      .def("has", &Exchange::has, "step"_a, "row"_a, py::call_guard<Release>())
      .def("begun", &Exchange::begun, "step"_a, "row"_a, py::call_guard<Release>())
      .def("missing", &Exchange::missing, "step"_a, py::call_guard<Release>())
      .def("take", &Exchange::take, "step"_a, py::call_guard<Release>())
      .def("acquire", &Exchange::acquire, py::call_guard<Release>())
      .def("post", &Exchange::post, "step"_a, "row"_a, "data"_a,
           "bucket"_a = kAllBuckets, "event"_a = 0, py::call_guard<Release>())
      .def("drain_arrivals", &Exchange::drain_arrivals)
      .def("past_half", &Exchange::past_half, "step"_a)
      .def("drain_settled", &Exchange::drain_settled)
      .def("decoder_states", &Exchange::decoder_states, py::call_guard<Release>())
      .def("restore_decoders", &Exchange::restore_decoders, "state"_a,
           py::call_guard<Release>())
      .def("counters", &Exchange::counters);
}

}  // namespace
}  // namespace codedgrad

PYBIND11_MODULE(_engine, m) {
  m.doc() = "The exchange engine of codedgrad (C++); see csrc/engine.";
  py::register_exception<codedgrad::EngineFailure>(m, "EngineFailure");
  m.def("mpi_build_vendor", &codedgrad::mpi_build_vendor);
  m.def("mpi_build_version", &codedgrad::mpi_build_version);
  m.def("mpi_library_version", &codedgrad::mpi_library_version);
  m.def("mpi_reads_cuda_memory", &codedgrad::mpi_reads_cuda_memory);
  m.attr("DEVICE_SUM_BYTES") = sizeof(codedgrad::ops::DeviceSum);
  m.attr("MOST_DEVICE_INPUTS") = codedgrad::ops::kMostDeviceInputs;
  codedgrad::define_decoder(m);
  codedgrad::define_engine(m);
  codedgrad::define_exchange(m);
}
