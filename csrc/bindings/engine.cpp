// The Python module codedgrad.job._engine, and in it the engine of a worker.
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>

#include "bindings/bindings.h"

using namespace pybind11::literals;

namespace codedgrad {
namespace {

// Functions are given by their addresses: the engine is built without the device's
// library (see engine/device.h).
struct Address {
  std::uintptr_t value;
  template <typename Function>
  void into(Function** function) const {
    *function = reinterpret_cast<Function*>(value);
  }
};

DeviceCalls make_device_calls(int device, int not_ready, unsigned pin_flags,
                              std::uintptr_t set_device, std::uintptr_t pin,
                              std::uintptr_t unpin, std::uintptr_t query,
                              std::uintptr_t allocate, std::uintptr_t release,
                              std::uintptr_t take_error, std::uintptr_t start_sum,
                              std::uintptr_t sum_done) {
  DeviceCalls calls;
  calls.device = device;
  calls.not_ready = not_ready;
  calls.pin_flags = pin_flags;
  Address{set_device}.into(&calls.set_device);
  Address{pin}.into(&calls.pin);
  Address{unpin}.into(&calls.unpin);
  Address{query}.into(&calls.query);
  Address{allocate}.into(&calls.allocate);
  Address{release}.into(&calls.release);
  Address{take_error}.into(&calls.take_error);
  Address{start_sum}.into(&calls.start_sum);
  Address{sum_done}.into(&calls.sum_done);
  return calls;
}

std::map<int, py::bytes> announced(const Engine& engine) {
  std::map<int, py::bytes> out;
  for (auto& [worker, blob] : engine.announced()) out.emplace(worker, blob);
  return out;
}

using Blobs = std::vector<std::optional<py::bytes>>;
using Gathered = std::pair<std::optional<Blobs>, std::vector<int>>;

Gathered gather(Engine& engine, double timeout_s) {
  std::vector<int> missing;
  std::optional<Engine::Blobs> got;
  {
    Release release;
    got = engine.gather(timeout_s, &missing);
  }
  if (!got) {
    if (engine.failed()) throw EngineFailure(engine.failure());
    return {std::nullopt, missing};
  }
  return {Blobs(got->begin(), got->end()), missing};
}

// EngineFailure reaches Python as the package's own WorkerError, so that no caller has
// to translate it.
void define_failure(py::module_& m) {
  static PyObject* worker_error = nullptr;
  py::object type = py::module_::import("codedgrad.errors").attr("WorkerError");
  m.attr("EngineFailure") = type;
  worker_error = type.release().ptr();
  py::register_local_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const EngineFailure& failure) {
      py::set_error(worker_error, failure.what());
    }
  });
}

}  // namespace

EngineClass define_engine(py::module_& m) {
  py::class_<EngineStats>(m, "EngineStats")
      .def_readonly("polls", &EngineStats::polls)
      .def_readonly("pool_bytes", &EngineStats::pool_bytes)
      .def_readonly("in_flight", &EngineStats::in_flight)
      .def_readonly("held", &EngineStats::held)
      .def_readonly("unpinned_bytes", &EngineStats::unpinned_bytes)
      .def_readonly("sessions", &EngineStats::sessions);
  py::class_<DeviceCalls>(m, "DeviceCalls")
      .def(py::init(&make_device_calls), py::kw_only(), "device"_a, "not_ready"_a,
           "pin_flags"_a, "set_device"_a, "pin"_a, "unpin"_a, "query"_a, "allocate"_a,
           "release"_a, "take_error"_a, "start_sum"_a, "sum_done"_a);
  EngineClass engine(m, "Engine");
  engine.def_property_readonly("rank", &Engine::rank)
      .def_property_readonly("size", &Engine::size)
      .def(
          "publish", [](Engine& e, const py::bytes& b) { e.publish(b); }, "data"_a)
      .def("gather", &gather, "timeout_s"_a)
      .def("fail", &Engine::fail, "text"_a)
      .def_property_readonly("failed", &Engine::failed)
      .def_property_readonly("failure", &Engine::failure)
      .def_property_readonly("departed", &Engine::departed)
      .def("announced", &announced)
      .def("survive", &Engine::survive, "least"_a)
      .def("lost", &Engine::lost)
      .def("bind_device", &Engine::bind_device, "calls"_a, py::call_guard<Release>())
      .def("stop", &Engine::stop, "timeout_s"_a, py::call_guard<Release>())
      .def("stats", &Engine::stats);
  return engine;
}

}  // namespace codedgrad

PYBIND11_MODULE(_engine, m) {
  m.doc() = "The exchange engine of codedgrad (C++); see csrc/engine.";
  codedgrad::define_failure(m);
  m.attr("DEVICE_SUM_BYTES") = sizeof(codedgrad::ops::DeviceSum);
  m.attr("MOST_DEVICE_INPUTS") = codedgrad::ops::kMostDeviceInputs;
  codedgrad::EngineClass engine = codedgrad::define_engine(m);
  codedgrad::define_transports(m, engine);
  codedgrad::define_decoder(m);
  codedgrad::define_exchange(m);
}
