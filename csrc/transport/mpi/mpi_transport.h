// Messages are MPI's non-blocking point-to-point ones, on a communicator of their own.
// It needs MPI_THREAD_MULTIPLE: the engine's thread calls MPI while other threads do.
#pragma once

#include <memory>
#include <string>

#include "transport/transport.h"

namespace codedgrad {

// `fortran_comm` is MPI_Comm_c2f of a communicator that nobody else uses. No tag above
// `most` is used, even where MPI has more.
std::unique_ptr<Transport> make_mpi_transport(int fortran_comm, int most);

// These say what the extension was compiled against, and what is loaded now.
std::string mpi_build_vendor();
std::string mpi_build_version();
std::string mpi_library_version();
// Returns whether MPI says, once it is started, that messages may lie in the memory of
// CUDA devices.
bool mpi_reads_cuda_memory();

}  // namespace codedgrad
