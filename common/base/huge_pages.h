#pragma once

// Huge pages for memory that several processes map.

#include <cstddef>

namespace packtrain {

inline constexpr size_t kHugePageBytes = size_t{2} << 20;

// Maps shared memory at a multiple of 2 MiB: `fd` from its beginning on, or with -1 new memory.
// MAP_FAILED as mmap; munmap ends it.
void* MapShared(int fd, size_t bytes, int protection);

// Lays a shared mapping that nobody has written yet into huge pages, which Linux from 6.1 on gives
// when asked for, whatever the system's setting for shared memory is (MADV_COLLAPSE). In ordinary
// ones every 4 KiB costs a fault when they are filled and a page walk when they are read. `data`
// and `bytes` are multiples of 2 MiB; all of it becomes zeros that are there. Returns how many
// bytes lie in huge pages: fewer where the kernel cannot, has none left, or would have to move too
// much for them. Takes about as long as clearing the memory with so many threads.
size_t TakeHugePages(std::byte* data, size_t bytes, int threads);

}  // namespace packtrain
