// How Python's tensor libraries describe a tensor to C: the structures of DLPack 1, and
// the table of functions that a tensor's type offers (`__dlpack_c_exchange_api__`).
// Only what is used here is named.
#pragma once

#include <cstdint>

namespace codedgrad::dlpack {

constexpr char kCapsule[] = "dlpack_exchange_api";
constexpr std::uint32_t kMajor = 1;
constexpr std::int32_t kCpu = 1;
constexpr std::uint8_t kFloat = 2, kBfloat = 4;

struct Version {
  std::uint32_t major, minor;
};

struct Device {
  std::int32_t type, id;
};

struct Type {
  std::uint8_t code, bits;
  std::uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  std::int32_t dimensions;
  Type type;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements
  std::uint64_t byte_offset;
};

// A tensor that someone owns: `deleter` is called once, by any thread.
struct Managed {
  Version version;
  void* context;
  void (*deleter)(Managed*);
  std::uint64_t flags;
  Tensor tensor;
};

struct Api {
  Version version;
  Api* older;
  void* allocate;
  int (*managed_of)(void* object, Managed** out);
  int (*object_of)(Managed* tensor, void** out);
  int (*describe)(void* object, Tensor* out);
  void* current_stream;
};

}  // namespace codedgrad::dlpack
