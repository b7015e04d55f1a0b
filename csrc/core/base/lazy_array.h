// A zeroed array sized for the worst case, whose memory the kernel gives page by page on first touch. For tables over
// address ranges that are mostly never used.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <new>
#include <type_traits>

namespace poolalloc {

template <typename T>
class LazyArray {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  // Throws std::bad_alloc if the process has no address space left.
  explicit LazyArray(std::size_t size) : bytes_(size * sizeof(T)) {
    void* memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    data_ = static_cast<T*>(memory);
  }
  ~LazyArray() { munmap(static_cast<void*>(data_), bytes_); }
  LazyArray(const LazyArray&) = delete;
  LazyArray& operator=(const LazyArray&) = delete;

  // Entries first .. end - 1 are zero: the memory of whole pages of the host's among them goes back.
  void discard(std::size_t first, std::size_t end) {
    static const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    const std::size_t from = (first * sizeof(T) + page - 1) / page * page, to = end * sizeof(T) / page * page;
    if (from < to) madvise(reinterpret_cast<char*>(data_) + from, to - from, MADV_DONTNEED);
  }

  T& operator[](std::size_t index) { return data_[index]; }
  const T& operator[](std::size_t index) const { return data_[index]; }
  T* data() { return data_; }
  const T* data() const { return data_; }

 private:
  const std::size_t bytes_;
  T* data_ = nullptr;
};

}  // namespace poolalloc
