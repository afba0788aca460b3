// Reading the memory of another process of this machine: one copy where a socket takes
// two. Whether the kernel allows it is found by trying.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>

namespace codedgrad {

// Returns the process at the other end of a UNIX socket; 0 for other sockets, and for
// processes that this one cannot see.
pid_t process_behind(int fd);

// Copies at most `bytes`; returns how many, or -1 with errno.
long read_memory(pid_t process, std::uint64_t address, void* into, std::size_t bytes);

}  // namespace codedgrad
