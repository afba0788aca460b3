// The transports in Python: a new one is registered in define_transports() below. Each
// can be driven by an engine, or by itself, as the contract test does
// (tests/transport).
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <tuple>
#include <utility>

#include "bindings/bindings.h"
#include "bindings/handover.h"
#include "transport/local_transport.h"
#include "transport/socket_transport.h"

using namespace pybind11::literals;

namespace codedgrad {
namespace {

// Adds the function NAME_transport and the static method Engine.over_NAME, which take
// what `make` takes; `names` are the arguments' names.
template <typename... Args, typename... Names>
void add(py::module_& m, EngineClass& engine, const std::string& name,
         std::unique_ptr<Transport> (*make)(Args...), const Names&... names) {
  m.def((name + "_transport").c_str(), make, names...);
  engine.def_static(
      ("over_" + name).c_str(),
      [make](Args... args) {
        return std::make_shared<Engine>(make(std::forward<Args>(args)...));
      },
      names...);
}

std::pair<void*, std::size_t> memory(const py::buffer& buffer, bool writable) {
  const py::buffer_info info = buffer.request(writable);
  return {info.ptr, static_cast<std::size_t>(info.size * info.itemsize)};
}

// The memory of `data` and `into` must live until poll() has returned the `id`.
void send(Transport& transport, int dest, int tag, const py::buffer& data,
          std::uint64_t id) {
  const auto [from, bytes] = memory(data, false);
  transport.send(dest, tag, from, bytes, id);
}

void receive(Transport& transport, const py::buffer& into, std::uint64_t id) {
  transport.receive(memory(into, true).first, id);
}

using Announced = std::optional<std::tuple<int, int, std::size_t>>;

Announced probe(Transport& transport) {
  Envelope envelope;
  if (!transport.probe(&envelope)) return std::nullopt;
  return std::make_tuple(envelope.source, envelope.tag, envelope.bytes);
}

std::vector<std::uint64_t> poll(Transport& transport) {
  std::vector<std::uint64_t> done;
  transport.poll(&done);
  return done;
}

void define_transport(py::module_& m) {
  py::class_<Transport>(m, "Transport")
      .def_property_readonly("rank", &Transport::rank)
      .def_property_readonly("size", &Transport::size)
      .def_property_readonly("max_tag", &Transport::max_tag)
      .def("send", &send, "dest"_a, "tag"_a, "data"_a, "id"_a)
      .def("probe", &probe)
      .def("receive", &receive, "into"_a, "id"_a)
      .def("poll", &poll)
      .def("drop", &Transport::drop, "rank"_a)
      .def("pending", &Transport::pending);
}

}  // namespace

void define_transports(py::module_& m, EngineClass& engine) {
  define_transport(m);

  // A transport of another extension module, in a capsule.
  add(m, engine, "foreign", &take_over, "capsule"_a);
  constexpr int kAny = std::numeric_limits<int>::max();
  add(m, engine, "sockets", &make_socket_transport, "rank"_a, "fds"_a,
      "max_tag"_a = kAny);
  // For a job that others have entered, or left, before: no moment in which the end of
  // a worker would be the end of all.
  engine.def_static(
      "over_sockets_of_some",
      [](int rank, std::vector<int> fds, int max_tag, int least) {
        return std::make_shared<Engine>(
            make_socket_transport(rank, std::move(fds), max_tag), least);
      },
      "rank"_a, "fds"_a, "max_tag"_a, "least"_a);

  py::class_<LocalHub, std::shared_ptr<LocalHub>>(m, "LocalHub")
      .def(py::init<int, int, std::uint64_t, int>(), "size"_a, "max_delay_us"_a = 0,
           "seed"_a = 0, "max_tag"_a = (1 << 30) - 1);
  add(m, engine, "local", &make_local_transport, "hub"_a, "rank"_a);
}

}  // namespace codedgrad
