// Included by gram.cpp once for every instruction set, inside a namespace of its own,
// with CODEDGRAD_TARGET defined: no include guard.

template <typename T>
struct Vector {
  typedef T Type __attribute__((vector_size(32)));
  // As in memory: not aligned to more than an element.
  typedef T Loose __attribute__((vector_size(32), aligned(sizeof(T)), may_alias));
};

// out[r * stride + c] += sum_e rows[r][e] * cols[c][e], e < n. Lane l of an accumulator
// holds the elements e with e % lanes == l.
template <int R, int C, typename T>
CODEDGRAD_TARGET void tile(const T* const* rows, const T* const* cols, std::size_t n,
                           double* out, std::size_t stride) {
  using Loose = typename Vector<T>::Loose;
  constexpr std::size_t kLanes = 32 / sizeof(T);
  typename Vector<T>::Type sum[R][C] = {};
  std::size_t e = 0;
  for (; e + kLanes <= n; e += kLanes) {
    for (int r = 0; r < R; ++r) {
      const auto left = *reinterpret_cast<const Loose*>(rows[r] + e);
      for (int c = 0; c < C; ++c) {
        sum[r][c] += left * *reinterpret_cast<const Loose*>(cols[c] + e);
      }
    }
  }
  double total[R][C];
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < C; ++c) {
      T lanes[kLanes];
      std::memcpy(lanes, &sum[r][c], sizeof(lanes));
      for (std::size_t l = 0; e + l < n; ++l) lanes[l] += rows[r][e + l] * cols[c][e + l];
      double wide[kLanes];
      for (std::size_t l = 0; l < kLanes; ++l) wide[l] = lanes[l];
      for (std::size_t half = kLanes / 2; half > 0; half /= 2) {
        for (std::size_t l = 0; l < half; ++l) wide[l] += wide[l + half];
      }
      total[r][c] = wide[0];
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < C; ++c) out[r * stride + c] += total[r][c];
  }
}

// The block's share of the upper triangle of out [k, k].
template <typename T>
CODEDGRAD_TARGET void block(const T* const* in, std::size_t k, std::size_t n,
                            double* out) {
  for (std::size_t i = 0; i < k; i += 2) {
    for (std::size_t j = i; j < k; j += 4) {
      double* to = out + i * k + j;
      const std::size_t left = std::min<std::size_t>(4, k - j);
      if (k - i == 1) {
        tile<1, 1>(in + i, in + j, n, to, k);
      } else if (left == 1) {
        tile<2, 1>(in + i, in + j, n, to, k);
      } else if (left == 2) {
        tile<2, 2>(in + i, in + j, n, to, k);
      } else if (left == 3) {
        tile<2, 3>(in + i, in + j, n, to, k);
      } else {
        tile<2, 4>(in + i, in + j, n, to, k);
      }
    }
  }
}
