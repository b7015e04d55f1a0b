// The side that opens a name. See ipc.h.
#include <unistd.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <vector>

#include "plugin/ipc.h"
#include "plugin/ipc_listener.h"
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
  ~Descriptors() { clear(); }
  Descriptors(const Descriptors&) = delete;
  Descriptors& operator=(const Descriptors&) = delete;

  void clear() {
    for (const int descriptor : all) close(descriptor);
    all.clear();
  }

  std::vector<int> all;
};

std::string whose(const Name& name) { return "process " + std::to_string(name.process); }

// Whatever is at the other end is another process's word: what it says is checked before it is used.
class Connection {
 public:
  explicit Connection(const Name& name) : name_(name) { connect_again(); }

  // The pieces of memory from this page on, as many as come at a time. Their descriptors take the place of those that
  // are there.
  std::vector<SharedPiece> ask(std::uint64_t first, Descriptors* descriptors) {
    const Request request{name_, first, ipc::kBatch};
    Reply reply;
    bool cut = false;
    // The other side may close a connection that was silent while others came. Every request stands alone.
    if (!try_ask(request, &reply, descriptors, &cut)) {
      if (errno == EAGAIN) gone();
      connect_again();
      if (!try_ask(request, &reply, descriptors, &cut)) gone();
    }
    if (reply.answer == Answer::kFreed)
      fail("it was freed there. The process that shares a tensor must keep it until others have opened it");
    if (reply.answer == Answer::kRefused) fail("it runs another version of poolalloc");
    if (reply.answer != Answer::kPieces) fail(std::string(reply.text, strnlen(reply.text, sizeof reply.text)));
    if (cut) fail("this process may open no more files (ulimit -n)");
    if (descriptors->all.empty() || descriptors->all.size() > ipc::kBatch) fail("its answer makes no sense");
    std::vector<SharedPiece> pieces;
    for (const int descriptor : descriptors->all) pieces.push_back({descriptor, reply.pages[pieces.size()]});
    return pieces;
  }

 private:
  [[noreturn]] void fail(const std::string& reason) const {
    throw DriverError("the CUDA memory of " + whose(name_) + " cannot be opened: " + reason);
  }
  [[noreturn]] void gone() const {
    fail(std::string("the process ") + (errno == EAGAIN ? "does not answer" : "has ended"));
  }

  void connect_again() {
    socket_.clear();
    const int made = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (made < 0) fail(std::string("there is no socket (") + std::strerror(errno) + ")");
    socket_.all.push_back(made);
    sockaddr_un address;
    const socklen_t length = ipc::address_of(name_, &address);
    setsockopt(made, SOL_SOCKET, SO_RCVTIMEO, &kPatience, sizeof kPatience);
    setsockopt(made, SOL_SOCKET, SO_SNDTIMEO, &kPatience, sizeof kPatience);  // of connect() too
    if (connect(made, reinterpret_cast<sockaddr*>(&address), length) != 0)
      fail(std::string("the process has ended, or is in another network namespace (") + std::strerror(errno) +
           "). It must live while others use its memory");
    uid_t user = 0;
    if (!ipc::runs_as(made, geteuid(), &user))
      fail("it belongs to another user (number " + std::to_string(user) + "; this process is number " +
           std::to_string(geteuid()) + "), and only processes of one user share memory");
  }

  // False if the connection has ended, or nothing came.
  bool try_ask(const Request& request, Reply* reply, Descriptors* descriptors, bool* cut) const {
    descriptors->clear();
    const int to = socket_.all.front();
    if (send(to, &request, sizeof request, MSG_NOSIGNAL) != static_cast<ssize_t>(sizeof request)) return false;
    iovec bytes{reply, sizeof *reply};
    alignas(cmsghdr) char control[CMSG_SPACE(ipc::kBatch * sizeof(int))];
    msghdr message{};
    message.msg_iov = &bytes;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    errno = 0;
    const ssize_t got = recvmsg(to, &message, MSG_CMSG_CLOEXEC);
    if (got > 0)
      for (cmsghdr* part = CMSG_FIRSTHDR(&message); part != nullptr; part = CMSG_NXTHDR(&message, part)) {
        if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
        std::vector<int>& all = descriptors->all;
        const std::size_t old = all.size();
        all.resize(old + (part->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        std::memcpy(all.data() + old, CMSG_DATA(part), part->cmsg_len - CMSG_LEN(0));
      }
    *cut = (message.msg_flags & MSG_CTRUNC) != 0;
    return got == static_cast<ssize_t>(sizeof *reply);
  }

  const Name& name_;
  Descriptors socket_;  // one
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
    throw UsageError("process " + std::to_string(getpid()) + " runs on poolalloc and was given CUDA memory that " +
                     (text.starts_with("pa-") ? "was shared by a process with another version of poolalloc"
                                              : "was shared by a process without poolalloc, by torch's own allocator") +
                     "; install the same poolalloc in every process that shares CUDA tensors");
  if (auto found = find_open(text, device)) return found;
  // Nothing is locked while another process is asked: of two threads that open one name, the second keeps the first's.
  Address address = 0;
  {
    Connection connection(name);
    Descriptors descriptors;
    std::vector<SharedPiece> pieces;
    std::size_t next = 0;
    address = plugin_allocator().open_shared(device, name.bytes / kPageBytes, [&](std::size_t page) {
      if (next == pieces.size()) {
        pieces = connection.ask(page, &descriptors);
        next = 0;
      }
      return pieces[next++];
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
