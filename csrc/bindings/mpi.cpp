// The Python module codedgrad.job._mpi: the transport over MPI. It alone is linked with
// MPI's library, so that the engine runs where there is none.
#include <pybind11/pybind11.h>

#include <limits>

#include "bindings/handover.h"
#include "transport/mpi/mpi_transport.h"

namespace py = pybind11;
using namespace pybind11::literals;

namespace codedgrad {
namespace {

py::capsule transport(int fortran_comm, int max_tag) {
  return hand_over(make_mpi_transport(fortran_comm, max_tag));
}

}  // namespace
}  // namespace codedgrad

PYBIND11_MODULE(_mpi, m) {
  using namespace codedgrad;
  m.doc() = "The transport over MPI; see csrc/transport/mpi.";
  constexpr int kAny = std::numeric_limits<int>::max();
  m.def("transport", &transport, "fortran_comm"_a, "max_tag"_a = kAny);
  m.def("mpi_build_vendor", &mpi_build_vendor);
  m.def("mpi_build_version", &mpi_build_version);
  m.def("mpi_library_version", &mpi_library_version);
  m.def("mpi_reads_cuda_memory", &mpi_reads_cuda_memory);
}
