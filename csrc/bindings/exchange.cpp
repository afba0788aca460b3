// One model's exchange in Python: the settings of a session, its plan, rows and steps.
#include <cstdint>
#include <functional>
#include <string>
#include <utility>

#include "bindings/bindings.h"

using namespace pybind11::literals;

namespace codedgrad {
namespace {

// The object that Python holds: one model's session and the engine that drives it.
class Exchange {
 public:
  Exchange(std::shared_ptr<Engine> engine, SessionSettings settings)
      : engine_(std::move(engine)),
        session_(engine_->open_session(std::move(settings))) {}
  // Python's garbage collector comes here when nobody has called close().
  ~Exchange() {
    if (!closed_) engine_->drop_session(session_);
  }
  Exchange(const Exchange&) = delete;
  Exchange& operator=(const Exchange&) = delete;

  void close() {
    closed_ = true;
    engine_->close_session(session_);
  }

  bool long_addresses() const { return session_->long_addresses(); }
  std::pair<bool, std::vector<int>> begin(std::int64_t step, double timeout_s) {
    std::vector<int> behind;
    const bool ok = engine_->begin(session_, step, timeout_s, &behind);
    check();
    return {ok, behind};
  }
  bool wait(std::int64_t step, double timeout_s, int seen) {
    const bool ok = engine_->wait(session_, step, timeout_s, seen);
    if (!ok) check();
    return ok;
  }
  // A pass asks at every module boundary, so this must stay cheap.
  bool done(std::int64_t step) const {
    return session_->done(step) || engine_->failed();
  }
  int needs(std::int64_t step) const { return session_->needs(step); }
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
            std::uintptr_t event, bool waits) {
    check();
    if (waits && event == 0) {
      engine_->post_and_wait(session_, step, row, bucket, std::move(data));
      return;
    }
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
  // Runs `work` on the engine's thread; rethrows here what it throws.
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
  bool closed_ = false;
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

DType dtype_of(const std::string& name) {
  if (name == "float32") return DType::kFloat32;
  if (name == "float64") return DType::kFloat64;
  throw py::value_error("dtype must be float32 or float64, got " + name);
}

SessionSettings make_settings(std::shared_ptr<Plan> plan,
                              std::vector<std::size_t> bucket_starts,
                              const std::string& dtype, int window,
                              std::int64_t first_step, const std::string& wire,
                              int narrow_buckets,
                              std::shared_ptr<ApproximateSettings> approximate,
                              const std::string& memory, double deputy_s,
                              const std::string& needs_all) {
  SessionSettings settings;
  settings.plan = std::move(plan);
  settings.bucket_starts = std::move(bucket_starts);
  settings.dtype = dtype_of(dtype);
  settings.window = window;
  settings.first_step = first_step;
  settings.wire = wire_of(wire);
  settings.narrow_buckets = narrow_buckets;
  settings.approximate = std::move(approximate);
  settings.memory = memory_of(memory);
  settings.deputy_s = deputy_s;
  settings.needs_all = needs_all;
  return settings;
}

void define_buffer(py::module_& m) {
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
}

void define_plans(py::module_& m) {
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
}

void define_reports(py::module_& m) {
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
      .def_readonly("slices_biased", &Counters::slices_biased)
      .def_readonly("slices_deputised", &Counters::slices_deputised)
      .def_readonly("messages_sent", &Counters::messages_sent)
      .def_readonly("notes_sent", &Counters::notes_sent)
      .def_readonly("bytes_copied", &Counters::bytes_copied)
      .def_readonly("decode_s", &Counters::decode_s);
  py::class_<Arrival>(m, "Arrival")
      .def_readonly("step", &Arrival::step)
      .def_readonly("source", &Arrival::source)
      .def_readonly("row", &Arrival::row)
      .def_property_readonly("kind",
                             [](const Arrival& a) { return static_cast<int>(a.kind); })
      .def_readonly("time_s", &Arrival::time_s);
}

}  // namespace

void define_exchange(py::module_& m) {
  define_buffer(m);
  define_plans(m);
  define_reports(m);
  py::class_<SessionSettings>(m, "SessionSettings")
      .def(py::init(&make_settings), py::kw_only(), "plan"_a, "bucket_starts"_a,
           "dtype"_a = "float32", "window"_a = 16, "first_step"_a = 0,
           "wire"_a = "float32", "narrow_buckets"_a = 0, "approximate"_a = py::none(),
           "memory"_a = "host", "deputy_s"_a = 0.0,
           "needs_all"_a = "it has no deputies");
  py::class_<Exchange, std::shared_ptr<Exchange>>(m, "Exchange")
      .def(py::init<std::shared_ptr<Engine>, SessionSettings>(), "engine"_a,
           "settings"_a)
      .def_property_readonly("long_addresses", &Exchange::long_addresses)
      .def("close", &Exchange::close, py::call_guard<Release>())
      .def("use_device_sums", &Exchange::use_device_sums, "always"_a,
           py::call_guard<Release>())
      .def("begin", &Exchange::begin, "step"_a, "timeout_s"_a,
           py::call_guard<Release>())
      .def("wait", &Exchange::wait, "step"_a, "timeout_s"_a, "seen"_a = kAnyNeeds,
           py::call_guard<Release>())
      .def("needs", &Exchange::needs, "step"_a, py::call_guard<Release>())
      .def("done", &Exchange::done, "step"_a)
      .def("has", &Exchange::has, "step"_a, "row"_a, py::call_guard<Release>())
      .def("begun", &Exchange::begun, "step"_a, "row"_a, py::call_guard<Release>())
      .def("missing", &Exchange::missing, "step"_a, py::call_guard<Release>())
      .def("take", &Exchange::take, "step"_a, py::call_guard<Release>())
      .def("acquire", &Exchange::acquire, py::call_guard<Release>())
      .def("post", &Exchange::post, "step"_a, "row"_a, "data"_a,
           "bucket"_a = kAllBuckets, "event"_a = 0, "waits"_a = false,
           py::call_guard<Release>())
      .def("drain_arrivals", &Exchange::drain_arrivals)
      .def("past_half", &Exchange::past_half, "step"_a)
      .def("drain_settled", &Exchange::drain_settled)
      .def("decoder_states", &Exchange::decoder_states, py::call_guard<Release>())
      .def("restore_decoders", &Exchange::restore_decoders, "state"_a,
           py::call_guard<Release>())
      .def("counters", &Exchange::counters);
}

}  // namespace codedgrad
