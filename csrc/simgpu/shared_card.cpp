// The file of a shared card and its locks; see shared_card.h.
#include "simgpu/shared_card.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "simgpu/config.h"

namespace poolalloc::simgpu {
namespace {

constexpr std::uint64_t kMagic = 0x31647261636c6f70;  // changes with the layout of the file
constexpr int kMaxProcesses = 256;

// The bytes of the file that stand for the mutex and for the life of the owner of each slot.
constexpr off_t kMutex = 0;
constexpr off_t kFirstSlot = 1;
constexpr off_t kToTheEnd = 0;

struct flock record(short type, off_t start, off_t bytes) {
  struct flock lock = {};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  lock.l_start = start;
  lock.l_len = bytes;
  return lock;
}

bool set_lock(int descriptor, int command, short type, off_t byte) {
  struct flock lock = record(type, byte, 1);
  int result;
  do {
    result = fcntl(descriptor, command, &lock);
    // The kernel takes two processes for deadlocked where one's thread waits for a lock of the program's own. The mutex
    // is held for microseconds only, so that passes.
  } while (result != 0 && (errno == EINTR || errno == EDEADLK));
  return result == 0;
}

bool others_hold(int descriptor, off_t start, off_t bytes) {
  struct flock lock = record(F_WRLCK, start, bytes);
  return fcntl(descriptor, F_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
}

bool others_live(int descriptor) { return others_hold(descriptor, kFirstSlot, kToTheEnd); }

// Excludes the other processes. Threads of this one exclude each other by the simulator's lock.
class Exclusion {
 public:
  explicit Exclusion(int descriptor)
      : descriptor_(descriptor), held_(set_lock(descriptor, F_SETLKW, F_WRLCK, kMutex)) {}
  ~Exclusion() {
    if (held_) set_lock(descriptor_, F_SETLK, F_UNLCK, kMutex);
  }
  Exclusion(const Exclusion&) = delete;
  Exclusion& operator=(const Exclusion&) = delete;
  explicit operator bool() const { return held_; }

 private:
  int descriptor_;
  bool held_;
};

// Why a file that was opened is not one of this user's own, or null.
const char* what_is_wrong_with(const struct stat& status) {
  if (!S_ISREG(status.st_mode)) return "is no plain file";
  if (status.st_uid != geteuid()) return "belongs to another user";
  if ((status.st_mode & (S_IRWXG | S_IRWXO)) != 0) return "can be opened by other users";
  if (status.st_nlink > 1) return "has another name";
  return nullptr;
}

const char* why_it_does_not_open(int error) {
  if (error == ELOOP) return "is a symbolic link";
  if (error == EACCES) return "belongs to another user, or its mode forbids to open it";
  return nullptr;
}

}  // namespace

// Starts as zeros.
struct SharedCard::File {
  struct Slot {
    std::atomic<std::int64_t> process;
    std::atomic<std::uint64_t> used[kMaxDevices];

    void clear(std::int64_t owner) {
      for (auto& bytes : used) bytes = 0;
      process = owner;
    }
  };

