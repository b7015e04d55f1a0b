#include "core/sleep/contents.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>
#include <system_error>
#include <vector>

#include "core/base/errors.h"
#include "core/options/options.h"

namespace poolalloc {

namespace {

// What the kernel would find for new programs, caches that it can drop included; ~0 if it does not say.
Bytes free_host_memory() {
  std::ifstream file("/proc/meminfo");
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string name;
    Bytes kibibytes = 0;
    if (words >> name >> kibibytes && name == "MemAvailable:") return kibibytes << 10;
  }
  return ~Bytes{0};
}

class HostContents final : public Contents {
 public:
  explicit HostContents(Bytes bytes) : Contents(Keep::host, bytes) {
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw UsageError("the host has no addresses left for " + format_bytes(bytes));
    memory_ = static_cast<char*>(memory);
    madvise(memory_, bytes, MADV_DONTFORK);
    madvise(memory_, bytes, MADV_HUGEPAGE);
  }
  ~HostContents() override { munmap(memory_, bytes()); }

  bool write(Bytes at, const void* data, Bytes bytes) override {
    std::memcpy(memory_ + at, data, bytes);
    return true;
  }
  bool read(Bytes at, void* data, Bytes bytes) const override {
    std::memcpy(data, memory_ + at, bytes);
    return true;
  }

 private:
  char* memory_ = nullptr;
};

class FileContents final : public Contents {
 public:
  FileContents(Bytes bytes, int descriptor) : Contents(Keep::file, bytes), descriptor_(descriptor) {}
  ~FileContents() override { close(descriptor_); }

  bool write(Bytes at, const void* data, Bytes bytes) override {
    return transfer(at, static_cast<const char*>(data), bytes, pwrite);
  }
  bool read(Bytes at, void* data, Bytes bytes) const override {
    return transfer(at, static_cast<char*>(data), bytes, pread);
  }

 private:
  template <typename Data, typename Call>
  bool transfer(Bytes at, Data* data, Bytes bytes, Call call) const {
    while (bytes != 0) {
      const ssize_t done = call(descriptor_, data, bytes, static_cast<off_t>(at));
      if (done < 0 && errno == EINTR) continue;
      if (done <= 0) return false;
      at += static_cast<Bytes>(done);
      data += done;
      bytes -= static_cast<Bytes>(done);
    }
    return true;
  }

  const int descriptor_;
};

// A file without a name; where the file system has none of those, one whose name goes at once.
int open_nameless(const std::string& folder) {
  const int descriptor = open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  if (descriptor >= 0 || (errno != EOPNOTSUPP && errno != EISDIR)) return descriptor;
  const std::string pattern = folder + "/poolalloc-sleep-XXXXXX";
  std::vector<char> path(pattern.c_str(), pattern.c_str() + pattern.size() + 1);
  const int named = mkostemp(path.data(), O_CLOEXEC);  // 0600
  if (named >= 0) unlink(path.data());
  return named;
}

}  // namespace

std::unique_ptr<Contents> Contents::in_host(Bytes bytes) {
  if (const Bytes free_bytes = free_host_memory(); bytes > free_bytes)
    throw UsageError("the host has " + format_bytes(free_bytes) + " of memory free, and the contents are " +
                     format_bytes(bytes) + "; keep=\"file\" puts them in a file, keep=\"nothing\" drops them");
  return std::make_unique<HostContents>(bytes);
}

std::unique_ptr<Contents> Contents::in_file(const std::string& folder, Bytes bytes) {
  const int descriptor = open_nameless(folder);
  if (descriptor < 0)
    throw UsageError("no file can be made in the folder \"" + folder + "\": " + std::generic_category().message(errno));
  auto contents = std::make_unique<FileContents>(bytes, descriptor);
  if (const int error = bytes != 0 ? posix_fallocate(descriptor, 0, static_cast<off_t>(bytes)) : 0; error != 0)
    throw UsageError("the folder \"" + folder + "\" has no room for " + format_bytes(bytes) + ": " +
                     std::generic_category().message(error));
  return contents;
}

}  // namespace poolalloc
