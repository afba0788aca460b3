// Included by gram.cpp once for every instruction set, inside a namespace of its own,
// with CODEDGRAD_TARGET defined: no include guard. fuse(a, b, &c) is c = a * b + c,
// rounded once; add_lanes(v, to) is to[l] += v[l] in double.

// With r over R vectors and c over C others, or with kDiagonal over the same ones and
// c >= r only: out[(r * stride + c) * lanes + l] += sum_e rows[r][e] * cols[c][e] over
// the e < n with e % lanes == l. Sums of one block in T, of blocks in double.
// 2 x 4 and 4 on the diagonal fit 16 registers. Unless null, ahead[0] and ahead[1] are
// fetched meanwhile, a line at a time: what a later block reads.
template <int R, int C, bool kDiagonal, typename T>
CODEDGRAD_TARGET void tile(const T* const* rows, const T* const* cols, std::size_t n,
                           double* out, std::size_t stride, const char* const* ahead) {
  using V = Vector<T>;
  typename V::Type sum[R][C] = {};
  std::size_t e = 0;
  for (std::size_t turn = 0; e + V::kLanes <= n; e += V::kLanes, ++turn) {
    if (ahead != nullptr) __builtin_prefetch(ahead[turn % 2] + turn / 2 * kLine);
    typename V::Type right[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      right[c] = *reinterpret_cast<const typename V::Loose*>(cols[c] + e);
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const typename V::Type left =
          kDiagonal ? right[r]
                    : *reinterpret_cast<const typename V::Loose*>(rows[r] + e);
#pragma GCC unroll 4
      for (int c = kDiagonal ? r : 0; c < C; ++c) {
        fuse(left, right[c], &sum[r][c]);
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int c = kDiagonal ? r : 0; c < C; ++c) {
      double* to = out + (r * stride + c) * V::kLanes;
      add_lanes(sum[r][c], to);
      for (std::size_t l = 0; e + l < n; ++l) to[l] += rows[r][e + l] * cols[c][e + l];
    }
  }
}

// The block's share of the upper triangle of out [k, k, lanes]. `ahead`: 2 per tile.
template <typename T>
CODEDGRAD_TARGET void block(const T* const* in, std::size_t k, std::size_t n,
                            double* out, const char* const* ahead) {
  using Tile = void (*)(const T* const*, const T* const*, std::size_t, double*,
                        std::size_t, const char* const*);
  static constexpr Tile kOnDiagonal[] = {tile<1, 1, true, T>, tile<2, 2, true, T>,
                                         tile<3, 3, true, T>, tile<4, 4, true, T>};
  static constexpr Tile kBeside[] = {tile<2, 1, false, T>, tile<2, 2, false, T>,
                                     tile<2, 3, false, T>, tile<2, 4, false, T>};
  auto at = [&](std::size_t i, std::size_t j) {
    return out + (i * k + j) * Vector<T>::kLanes;
  };
  auto two = [&] {
    const char* const* next = ahead;
    if (ahead != nullptr) ahead += 2;
    return next;
  };
  for (std::size_t i = 0; i < k; i += 4) {
    kOnDiagonal[std::min<std::size_t>(4, k - i) - 1](in + i, in + i, n, at(i, i), k,
                                                     two());
    for (std::size_t j = i + 4; j < k; j += 4) {
      const Tile beside = kBeside[std::min<std::size_t>(4, k - j) - 1];
      beside(in + i, in + j, n, at(i, j), k, two());
      beside(in + i + 2, in + j, n, at(i + 2, j), k, two());
    }
  }
}