  std::uint64_t magic;
  char gpu[32];
  std::uint64_t memory_bytes;  // of each device
  int devices;
  int slots_ever_used;  // the others are empty
  Slot slots[kMaxProcesses];
};

SharedCard::SharedCard(const Config& config)
    : config_(config), path_("/dev/shm/poolalloc-sim-" + std::to_string(geteuid()) + "-" + config.shared) {}

bool SharedCard::join() {
  if (file_) return true;
  if (refused_) return false;
  const std::string why = open_file();
  if (why.empty()) return true;
  refused_ = true;
  std::fprintf(stderr, "simgpu: POOLALLOC_SIM_SHARED is '%s', but %s; no device is simulated\n", config_.shared.c_str(),
               why.c_str());
  return false;
}

std::string SharedCard::open_file() {
  for (;;) {
    const int descriptor =
        open(path_.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK, S_IRUSR | S_IWUSR);
    if (descriptor < 0) {
      const char* known = why_it_does_not_open(errno);
      return path_ + " " + (known ? known : std::string("cannot be opened: ") + std::strerror(errno));
    }
    bool gone = false;
    const std::string why = enter_file(descriptor, &gone);
    if (slot_ >= 0) return "";
    close_file();
    close(descriptor);
    if (!gone) return why;
  }
}

// Sets `gone` where the last process has removed the file since it was opened.
std::string SharedCard::enter_file(int descriptor, bool* gone) {
  struct stat status;
  if (fstat(descriptor, &status) != 0) return path_ + " cannot be read";
  if (const char* wrong = what_is_wrong_with(status)) return path_ + " " + wrong;
  const Exclusion exclusion(descriptor);
  if (!exclusion || fstat(descriptor, &status) != 0) return path_ + " cannot be locked: " + std::strerror(errno);
  *gone = status.st_nlink == 0;
  if (*gone) return "";

  // Whoever comes first makes it anew, so what dead processes left does not matter.
  const bool first = !others_live(descriptor);
  if (first && ftruncate(descriptor, 0) != 0) return path_ + " cannot be written: " + std::strerror(errno);
  if (first) {
    // All of its pages, or a full /dev/shm would end the process at some later store.
    if (const int error = posix_fallocate(descriptor, 0, sizeof(File)); error != 0)
      return path_ + " cannot be written: " + std::strerror(error);
  } else if (status.st_size != sizeof(File)) {
    return "another version of poolalloc simulates that card";
  }
  void* memory = mmap(nullptr, sizeof(File), PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  if (memory == MAP_FAILED) return path_ + " cannot be mapped: " + std::strerror(errno);
  descriptor_ = descriptor;
  file_ = static_cast<File*>(memory);
  if (first) {
    file_->magic = kMagic;
    std::strncpy(file_->gpu, config_.card->key, sizeof file_->gpu - 1);
    file_->memory_bytes = config_.memory_bytes;
    file_->devices = config_.devices;
  }
  if (file_->magic != kMagic) return "another version of poolalloc simulates that card";
  if (std::strcmp(file_->gpu, config_.card->key) != 0)
    return std::string("its gpu is ") + file_->gpu + ", not " + config_.card->key;
  if (file_->memory_bytes != config_.memory_bytes)
    return "its memory is " + std::to_string(file_->memory_bytes) + " bytes, not " +
           std::to_string(config_.memory_bytes);
  if (file_->devices != config_.devices)
    return "its number of devices is " + std::to_string(file_->devices) + ", not " + std::to_string(config_.devices);
  for (int slot = 0; slot < kMaxProcesses && slot_ < 0; ++slot) {
    if (set_lock(descriptor, F_SETLK, F_WRLCK, kFirstSlot + slot)) slot_ = slot;
  }
  if (slot_ < 0) return std::to_string(kMaxProcesses) + " processes share that card already";
  file_->slots[slot_].clear(getpid());
  file_->slots_ever_used = std::max(file_->slots_ever_used, slot_ + 1);
  return "";
}

bool SharedCard::take(int device, std::uint64_t bytes) {
  if (!join()) return false;
  const Exclusion exclusion(descriptor_);
  if (!exclusion) return false;
  if (sum(device) + bytes > file_->memory_bytes) drop_the_dead();
  if (sum(device) + bytes > file_->memory_bytes) return false;
  file_->slots[slot_].used[device] += bytes;
  return true;
}

void SharedCard::give(int device, std::uint64_t bytes) {
  if (!file_) return;
  // A child of fork() may free what its parent took; that is none of its slot.
  std::atomic<std::uint64_t>& used = file_->slots[slot_].used[device];
  used -= std::min(used.load(), bytes);
}

std::uint64_t SharedCard::used(int device) {
  if (!join()) return config_.memory_bytes;
  const Exclusion exclusion(descriptor_);
  if (exclusion) drop_the_dead();
  return sum(device);
}

std::vector<ProcessUse> SharedCard::processes(int device) {
  std::vector<ProcessUse> found;
  if (!join()) return found;
  const Exclusion exclusion(descriptor_);
  if (exclusion) drop_the_dead();
  for (int slot = 0; slot < file_->slots_ever_used; ++slot) {
    const File::Slot& of = file_->slots[slot];
    if (const std::uint64_t bytes = of.used[device]; bytes > 0) found.push_back({of.process, bytes});
  }
  return found;
}

void SharedCard::leave() {
  refused_ = true;
  if (!file_) return;
  {
    const Exclusion exclusion(descriptor_);
    file_->slots[slot_].clear(0);
    // Before the question who is left, or two that leave at once would each see the other.
    set_lock(descriptor_, F_SETLK, F_UNLCK, kFirstSlot + slot_);
    struct stat status;
    // A file without a name was removed by hand, and the name may be that of another one by now.
    if (exclusion && !others_live(descriptor_) && fstat(descriptor_, &status) == 0 && status.st_nlink > 0)
      unlink(path_.c_str());
  }
  close(descriptor_);
  close_file();
}

void SharedCard::leave_to_parent() {
  if (!file_) return;
  close(descriptor_);
  close_file();
}

std::uint64_t SharedCard::sum(int device) const {
  std::uint64_t bytes = 0;
  for (int slot = 0; slot < file_->slots_ever_used; ++slot) bytes += file_->slots[slot].used[device];
  return bytes;
}

void SharedCard::drop_the_dead() {
  for (int slot = 0; slot < file_->slots_ever_used; ++slot) {
    File::Slot& of = file_->slots[slot];
    if (slot != slot_ && of.process != 0 && !others_hold(descriptor_, kFirstSlot + slot, 1)) of.clear(0);
  }
}

// The mapping only: the locks go with the descriptor, which whoever opened it closes.
void SharedCard::close_file() {
  if (file_) munmap(file_, sizeof(File));
  file_ = nullptr;
  descriptor_ = -1;
  slot_ = -1;
}

}  // namespace poolalloc::simgpu
