#include "transport/local_transport.h"

#include <cstring>
#include <stdexcept>
#include <string>

namespace codedgrad {

namespace {

class LocalTransport final : public Transport {
 public:
  LocalTransport(std::shared_ptr<LocalHub> hub, int rank)
      : hub_(std::move(hub)), rank_(rank) {
    if (rank < 0 || rank >= hub_->size) {
      throw std::runtime_error("rank " + std::to_string(rank) + " is not in a hub of " +
                               std::to_string(hub_->size));
    }
  }

  int rank() const override { return rank_; }
  int size() const override { return hub_->size; }
  int max_tag() const override { return hub_->max_tag; }

  void send(int dest, int tag, const void* data, std::size_t bytes,
            std::uint64_t id) override {
    if (dest < 0 || dest >= hub_->size || tag < 0 || tag > hub_->max_tag) {
      throw std::runtime_error("there is no rank " + std::to_string(dest) +
                               " or no tag " + std::to_string(tag));
    }
    std::lock_guard<std::mutex> lock(hub_->mutex);
    const auto visible = hub_->visible_from(rank_, dest);
    hub_->inbox[dest][rank_].push_back({{rank_, tag, bytes}, data, id, visible});
    ++pending_sends_;
  }

  bool probe(Envelope* envelope) override {
    const auto now = std::chrono::steady_clock::now();
    std::lock_guard<std::mutex> lock(hub_->mutex);
    auto& inbox = hub_->inbox[rank_];
    auto place = inbox.upper_bound(next_);  // after the source of the last message
    for (std::size_t i = 0; i < inbox.size(); ++i, ++place) {
      if (place == inbox.end()) place = inbox.begin();
      auto& queue = place->second;
      if (queue.empty() || queue.front().visible > now) continue;
      next_ = place->first;
      taken_ = queue.front();
      queue.pop_front();
      *envelope = taken_.envelope;
      return true;
    }
    return false;
  }

  void receive(void* into, std::uint64_t id) override {
    if (taken_.envelope.bytes > 0) {
      std::memcpy(into, taken_.data, taken_.envelope.bytes);
    }
    received_.push_back(id);
    std::lock_guard<std::mutex> lock(hub_->mutex);
    hub_->sent[taken_.envelope.source].push_back(taken_.id);
  }

  void poll(std::vector<std::uint64_t>* done) override {
    done->insert(done->end(), received_.begin(), received_.end());
    received_.clear();
    std::lock_guard<std::mutex> lock(hub_->mutex);
    auto& sent = hub_->sent[rank_];
    done->insert(done->end(), sent.begin(), sent.end());
    pending_sends_ -= sent.size();
    sent.clear();
  }

  std::size_t pending() const override { return pending_sends_ + received_.size(); }

 private:
  std::shared_ptr<LocalHub> hub_;
  const int rank_;
  int next_ = 0;
  LocalMessage taken_;
  std::vector<std::uint64_t> received_;
  std::size_t pending_sends_ = 0;
};

}  // namespace

std::unique_ptr<Transport> make_local_transport(std::shared_ptr<LocalHub> hub,
                                                int rank) {
  return std::make_unique<LocalTransport>(std::move(hub), rank);
}

}  // namespace codedgrad
