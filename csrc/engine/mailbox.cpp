#include "engine/mailbox.h"

#include <stdexcept>
#include <string>
#include <utility>

namespace codedgrad {
namespace {

// Ids of headers have the first bit; those of headers that come have the second, too.
constexpr std::uint64_t kOfHeader = std::uint64_t{1} << 63;
constexpr std::uint64_t kComes = std::uint64_t{1} << 62;

}  // namespace

Mailbox::Mailbox(std::unique_ptr<Transport> transport)
    : transport_(std::move(transport)),
      max_tag_(transport_->max_tag()),
      headers_(transport_->size()) {}

Mailbox::~Mailbox() {
  if (transport_->pending() == 0) return;
  // The network may still read or write these: they outlive the mailbox.
  new std::unordered_map<std::uint64_t, Address>(std::move(sent_));
  new std::vector<Header>(std::move(headers_));
  transport_.release();
}

void Mailbox::send(int dest, Address address, const void* data, std::size_t bytes,
                   std::uint64_t id) {
  if (address <= max_tag_) {
    transport_->send(dest, static_cast<int>(address), data, bytes, id);
    return;
  }
  const std::uint64_t header = kOfHeader | next_++;
  const Address* place = &sent_.emplace(header, address).first->second;
  transport_->send(dest, static_cast<int>(kHeaderAddress), place, sizeof *place,
                   header);
  transport_->send(dest, static_cast<int>(kControlAddress), data, bytes, id);
}

bool Mailbox::probe(Letter* letter) {
  if (holds_) return announce(held_, letter);
  Envelope envelope;
  while (transport_->probe(&envelope)) {
    Header& header = headers_[envelope.source];
    if (!header.expected && envelope.tag == static_cast<int>(kHeaderAddress)) {
      if (envelope.bytes != sizeof header.address) {
        throw std::runtime_error("worker " + std::to_string(envelope.source) +
                                 " sent a header of " + std::to_string(envelope.bytes) +
                                 " bytes");
      }
      header.expected = true;
      header.here = false;
      transport_->receive(&header.address,
                          kOfHeader | kComes | static_cast<unsigned>(envelope.source));
      continue;
    }
    return announce(envelope, letter);
  }
  return false;
}

// Returns false while the message's header is not here; then the message is held.
bool Mailbox::announce(const Envelope& envelope, Letter* letter) {
  Header& header = headers_[envelope.source];
  if (header.expected && !header.here) poll_transport(&early_);
  if (header.expected && !header.here) {
    held_ = envelope;
    holds_ = true;
    return false;
  }
  *letter = {envelope.source, header.expected ? header.address : envelope.tag,
             envelope.bytes};
  header.expected = false;
  holds_ = false;
  return true;
}

void Mailbox::poll(std::vector<std::uint64_t>* done) {
  done->insert(done->end(), early_.begin(), early_.end());
  early_.clear();
  poll_transport(done);
}

void Mailbox::poll_transport(std::vector<std::uint64_t>* done) {
  std::size_t kept = done->size();
  transport_->poll(done);
  for (std::size_t i = kept; i < done->size(); ++i) {
    const std::uint64_t id = (*done)[i];
    if ((id & kOfHeader) == 0) {
      (*done)[kept++] = id;
    } else if ((id & kComes) != 0) {
      headers_[id & ~(kOfHeader | kComes)].here = true;
    } else {
      sent_.erase(id);
    }
  }
  done->resize(kept);
}

}  // namespace codedgrad
