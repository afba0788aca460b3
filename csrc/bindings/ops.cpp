// The Python module codedgrad.ops._ops: the kernels on addresses, for codedgrad/ops,
// which checks its arguments. It needs no MPI.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "bindings/objects.h"
#include "bindings/tensors.h"
#include "ops/cpu/encode.h"
#include "ops/cpu/gram.h"
#include "ops/cpu/half.h"
#include "ops/cpu/weighted_sum.h"

namespace py = pybind11;
using namespace pybind11::literals;

namespace codedgrad {
namespace {

using Addresses = std::vector<std::uintptr_t>;
using ops::Wire;

template <typename T>
std::vector<const T*> pointers(const Addresses& addresses) {
  std::vector<const T*> out;
  for (std::uintptr_t a : addresses) out.push_back(reinterpret_cast<const T*>(a));
  return out;
}

[[noreturn]] void no_such_type(const std::string& name) {
  throw std::invalid_argument("no kernel for " + name +
                              "; there are float32, float64, bfloat16 and float16");
}

Wire wire_named(const std::string& name) {
  if (name.empty()) return Wire::kAsIs;
  if (name == "bfloat16") return Wire::kBFloat16;
  if (name == "float16") return Wire::kFloat16;
  no_such_type(name);
}

struct Sum {
  const std::vector<double>& weights;
  const Addresses& inputs;
  std::uintptr_t out;
  std::size_t count;
  Wire wire;
  int threads;

  template <typename T, typename Out>
  void run() const {
    ops::weighted_sum<T, Out>(weights, pointers<T>(inputs), reinterpret_cast<Out*>(out),
                              nullptr, count, wire, threads);
  }
  template <typename T>
  void run_into(const std::string& out_type) const {
    if (out_type == "float32") return run<T, float>();
    if (out_type == "bfloat16") return run<T, ops::BFloat16>();
    if (out_type == "float16") return run<T, ops::Float16>();
    no_such_type(out_type);
  }
};

void weighted_sum(const std::vector<double>& weights, const Addresses& inputs,
                  const std::string& type, std::uintptr_t out,
                  const std::string& out_type, std::size_t count,
                  const std::string& wire, int threads) {
  const Sum sum{weights, inputs, out, count, wire_named(wire), threads};
  py::gil_scoped_release release;
  if (type == "float64" && out_type == type) return sum.run<double, double>();
  if (type == "float32") return sum.run_into<float>(out_type);
  if (type == "bfloat16") return sum.run_into<ops::BFloat16>(out_type);
  if (type == "float16") return sum.run_into<ops::Float16>(out_type);
  no_such_type(type + " into " + out_type);
}

void gram(const Addresses& inputs, const std::string& type, std::size_t count,
          std::uintptr_t out, int threads) {
  auto* to = reinterpret_cast<double*>(out);
  py::gil_scoped_release release;
  if (type == "float32") return ops::gram(pointers<float>(inputs), count, to, threads);
  if (type == "float64") return ops::gram(pointers<double>(inputs), count, to, threads);
  if (type == "bfloat16") {
    return ops::gram(pointers<ops::BFloat16>(inputs), count, to, threads);
  }
  if (type == "float16") {
    return ops::gram(pointers<ops::Float16>(inputs), count, to, threads);
  }
  no_such_type(type);
}

// Addresses of a buffer's values now and before, its elements, and its type: f for
// float, d for double, q for int64.
using Buffer = std::tuple<std::uintptr_t, std::uintptr_t, std::size_t, char>;

// The buffers of a model. Python keeps one for as long as no buffer moves, because
// reading hundreds of tuples takes longer than copying the buffers.
struct BufferTable {
  std::vector<Buffer> buffers;
};

// Calls visit(buffer, To*) with the buffer's own type To. T is the type of a row.
template <typename T, typename Visit>
void by_type(const std::vector<Buffer>& buffers, const Visit& visit) {
  for (const Buffer& buffer : buffers) {
    const char type = std::get<3>(buffer);
    if (type == 'f') {
      visit(buffer, static_cast<float*>(nullptr));
    } else if (type == 'q') {
      visit(buffer, static_cast<std::int64_t*>(nullptr));
    } else if constexpr (std::is_same_v<T, double>) {
      visit(buffer, static_cast<double*>(nullptr));
    } else {
      no_such_type("double buffers in a row of floats");
    }
  }
}

template <typename T>
void move_changes(const std::vector<Buffer>& buffers, T* row, bool into_row) {
  by_type<T>(buffers, [&](const Buffer& buffer, auto* type) {
    using To = std::remove_pointer_t<decltype(type)>;
    const auto [now, before, count, letter] = buffer;
    auto* to = reinterpret_cast<To*>(now);
    const auto* from = reinterpret_cast<const To*>(before);
    if (into_row) {
      ops::change(to, from, row, count);
    } else {
      ops::apply(from, row, to, count);
    }
    row += count;
  });
}

// Writes the changes of buffers into a row, or applies those of a row.
void changes(const BufferTable& table, const std::string& type, std::uintptr_t row,
             bool into_row) {
  if (type == "float64") {
    return move_changes(table.buffers, reinterpret_cast<double*>(row), into_row);
  }
  if (type == "float32") {
    return move_changes(table.buffers, reinterpret_cast<float*>(row), into_row);
  }
  no_such_type(type);
}

// Copies now to before, or back.
void copies(const BufferTable& table, bool back) {
  by_type<double>(table.buffers, [&](const Buffer& buffer, auto* type) {
    const auto [now, before, count, letter] = buffer;
    std::memcpy(reinterpret_cast<void*>(back ? now : before),
                reinterpret_cast<const void*>(back ? before : now),
                count * sizeof(*type));
  });
}

// Address, elements and type of what lies in a run of a row, one after another.
using Leaf = std::vector<std::tuple<std::uintptr_t, std::size_t, std::string>>;

ops::Type type_named(const std::string& name) {
  if (name == "float32") return ops::Type::kFloat32;
  if (name == "float64") return ops::Type::kFloat64;
  if (name == "bfloat16") return ops::Type::kBFloat16;
  if (name == "float16") return ops::Type::kFloat16;
  no_such_type(name);
}

Gradients::Pieces pieces_of(const Leaf& leaf) {
  Gradients::Pieces pieces;
  std::uint64_t end = 0;
  for (const auto& [at, count, type] : leaf) {
    pieces.push_back(ops::piece_of(at, end += count, type_named(type)));
  }
  return pieces;
}

py::bytes bytes_of(const Gradients::Pieces& pieces) {
  return {reinterpret_cast<const char*>(pieces.data()),
          pieces.size() * sizeof(ops::Piece)};
}

bool encode_pieces(const Gradients::Pieces& pieces, double weight,
                   const Addresses& sums, const std::string& type, std::uintptr_t out,
                   const std::string& wire, bool streamed) {
  const Wire round = wire_named(wire);
  py::gil_scoped_release release;
  if (type == "float32") {
    return ops::encode(pieces, static_cast<float>(weight), pointers<float>(sums),
                       reinterpret_cast<float*>(out), round, streamed);
  }
  if (type == "float64") {
    return ops::encode(pieces, weight, pointers<double>(sums),
                       reinterpret_cast<double*>(out), round, streamed);
  }
  no_such_type(type);
}

bool encode(const Leaf& leaf, double weight, const Addresses& sums,
            const std::string& type, std::uintptr_t out, const std::string& wire,
            bool streamed) {
  return encode_pieces(pieces_of(leaf), weight, sums, type, out, wire, streamed);
}

// As `encode`, of the gradients that parameters have now. None where one of them does
// not lie in memory as in the row; nothing is written then.
py::object encode_gradients(const Gradients& gradients, const py::list& parameters,
                            std::uintptr_t tail, double weight, const Addresses& sums,
                            const std::string& type, std::uintptr_t out,
                            const std::string& wire, bool streamed) {
  Gradients::Pieces pieces;
  if (!gradients.pieces(parameters, tail, type_named(type), dlpack::kCpu, &pieces)) {
    return py::none();
  }
  return py::bool_(encode_pieces(pieces, weight, sums, type, out, wire, streamed));
}

// The pieces for a kernel of a device, or None, as above.
py::object table(const Gradients& gradients, const py::list& parameters,
                 std::uintptr_t tail, const std::string& type, std::int32_t device) {
  Gradients::Pieces pieces;
  if (!gradients.pieces(parameters, tail, type_named(type), device, &pieces)) {
    return py::none();
  }
  return bytes_of(pieces);
}

}  // namespace
}  // namespace codedgrad

