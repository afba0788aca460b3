// The Python module codedgrad.ops._ops_cuda: the CUDA kernels on addresses and streams.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "ops/cuda/kernels.h"

namespace py = pybind11;
using namespace pybind11::literals;

namespace codedgrad {
namespace {

namespace cuda = ops::cuda;
using Addresses = std::vector<std::uintptr_t>;

ops::Type type_named(const std::string& name) {
  if (name == "float32") return ops::Type::kFloat32;
  if (name == "float64") return ops::Type::kFloat64;
  if (name == "bfloat16") return ops::Type::kBFloat16;
  if (name == "float16") return ops::Type::kFloat16;
  throw std::invalid_argument("no kernel for " + name +
                              "; there are float32, float64, bfloat16 and float16");
}

ops::Wire wire_named(const std::string& name) {
  if (name.empty()) return ops::Wire::kAsIs;
  const ops::Type type = type_named(name);
  if (type == ops::Type::kBFloat16) return ops::Wire::kBFloat16;
  if (type == ops::Type::kFloat16) return ops::Wire::kFloat16;
  throw std::invalid_argument("the wire type is bfloat16 or float16, not " + name);
}

std::vector<const void*> pointers(const Addresses& addresses) {
  std::vector<const void*> out;
  for (std::uintptr_t a : addresses) out.push_back(reinterpret_cast<const void*>(a));
  return out;
}

void weighted_sum(const std::vector<double>& weights, const Addresses& inputs,
                  const std::string& type, std::uintptr_t out,
                  const std::string& out_type, std::size_t count,
                  const std::string& wire, std::uintptr_t stream) {
  cuda::weighted_sum(weights, pointers(inputs), type_named(type),
                     reinterpret_cast<void*>(out), type_named(out_type), count,
                     wire_named(wire), reinterpret_cast<void*>(stream));
}

void gram(const Addresses& inputs, const std::string& type, std::size_t count,
          std::uintptr_t out, std::uintptr_t workspace, std::uintptr_t stream) {
  cuda::gram(pointers(inputs), type_named(type), count, reinterpret_cast<double*>(out),
             reinterpret_cast<double*>(workspace), reinterpret_cast<void*>(stream));
}

// `pieces` are the bytes of a vector of ops::Piece, and `table` is where they lie on
// the device, or 0.
void encode(const py::bytes& pieces, std::uintptr_t table, double weight,
            const Addresses& sums, const std::string& type, std::uintptr_t out,
            const std::string& wire, std::uintptr_t flag, std::uintptr_t stream) {
  const std::string_view packed = pieces;
  std::vector<ops::Piece> found(packed.size() / sizeof(ops::Piece));
  std::memcpy(found.data(), packed.data(), found.size() * sizeof(ops::Piece));
  const std::vector<const void*> rows = pointers(sums);
  const cuda::EncodeRun run{found,
                            reinterpret_cast<const ops::Piece*>(table),
                            weight,
                            rows,
                            reinterpret_cast<void*>(out),
                            reinterpret_cast<void*>(flag),
                            wire_named(wire)};
  cuda::encode(run, type_named(type), reinterpret_cast<void*>(stream));
}

// Returns the addresses that the engine wants (see csrc/engine/device.h).
std::map<std::string, std::uintptr_t> engine_calls() {
  return {{"start_sum", reinterpret_cast<std::uintptr_t>(&cuda::start_sum)},
          {"sum_done", reinterpret_cast<std::uintptr_t>(&cuda::sum_done)}};
}

// Starts `program` over inputs and outputs of the device.
std::uintptr_t start_sum(int device, bool is_double, const std::vector<int>& program,
                         const Addresses& inputs, std::uintptr_t out,
                         std::uintptr_t out2, std::size_t count) {
  const std::vector<const void*> rows = pointers(inputs);
  const ops::DeviceSum sum{device,
                           is_double,
                           program.data(),
                           static_cast<int>(program.size()),
                           static_cast<int>(rows.size()),
                           rows.data(),
                           reinterpret_cast<void*>(out),
                           reinterpret_cast<void*>(out2),
                           count};
  void* ticket = nullptr;
  const int answer = cuda::start_sum(&sum, &ticket);
  if (answer != 0) {
    throw std::invalid_argument("start_sum: CUDA answers " + std::to_string(answer));
  }
  return reinterpret_cast<std::uintptr_t>(ticket);
}

}  // namespace
}  // namespace codedgrad

PYBIND11_MODULE(_ops_cuda, m) {
  m.doc() =
      "The CUDA kernels of codedgrad on addresses and streams; see csrc/ops/cuda.";
  m.def("weighted_sum", &codedgrad::weighted_sum, "weights"_a, "inputs"_a, "type"_a,
        "out"_a, "out_type"_a, "count"_a, "wire"_a, "stream"_a);
  m.attr("DEVICE_SUM_BYTES") = sizeof(codedgrad::ops::DeviceSum);
  m.def("sums_host_memory", &codedgrad::ops::cuda::sums_host_memory, "device"_a);
  m.def("engine_calls", &codedgrad::engine_calls);
  m.def("start_sum", &codedgrad::start_sum, "device"_a, "is_double"_a, "program"_a,
        "inputs"_a, "out"_a, "out2"_a, "count"_a);
  m.def(
      "sum_done",
      [](std::uintptr_t ticket) {
        return codedgrad::ops::cuda::sum_done(reinterpret_cast<void*>(ticket));
      },
      "ticket"_a);
  m.attr("INLINE_PIECES") = codedgrad::ops::cuda::kInlinePieces;
  m.def("encode", &codedgrad::encode, "pieces"_a, "table"_a, "weight"_a, "sums"_a,
        "type"_a, "out"_a, "wire"_a, "flag"_a, "stream"_a);
  m.def("gram_workspace", &codedgrad::ops::cuda::gram_workspace, "count"_a);
  m.def("gram", &codedgrad::gram, "inputs"_a, "type"_a, "count"_a, "out"_a,
        "workspace"_a, "stream"_a);
}
