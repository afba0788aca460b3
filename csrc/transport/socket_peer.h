// One connection of a socket transport: a stream of frames in both directions.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "transport/socket_frame.h"
#include "transport/transport.h"

namespace codedgrad {

using Ids = std::vector<std::uint64_t>;

// Sends are completed when the kernel has taken their bytes, and receives when the
// bytes are in their place; both append their ids to `done`. No call blocks, but end().
class SocketPeer {
 public:
  // Takes over the socket `fd`, which is connected to the worker `rank`.
  SocketPeer(int rank, int fd);
  ~SocketPeer();
  SocketPeer(const SocketPeer&) = delete;
  SocketPeer& operator=(const SocketPeer&) = delete;

  int rank() const { return rank_; }
  int fd() const { return fd_; }

  // What is sent to a peer that takes nothing more is dropped, and reported as done.
  void send(int tag, const void* data, std::size_t bytes, std::uint64_t id, Ids* done);
  void flush(Ids* done);
  // Whether the kernel could not take all, so that flush() must be called again.
  bool queues() const { return !out_.empty(); }

  // Whether a message is being read from the peer's memory: copy() goes on with it.
  bool copies() const { return copying_; }
  void copy(Ids* done);

  // Reads what has come, as far as there is a place for it.
  void read(Ids* done);
  void set_readable() { readable_ = true; }
  // As Transport::probe and receive, for the messages of this peer.
  bool announce(Envelope* envelope, Ids* done);
  void receive(void* into, std::uint64_t id, Ids* done);

  bool at_end() const { return at_end_; }  // nothing more will come
  // Whether the connection has ended without an end frame, and all that came before
  // has been announced.
  bool gone() const { return at_end_ && !ended_ && !has_head_; }
  const std::string& problem() const { return problem_; }
  // Leaves the memory of messages that are half received, of a peer that is gone;
  // returns how many there were.
  std::size_t forget_receives();

  // Over TCP: looks whether its machine answers still; to be called now and then.
  void check_machine(Ids* done);

  // Nobody wants anything of it any more: the connection is cut as soon as it has taken
  // what was sent, or in a second. cut_when_due() is to be called until it is at_end().
  void drop();
  bool dropped() const { return dropped_; }
  void cut_when_due(Ids* done);

  // Says that nothing more will be sent; waits, not for long, for the kernel's room.
  void end();

 private:
  struct Outgoing {
    FrameHead head;
    const char* data = nullptr;  // what follows the head, and how much
    std::size_t bytes = 0;
    std::size_t sent = 0;  // with the head
    std::uint64_t id = 0;
    std::uint64_t address = 0;
  };
  // A message that the peer reads in this process's memory, and one of the peer's that
  // could not be read there, and whose bytes are to come.
  struct Unread {
    const char* data = nullptr;
    std::size_t bytes = 0;
    int tag = 0;
    std::uint64_t id = 0;
  };
  struct Owed {
    char* into = nullptr;
    std::size_t bytes = 0;
    int tag = 0;
    std::uint64_t id = 0;
  };

  // Nothing more is read from the connection, and nothing is sent: the peer learns it.
  void cut(Ids* done);
  // ---- the peer's memory, and this one's (socket_memory.cpp) ----
  void try_memory();
  bool can_read(std::uint64_t address, std::uint32_t number) const;
  bool hung_up() const;
  void ask_for_bytes(Ids* done);
  void send_bytes(Ids* done);  // of the oldest unread one
  void check_owed() const;     // throws where the head is not of one that is owed
  void bytes_come(Ids* done);  // of the oldest one that is owed
  void post(const FrameHead& head, Ids* done);  // a frame of the connection's own
  void parse(Ids* done);   // the heads of the buffer, up to one of a message
  void follow(Ids* done);  // takes what is here of a message that follows its head
  bool heard(Ids* done);   // a head: false for one of a message
  void fill(Ids* done);
  void drain(Ids* done);     // into the place of a message
  bool took(long count);     // of a read: false where nothing came
  void not_sent(Ids* done);  // by errno
  void drop_queue(Ids* done);
  void advance(std::size_t count, Ids* done);  // so much was sent

  const int rank_, fd_;
  const bool tcp_;
  std::string problem_ = "it ended without a goodbye";

  std::deque<Outgoing> out_;
  bool deaf_ = false;  // it takes nothing more
  std::deque<Unread> unread_;
  bool reads_here_ = false;
  pid_t process_ = 0;  // the peer's; 0 where its memory cannot be read
  std::unique_ptr<std::uint64_t> trial_;

  std::vector<char> buffer_;
  std::size_t at_ = 0, have_ = 0;  // what was read of it, what was filled
  bool readable_ = false, at_end_ = false, ended_ = false;
  FrameHead head_;
  bool has_head_ = false;  // of a message that was not received yet
  bool copying_ = false;
  std::deque<Owed> owed_;
  std::uint64_t address_ = 0;  // of the message in the peer's memory; 0 if it follows
  char* into_ = nullptr;       // where the rest of a message goes; null if none is open
  std::size_t left_ = 0;
  std::uint64_t id_ = 0;
  bool dropped_ = false;
  std::chrono::steady_clock::time_point cut_by_;
};

}  // namespace codedgrad
