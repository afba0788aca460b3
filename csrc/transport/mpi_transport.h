// Non-blocking MPI point-to-point on a communicator of its own. Needs
// MPI_THREAD_MULTIPLE: the engine's thread calls MPI while others do.
#pragma once

#include <memory>
#include <string>

#include "transport/transport.h"

namespace codedgrad {

// `fortran_comm`: MPI_Comm_c2f of a communicator used by nobody else.
std::unique_ptr<Transport> make_mpi_transport(int fortran_comm);

// What the extension was compiled against, and what is loaded now.
std::string mpi_build_vendor();
std::string mpi_build_version();
std::string mpi_library_version();
// Does the MPI say, after its start, that messages may lie in memory of CUDA devices?
bool mpi_reads_cuda_memory();

}  // namespace codedgrad
