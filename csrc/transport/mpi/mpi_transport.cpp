#include "transport/mpi/mpi_transport.h"

#include <mpi.h>

#include <algorithm>
#include <limits>
#include <stdexcept>

// Open MPI and MPICH 4 have this function, no standard does; where the MPI has none it
// is null.
extern "C" int MPIX_Query_cuda_support(void) __attribute__((weak));

namespace codedgrad {
namespace {

void check(int code, const char* call) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(code, text, &length);
  throw std::runtime_error(std::string(call) + " failed: " + std::string(text, length));
}

int checked_count(std::size_t bytes) {
  // MPI 3 counts in ints. The size of buckets keeps the engine's messages below that.
  if (bytes > static_cast<std::size_t>(std::numeric_limits<int>::max())) {
    throw std::runtime_error("a message of " + std::to_string(bytes) +
                             " bytes does not fit MPI's 2 GiB; use smaller buckets "
                             "(bucket_mb)");
  }
  return static_cast<int>(bytes);
}

class MpiTransport final : public Transport {
 public:
  MpiTransport(int fortran_comm, int most) : comm_(MPI_Comm_f2c(fortran_comm)) {
    int level = MPI_THREAD_SINGLE;
    check(MPI_Query_thread(&level), "MPI_Query_thread");
    if (level != MPI_THREAD_MULTIPLE) {
      throw std::runtime_error(
          "MPI was initialised without MPI_THREAD_MULTIPLE, which the engine needs");
    }
    check(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    check(MPI_Comm_rank(comm_, &rank_), "MPI_Comm_rank");
    check(MPI_Comm_size(comm_, &size_), "MPI_Comm_size");
    int* bound = nullptr;
    int found = 0;
    check(MPI_Comm_get_attr(comm_, MPI_TAG_UB, &bound, &found), "MPI_Comm_get_attr");
    max_tag_ = found ? *bound : 32767;  // the least that the standard promises
    max_tag_ = std::min(max_tag_, most);
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  int max_tag() const override { return max_tag_; }

  void send(int dest, int tag, const void* data, std::size_t bytes,
            std::uint64_t id) override {
    if (dest < 0 || dest >= size_ || tag < 0 || tag > max_tag_) {
      // MPI_PROC_NULL, which may be -1 or -2, would swallow the message.
      throw std::runtime_error("there is no rank " + std::to_string(dest) +
                               " or no tag " + std::to_string(tag));
    }
    MPI_Request request = MPI_REQUEST_NULL;
    check(MPI_Isend(data, checked_count(bytes), MPI_BYTE, dest, tag, comm_, &request),
          "MPI_Isend");
    requests_.push_back(request);
    ids_.push_back(id);
  }

  bool probe(Envelope* envelope) override {
    int found = 0;
    MPI_Status status;
    check(MPI_Improbe(MPI_ANY_SOURCE, MPI_ANY_TAG, comm_, &found, &message_, &status),
          "MPI_Improbe");
    if (!found) return false;
    int count = 0;
    check(MPI_Get_count(&status, MPI_BYTE, &count), "MPI_Get_count");
    taken_ = count;
    *envelope = {status.MPI_SOURCE, status.MPI_TAG, static_cast<std::size_t>(count)};
    return true;
  }

  void receive(void* into, std::uint64_t id) override {
    MPI_Request request = MPI_REQUEST_NULL;
    check(MPI_Imrecv(into, taken_, MPI_BYTE, &message_, &request), "MPI_Imrecv");
    requests_.push_back(request);
    ids_.push_back(id);
  }

  void poll(std::vector<std::uint64_t>* done) override {
    if (requests_.empty()) return;
    const int count = static_cast<int>(requests_.size());
    indices_.resize(requests_.size());
    int completed = 0;
    check(MPI_Testsome(count, requests_.data(), &completed, indices_.data(),
                       MPI_STATUSES_IGNORE),
          "MPI_Testsome");
    if (completed <= 0) return;
    for (int i = 0; i < completed; ++i) done->push_back(ids_[indices_[i]]);
    std::size_t kept = 0;
    for (std::size_t i = 0; i < requests_.size(); ++i) {
      if (requests_[i] == MPI_REQUEST_NULL) continue;
      requests_[kept] = requests_[i];
      ids_[kept++] = ids_[i];
    }
    requests_.resize(kept);
    ids_.resize(kept);
  }

  std::size_t pending() const override { return requests_.size(); }

 private:
  MPI_Comm comm_;
  int rank_ = 0;
  int size_ = 1;
  int max_tag_ = 32767;
  int taken_ = 0;
  MPI_Message message_ = MPI_MESSAGE_NULL;
  std::vector<MPI_Request> requests_;
  std::vector<std::uint64_t> ids_;
  std::vector<int> indices_;
};

}  // namespace

std::unique_ptr<Transport> make_mpi_transport(int fortran_comm, int most) {
  return std::make_unique<MpiTransport>(fortran_comm, most);
}

std::string mpi_build_vendor() {
#if defined(OMPI_MAJOR_VERSION)
  return "Open MPI";
#elif defined(MPICH_VERSION)
  return "MPICH";
#else
  return "unknown";
#endif
}

std::string mpi_build_version() {
#if defined(OMPI_MAJOR_VERSION)
  return std::to_string(OMPI_MAJOR_VERSION) + "." + std::to_string(OMPI_MINOR_VERSION) +
         "." + std::to_string(OMPI_RELEASE_VERSION);
#elif defined(MPICH_VERSION)
  return MPICH_VERSION;
#else
  return std::to_string(MPI_VERSION) + "." + std::to_string(MPI_SUBVERSION);
#endif
}

bool mpi_reads_cuda_memory() {
  return MPIX_Query_cuda_support != nullptr && MPIX_Query_cuda_support() == 1;
}

std::string mpi_library_version() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = "";
  int length = 0;
  MPI_Get_library_version(text, &length);
  return std::string(text, length);
}

}  // namespace codedgrad
