// The seam between the engine and the network. A transport knows messages and ranks;
// it knows no engine, codes, steps or gradients. Every implementation keeps the
// contract of tests/transport/contract.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace codedgrad {

// A rank is gone for good. A transport that can tell throws it out of probe(), once for
// each, when all that has come from that rank was announced. A receive from it that is
// under way is forgotten: its memory is not touched any more, and poll() does not
// report it. What is sent to it from then on is dropped, and reported as done.
class PeerGone final : public std::runtime_error {
 public:
  PeerGone(int rank, const std::string& text) : std::runtime_error(text), rank(rank) {}
  const int rank;
};

struct Envelope {
  int source = 0;
  int tag = 0;
  std::size_t bytes = 0;
};

// One thread at a time calls it, the one that holds the engine's wheel (engine.h), with
// a lock between two of them. Nothing here blocks: a send does not wait for a
// receiver that does not look, however many are under way. Messages of one pair of
// ranks, which may be a rank and itself, are announced by probe() in the order in which
// they were sent, whatever their size and tag. Errors are thrown as std::runtime_error
// with the transport's own words. There are no time-outs here: who waits looks again,
// and gives up when it likes.
class Transport {
 public:
  virtual ~Transport() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;
  // Tags must lie in [0, max_tag()], and max_tag() is at least 32767.
  virtual int max_tag() const = 0;

  // Starts a send of 0 or more bytes. `data` belongs to the caller and must stay valid
  // and unchanged until poll() has reported `id`, which the caller chooses. A rank or
  // tag that is not there is refused, and a transport may refuse 2 GiB and more: it
  // throws, and nothing has been started.
  virtual void send(int dest, int tag, const void* data, std::size_t bytes,
                    std::uint64_t id) = 0;

  // Returns true when a message is there: it is now taken, and receive() must be called
  // exactly once before the next probe(). Earlier receives may still be under way.
  virtual bool probe(Envelope* envelope) = 0;

  // Starts to receive the message last taken by probe() into `into` (at least
  // Envelope::bytes long, valid until poll() has reported `id`).
  virtual void receive(void* into, std::uint64_t id) = 0;

  // Appends the ids of the sends and receives that were completed since the last call,
  // each once, in any order.
  virtual void poll(std::vector<std::uint64_t>* done) = 0;

  // Says that nobody wants anything of `rank` any more, which may live. What was sent
  // to it still reaches it if it takes it at once; within seconds all of it is
  // reported, and the rank is gone. Where no rank is ever gone, there is nothing to do.
  virtual void drop(int rank) { static_cast<void>(rank); }

  // Returns the number of sends and receives that were started and are not reported.
  virtual std::size_t pending() const = 0;
};

}  // namespace codedgrad
