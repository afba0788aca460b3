// What a message is, packed into a number: its address.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace codedgrad {

// An address that is no larger than the transport's largest tag travels as a tag, a
// longer one in a header (see mailbox.h).
using Address = std::int64_t;

enum class Kind : int { kRow = 0, kResult = 1, kProgress = 2, kControl = 3 };

struct Fields {
  Kind kind = Kind::kRow;
  int session = 0;
  std::int64_t step = 0;
  int bucket = 0;
  int row = 0;
};

constexpr int kShortSessionBits = 3, kLongSessionBits = 20;
constexpr int kSessions = 1 << kLongSessionBits;

// Control messages belong to no session. The other addresses of their kind are free.
constexpr Address kControlAddress = static_cast<Address>(Kind::kControl);
constexpr Address kHeaderAddress = kControlAddress | (1 << 2);
constexpr Address kLongAddress = Address{1} << 62;  // is set in long addresses

// An address is step | bucket | row | session | kind, from high bits to low ones. The
// step is taken modulo a power of two above twice the window: open steps differ by at
// most the window, so a receiver can tell the step from its own. The first few sessions
// have short addresses where these fit the transport's tags, and are then as fast as
// can be; all others have long ones.
class AddressCodec {
 public:
  AddressCodec(int session, int window, int buckets, int rows, int max_tag)
      : session_(session),
        step_bits_(bits(2 * std::int64_t{window} + 2)),
        bucket_bits_(bits(buckets)),
        row_bits_(bits(rows)) {
    const int need = 2 + step_bits_ + bucket_bits_ + row_bits_;
    long_ = session >= (1 << kShortSessionBits) || need + kShortSessionBits > 31 ||
            (Address{1} << (need + kShortSessionBits)) - 1 > max_tag;
    session_bits_ = long_ ? kLongSessionBits : kShortSessionBits;
    if (need + session_bits_ > 62) {
      throw std::invalid_argument("messages need addresses of " +
                                  std::to_string(need + session_bits_) +
                                  " bits and there are 62; use larger buckets "
                                  "(bucket_mb) or a smaller window");
    }
  }

  bool is_long() const { return long_; }

  Address encode(Kind kind, std::int64_t step, int bucket = 0, int row = 0) const {
    Address a = step & ((std::int64_t{1} << step_bits_) - 1);
    a = (a << bucket_bits_) | bucket;
    a = (a << row_bits_) | row;
    a = (a << session_bits_) | session_;
    a = (a << 2) | static_cast<Address>(kind);
    return long_ ? a | kLongAddress : a;
  }

  static Kind kind_of(Address a) { return static_cast<Kind>(a & 3); }
  static int session_of(Address a) {
    const int size = (a & kLongAddress) != 0 ? kLongSessionBits : kShortSessionBits;
    return static_cast<int>(a >> 2) & ((1 << size) - 1);
  }

  // `near` is the receiver's own step. Bucket and row may be larger than there are.
  Fields decode(Address a, std::int64_t near) const {
    Fields f;
    f.kind = kind_of(a);
    f.session = session_of(a);
    a = (a & ~kLongAddress) >> (2 + session_bits_);
    f.row = static_cast<int>(a & ((Address{1} << row_bits_) - 1));
    a >>= row_bits_;
    f.bucket = static_cast<int>(a & ((Address{1} << bucket_bits_) - 1));
    a >>= bucket_bits_;
    const std::int64_t span = std::int64_t{1} << step_bits_;
    std::int64_t ahead = (a - near) & (span - 1);
    if (ahead >= span / 2) ahead -= span;
    f.step = near + ahead;
    return f;
  }

 private:
  static int bits(std::int64_t values) {
    int n = 0;
    while ((std::int64_t{1} << n) < values) ++n;
    return n;
  }
  int session_ = 0;
  int step_bits_ = 0, bucket_bits_ = 0, row_bits_ = 0, session_bits_ = 0;
  bool long_ = false;
};

}  // namespace codedgrad
