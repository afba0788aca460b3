// Stores past the caches: memory is written without being read first, and what the
// caches hold stays there. For outputs that nobody reads soon.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace codedgrad::ops {

// As memcpy; other threads may read `to` after end_of_copies().
inline void copy_past_caches(void* to, const void* from, std::size_t bytes) {
#if defined(__SSE2__)
  auto* out = static_cast<char*>(to);
  auto* in = static_cast<const char*>(from);
  const std::size_t head =
      std::min<std::size_t>(bytes, -reinterpret_cast<std::uintptr_t>(out) % 16);
  std::memcpy(out, in, head);
  std::size_t i = head;
  for (; i + 16 <= bytes; i += 16) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(out + i),
                     _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i)));
  }
  std::memcpy(out + i, in + i, bytes - i);
#else
  std::memcpy(to, from, bytes);
#endif
}

inline void end_of_copies() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

}  // namespace codedgrad::ops
