// Contents in a file that processes share; see shared_contents.h.
#include "simgpu/shared_contents.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstring>

#include "simgpu/physical.h"
#include "simgpu/simulator.h"

namespace poolalloc::simgpu {
namespace {

constexpr std::uint64_t kMagic = 0x76616c6c6f637368;
constexpr std::uint64_t kHeaderBytes = 64 << 10;  // a whole page of the host, whatever its size

// Before the contents of each range.
struct Header {
  std::uint64_t magic;
  std::int64_t process;  // that exported it
  std::uint64_t extent;
  std::uint64_t size;
  int device;
  std::atomic<std::uint32_t> processes;  // that have it open
};

struct File {
  int descriptor = -1;
  std::uint64_t end = 0;
  std::int64_t process = 0;
};

// A child of fork() has its parent's number, but no file of its own.
File& file() {
  static File made;
  if (made.descriptor < 0 || made.process != getpid()) made = {memfd_create("simgpu-shared", MFD_CLOEXEC), 0, getpid()};
  return made;
}

Header* header_of(const Extent& extent) { return reinterpret_cast<Header*>(extent.contents - kHeaderBytes); }

char* map_range(int descriptor, std::uint64_t position, std::uint64_t size) {
  void* memory = mmap(nullptr, kHeaderBytes + size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, descriptor,
                      static_cast<off_t>(position));
  return memory != MAP_FAILED ? static_cast<char*>(memory) : nullptr;
}

int reopen(const char* path, std::uint64_t position) {
  const int descriptor = open(path, O_RDWR | O_CLOEXEC);
  if (descriptor >= 0) lseek(descriptor, static_cast<off_t>(position), SEEK_SET);
  return descriptor;
}

}  // namespace

bool share_contents(Extent& extent) {
  if (extent.shared) return true;
  File& own = file();
  const std::uint64_t position = own.end;
  const std::uint64_t end = position + kHeaderBytes + round_up(extent.size, kGranularity);
  if (own.descriptor < 0 || ftruncate(own.descriptor, static_cast<off_t>(end)) != 0) return false;
  char* memory = map_range(own.descriptor, position, extent.size);
  if (!memory) return false;
  own.end = end;
  new (memory) Header{kMagic, getpid(), extent.id, extent.size, extent.device->index, {1}};
  char* contents = memory + kHeaderBytes;
  if (extent.contents) {
    for_each_known(extent, 0, extent.size, [&](std::uint64_t start, std::uint64_t end) {
      std::memcpy(contents + start, extent.contents + start, end - start);
    });
    munmap(extent.contents, extent.size);
  }
  extent.contents = contents;
  extent.shared = true;
  extent.shared_position = position;
  return true;
}

int shared_file() { return file().descriptor; }

int name_shared(const Extent& extent) {
  char path[64];
  std::snprintf(path, sizeof path, "/proc/self/fd/%d", file().descriptor);
  return reopen(path, extent.shared_position);
}

Extent* open_shared(int descriptor) {
  const off_t position = lseek(descriptor, 0, SEEK_CUR);
  alignas(Header) char bytes[sizeof(Header)];
  const auto* header = reinterpret_cast<const Header*>(bytes);
  if (position < 0 || pread(descriptor, bytes, sizeof bytes, position) != static_cast<ssize_t>(sizeof bytes) ||
      header->magic != kMagic || !device_exists(header->device))
    return nullptr;
  if (header->process == getpid()) {
    Extent* same = nullptr;
    sim().allocations.for_each([&](Extent* extent) {
      if (extent->id == header->extent) same = extent;
    });
    if (same) {
      retain_extent(*same);
      return same;
    }
  }
  char* memory = map_range(descriptor, static_cast<std::uint64_t>(position), header->size);
  if (!memory) return nullptr;
  Device& device = *sim().devices[static_cast<std::size_t>(header->device)];
  Extent* extent = create_extent(device, header->size, false);
  extent->contents = memory + kHeaderBytes;
  extent->shared = true;
  extent->shared_position = static_cast<std::uint64_t>(position);
  ++header_of(*extent)->processes;
  return extent;
}

Extent* open_shared(std::int64_t process, int file, std::uint64_t position) {
  char path[96];
  std::snprintf(path, sizeof path, "/proc/%lld/fd/%d", static_cast<long long>(process), file);
  const int descriptor = reopen(path, position);
  if (descriptor < 0) return nullptr;
  Extent* extent = open_shared(descriptor);
  close(descriptor);
  return extent;
}

void unshare_contents(Extent& extent) {
  Header* header = header_of(extent);
  // The last one gives the host its memory back.
  if (--header->processes == 0) madvise(header, kHeaderBytes + extent.size, MADV_REMOVE);
  munmap(header, kHeaderBytes + extent.size);
  extent.contents = nullptr;
}

}  // namespace poolalloc::simgpu
