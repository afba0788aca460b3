#include "engine/packing.h"

#include "ops/cpu/convert.h"

namespace codedgrad {
namespace {

template <typename To, typename From>
void convert(const char* from, char* to, std::size_t count) {
  ops::convert(reinterpret_cast<const From*>(from), reinterpret_cast<To*>(to), count);
}

}  // namespace

void pack(const char* from, char* to, std::size_t count, Wire wire) {
  if (wire == Wire::kBFloat16) {
    convert<ops::BFloat16, float>(from, to, count);
  } else {
    convert<ops::Float16, float>(from, to, count);
  }
}

void unpack(const char* from, char* to, std::size_t count, Wire wire) {
  if (wire == Wire::kBFloat16) {
    convert<float, ops::BFloat16>(from, to, count);
  } else {
    convert<float, ops::Float16>(from, to, count);
  }
}

}  // namespace codedgrad
