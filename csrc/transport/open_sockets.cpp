#include "transport/open_sockets.h"

#include <pthread.h>
#include <unistd.h>

#include <mutex>
#include <set>

namespace codedgrad {
namespace {

// Never destroyed, because transports may be released after the program's end.
std::mutex& mutex() {
  static auto* const made = new std::mutex;
  return *made;
}
std::set<int>& sockets() {
  static auto* const made = new std::set<int>;
  return *made;
}

void before_fork() { mutex().lock(); }
void after_in_parent() { mutex().unlock(); }
void after_in_child() {
  for (const int fd : sockets()) ::close(fd);
  mutex().unlock();
}

}  // namespace

void close_in_children(int fd) {
  static const int registered =
      pthread_atfork(&before_fork, &after_in_parent, &after_in_child);
  (void)registered;
  std::lock_guard<std::mutex> lock(mutex());
  sockets().insert(fd);
}

void close_socket(int fd) {
  std::lock_guard<std::mutex> lock(mutex());
  sockets().erase(fd);
  ::close(fd);
}

}  // namespace codedgrad
