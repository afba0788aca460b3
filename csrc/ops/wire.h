#pragma once

namespace codedgrad::ops {

// What a sum is rounded to before it is stored.
enum class Wire { kAsIs, kBFloat16, kFloat16 };

}  // namespace codedgrad::ops
