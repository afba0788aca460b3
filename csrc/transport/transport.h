// The seam between the engine and the network. A transport knows messages and
// ranks; it knows no codes, steps or gradients. One contract test holds for all
// implementations (tests/engine/test_transport.py, tests/parallel/test_transport.py).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace codedgrad {

struct Envelope {
  int source = 0;
  int tag = 0;
  std::size_t bytes = 0;
};

// Called by one thread only, the engine's. Nothing here blocks. Messages of one
// pair of ranks are announced by probe() in the order in which they were sent.
// Errors are thrown as std::runtime_error with the transport's own words.
class Transport {
 public:
  virtual ~Transport() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;
  // Tags must lie in [0, max_tag()].
  virtual int max_tag() const = 0;

  // Starts a send. `data` belongs to the caller and must stay valid and unchanged
  // until poll() has reported `id`.
  virtual void send(int dest, int tag, const void* data, std::size_t bytes,
                    std::uint64_t id) = 0;

  // True when a message is there: it is now taken, and receive() must be called
  // exactly once before the next probe().
  virtual bool probe(Envelope* envelope) = 0;

  // Starts to receive the message last taken by probe() into `into` (at least
  // Envelope::bytes long, valid until poll() has reported `id`).
  virtual void receive(void* into, std::uint64_t id) = 0;

  // Appends the ids of sends and receives completed since the last call.
  virtual void poll(std::vector<std::uint64_t>* done) = 0;

  // Sends and receives started and not yet reported.
  virtual std::size_t pending() const = 0;
};

}  // namespace codedgrad
