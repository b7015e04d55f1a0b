// The side that opens a name. See ipc.h.
#include <unistd.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <vector>

#include "plugin/ipc.h"
#include "plugin/ipc_protocol.h"
#include "plugin/plugin.h"

namespace poolalloc {
namespace {

using ipc::Answer;
using ipc::Name;
using ipc::Reply;
using ipc::Request;

constexpr timeval kPatience{30, 0};  // for an answer: the other process may be stopped, or busy with the driver

class Descriptors {
 public:
  Descriptors() = default;
  ~Descriptors() {
    for (const int descriptor : all) close(descriptor);
  }
  Descriptors(const Descriptors&) = delete;
  Descriptors& operator=(const Descriptors&) = delete;

  std::vector<int> all;
};

std::string whose(const Name& name) { return "process " + std::to_string(name.process); }

class Connection {
 public:
  explicit Connection(const Name& name) : name_(name), socket_(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)) {
    sockaddr_un address;
    const socklen_t length = ipc::address_of(name, &address);
    setsockopt(socket_, SOL_SOCKET, SO_RCVTIMEO, &kPatience, sizeof kPatience);
    if (socket_ >= 0 && connect(socket_, reinterpret_cast<sockaddr*>(&address), length) == 0) return;
    const int error = errno;
    if (socket_ >= 0) close(socket_);
    throw DriverError("the CUDA memory of " + whose(name) + " cannot be opened: the process has ended, or is in " +
                      "another network namespace (" + std::strerror(error) +
                      "). It must live while others use its memory");
  }
  ~Connection() { close(socket_); }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  // Appends the descriptors of so many pages.
  void ask(std::uint64_t first, std::uint64_t count, std::vector<int>* descriptors) {
    const Request request{name_, first, count};
    if (send(socket_, &request, sizeof request, MSG_NOSIGNAL) != static_cast<ssize_t>(sizeof request)) gone();
    Reply reply;
    iovec bytes{&reply, sizeof reply};
    alignas(cmsghdr) char control[CMSG_SPACE(ipc::kBatch * sizeof(int))];
    msghdr message{};
    message.msg_iov = &bytes;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    const ssize_t got = recvmsg(socket_, &message, MSG_CMSG_CLOEXEC);
    if (got > 0)
      for (cmsghdr* part = CMSG_FIRSTHDR(&message); part != nullptr; part = CMSG_NXTHDR(&message, part)) {
        if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
        const std::size_t old = descriptors->size();
        descriptors->resize(old + (part->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        std::memcpy(descriptors->data() + old, CMSG_DATA(part), part->cmsg_len - CMSG_LEN(0));
      }
    if (got != static_cast<ssize_t>(sizeof reply)) gone();
    if (reply.answer == Answer::kFreed)
      throw DriverError("the CUDA memory of " + whose(name_) + " cannot be opened: it was freed there. The process " +
                        "that shares a tensor must keep it until others have opened it");
    if (reply.answer != Answer::kPages)
      throw DriverError("the CUDA memory of " + whose(name_) + " cannot be opened: " +
                        (reply.answer == Answer::kRefused ? "it runs another version of poolalloc" : reply.text));
    if ((message.msg_flags & MSG_CTRUNC) != 0 || reply.count != count)
      throw DriverError("the CUDA memory of " + whose(name_) +
                        " cannot be opened: this process may open no more files (ulimit -n)");
  }

 private:
  [[noreturn]] void gone() const {
    throw DriverError("the CUDA memory of " + whose(name_) +
                      " cannot be opened: the process ended or does not answer (" + std::strerror(errno) + ")");
  }

  const Name& name_;
  const int socket_;
};

// What is open now, by name and device. Never destroyed: tensors may die after static destructors.
struct Opened {
  std::mutex mutex;
  std::map<std::pair<std::string, DeviceIndex>, std::weak_ptr<void>> by_name;
};
Opened& opened() {
  static auto* const made = new Opened;
  return *made;
}

std::shared_ptr<void> find_open(const std::string& text, DeviceIndex device) {
  const std::lock_guard guard(opened().mutex);
  std::erase_if(opened().by_name, [](const auto& entry) { return entry.second.expired(); });
  const auto found = opened().by_name.find({text, device});
  return found != opened().by_name.end() ? found->second.lock() : nullptr;
}

void close_open(DeviceIndex device, Address address) noexcept {
  try {
    plugin_allocator().close_shared(device, address);
  } catch (const std::exception&) {  // the device is gone: so is the mapping
  }
}

}  // namespace

std::shared_ptr<void> ipc_open(const std::string& text, DeviceIndex device) {
  Name name;
  if (text.size() == sizeof name) std::memcpy(&name, text.data(), sizeof name);
  if (text.size() != sizeof name || name.version != ipc::kVersion)
    throw UsageError(
        "this CUDA memory was shared by a process without poolalloc, or with another version of it; install the same "
        "in every process that shares CUDA tensors");
  if (auto found = find_open(text, device)) return found;
  // Nothing is locked while another process is asked: of two threads that open one name, the second keeps the first's.
  Address address = 0;
  {
    Connection connection(name);
    Descriptors descriptors;
    const std::uint64_t pages = name.bytes / kPageBytes;
    address = plugin_allocator().open_shared(device, pages, [&](std::size_t page) {
      if (page % ipc::kBatch == 0) {
        for (const int descriptor : descriptors.all) close(descriptor);
        descriptors.all.clear();
        connection.ask(page, std::min<std::uint64_t>(pages - page, ipc::kBatch), &descriptors.all);
      }
      return descriptors.all[page % ipc::kBatch];
    });
  }
  std::shared_ptr<void> memory(reinterpret_cast<void*>(address),
                               [device, address](void*) { close_open(device, address); });
  const std::lock_guard guard(opened().mutex);
  std::weak_ptr<void>& entry = opened().by_name[{text, device}];
  if (auto other = entry.lock()) return other;
  entry = memory;
  return memory;
}

}  // namespace poolalloc
