// Messages with addresses of up to 63 bits, over a transport whose tags are shorter.
//
// An address that fits a tag is the message's tag. For a longer one a header is sent
// first, a small message of its own that holds the address. The two are paired by their
// order: a transport announces the messages of one rank in the order of sending, so the
// next message from the header's rank is the one that it belongs to. Neither is copied.
//
// A message whose header has been announced but is still being received waits, and the
// messages behind it do, too. That takes no longer than a small receive.
//
// Owners and lifetimes: the mailbox owns the headers. As with a transport, one thread
// at a time calls it, and the memory of messages is the caller's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "engine/address.h"
#include "transport/transport.h"

namespace codedgrad {

struct Letter {
  int source = 0;
  Address address = 0;
  std::size_t bytes = 0;
};

class Mailbox {
 public:
  explicit Mailbox(std::unique_ptr<Transport> transport);
  ~Mailbox();
  Mailbox(const Mailbox&) = delete;
  Mailbox& operator=(const Mailbox&) = delete;

  int rank() const { return transport_->rank(); }
  int size() const { return transport_->size(); }
  int max_tag() const { return max_tag_; }

  // As in Transport, but for the address; ids must be below 2^62.
  void send(int dest, Address address, const void* data, std::size_t bytes,
            std::uint64_t id);
  bool probe(Letter* letter);
  void receive(void* into, std::uint64_t id) { transport_->receive(into, id); }
  void poll(std::vector<std::uint64_t>* done);
  void drop(int rank) { transport_->drop(rank); }
  std::size_t pending() const { return transport_->pending() + early_.size(); }

 private:
  // The header that was announced last by a rank, until its message is.
  struct Header {
    Address address = 0;
    bool expected = false;  // it is announced, its message is not
    bool here = false;      // it has been received
  };

  bool announce(const Envelope& envelope, Letter* letter);
  void poll_transport(std::vector<std::uint64_t>* done);

  std::unique_ptr<Transport> transport_;
  const int max_tag_;
  std::unordered_map<std::uint64_t, Address> sent_;  // headers under way, by id
  std::uint64_t next_ = 0;                           // of their ids
  std::vector<Header> headers_;                      // that come, by source
  Envelope held_;                                    // a message that waits for its
  bool holds_ = false;                               // header
  std::vector<std::uint64_t> early_;                 // done, and not reported yet
};

}  // namespace codedgrad