PYBIND11_MODULE(_ops, m) {
  m.doc() = "The CPU kernels of codedgrad on addresses; see csrc/ops.";
  m.def("weighted_sum", &codedgrad::weighted_sum, "weights"_a, "inputs"_a, "type"_a,
        "out"_a, "out_type"_a, "count"_a, "wire"_a, "threads"_a);
  m.def("encode", &codedgrad::encode, "leaf"_a, "weight"_a, "sums"_a, "type"_a, "out"_a,
        "wire"_a, "streamed"_a);
  codedgrad::define_objects(m);
  codedgrad::define_tensors(m);
  m.def("encode_gradients", &codedgrad::encode_gradients, "gradients"_a, "parameters"_a,
        "tail"_a, "weight"_a, "sums"_a, "type"_a, "out"_a, "wire"_a, "streamed"_a);
  m.def("table", &codedgrad::table, "gradients"_a, "parameters"_a, "tail"_a, "type"_a,
        "device"_a);
  m.def(
      "table_of",
      [](const codedgrad::Leaf& leaf) {
        return codedgrad::bytes_of(codedgrad::pieces_of(leaf));
      },
      "leaf"_a);
  py::class_<codedgrad::BufferTable>(m, "BufferTable")
      .def(py::init<std::vector<codedgrad::Buffer>>(), "buffers"_a);
  m.def("changes", &codedgrad::changes, "table"_a, "type"_a, "row"_a, "into_row"_a);
  m.def("copies", &codedgrad::copies, "table"_a, "back"_a);
  m.def("gram", &codedgrad::gram, "inputs"_a, "type"_a, "count"_a, "out"_a,
        "threads"_a);
}
