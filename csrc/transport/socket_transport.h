// Messages over stream sockets, one for each pair of workers; docs/sockets.md says how
// they come about. Whoever does the engine's work drives them.
#pragma once

#include <memory>
#include <vector>

#include "transport/transport.h"

namespace codedgrad {

// `fds` has by rank the socket that is connected to that worker, and -1 for oneself.
// The transport takes them over. No tag above `most` is used.
//
// A peer whose connection ends before it has said that it ends is gone: probe() throws
// once for each, with its rank, when all that came from it has been announced. The
// others can be sent to, and heard, all the same.
//
// A transport that is destroyed says to all peers that it ends.
std::unique_ptr<Transport> make_socket_transport(int rank, std::vector<int> fds,
                                                 int most);

}  // namespace codedgrad
