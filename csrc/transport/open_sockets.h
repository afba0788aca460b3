// The sockets of this process that a process which it forks must not keep: a worker
// that dies would seem to live as long as its child does.
#pragma once

namespace codedgrad {

// From now on a child of this process closes its copy of `fd`.
void close_in_children(int fd);
// Closes `fd`, here.
void close_socket(int fd);

}  // namespace codedgrad
