// One binary for all x86-64 machines, wide registers where the machine has them: put
// before a function whose loops the compiler vectorises. Only for element by element
// arithmetic, which has the same bits in every clone.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_THREAD__)
#define CODEDGRAD_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define CODEDGRAD_CLONES
#endif
