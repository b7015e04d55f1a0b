// The side that shares: names, and the thread that hands out descriptors. See ipc.h.
#include <poll.h>
#include <pthread.h>
#include <sys/random.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "core/quiet_thread.h"
#include "plugin/ipc.h"
#include "plugin/ipc_protocol.h"
#include "plugin/plugin.h"

namespace poolalloc {
namespace {

using ipc::Answer;
using ipc::Name;
using ipc::Reply;
using ipc::Request;

// Never destroyed: the thread runs until the process ends.
class Server {
 public:
  // Throws DriverError.
  static const Server& running() {
    static std::mutex mutex;
    static Server* server = nullptr;
    const std::lock_guard guard(mutex);
    if (server == nullptr) server = new Server;
    return *server;
  }

  Name name(const SharedBlock& block) const {
    Name name = identity_;
    name.device = block.device;
    name.pages = block.pages;
    name.bytes = block.bytes;
    name.id = block.id;
    name.block = block.block;
    return name;
  }

 private:
  Server() {
    identity_.process = getpid();
    if (getrandom(identity_.secret.data(), identity_.secret.size(), 0) !=
            static_cast<ssize_t>(identity_.secret.size()) ||
        getrandom(&identity_.socket, sizeof identity_.socket, 0) != static_cast<ssize_t>(sizeof identity_.socket))
      throw DriverError("memory cannot be shared: the kernel gives no random numbers");
    sockaddr_un address;
    const socklen_t length = ipc::address_of(identity_, &address);
    listener_ = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (listener_ < 0 || bind(listener_, reinterpret_cast<sockaddr*>(&address), length) != 0 ||
        listen(listener_, 64) != 0)
      throw DriverError(std::string("memory cannot be shared: no socket: ") + std::strerror(errno));
    // A child of fork() has no such thread, and must not keep the address alive when this process ends.
    forked_listener_ = listener_;
    pthread_atfork(nullptr, nullptr, [] {
      if (const int listener = std::exchange(forked_listener_, -1); listener >= 0) close(listener);
    });
    quiet_thread([this] { serve(); }).detach();
  }

  [[noreturn]] void serve() {
    std::vector<pollfd> sockets{{listener_, POLLIN, 0}};
    for (;;) {
      if (poll(sockets.data(), sockets.size(), -1) < 0) continue;
      if ((sockets[0].revents & POLLIN) != 0) {
        const int client = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (client >= 0)
          sockets.push_back({client, POLLIN, 0});
        else if (errno == EMFILE || errno == ENFILE)  // it goes on waiting: others must close files first
          std::this_thread::sleep_for(kPause);
      }
      for (std::size_t i = sockets.size(); i-- > 1;) {
        if (sockets[i].revents == 0 || answer(sockets[i].fd)) continue;
        close(sockets[i].fd);
        sockets.erase(sockets.begin() + static_cast<std::ptrdiff_t>(i));
      }
    }
  }

  // False if the client has gone, or does not speak as it should.
  bool answer(int client) const {
    Request request;
    const ssize_t got = recv(client, &request, sizeof request, 0);
    if (got < 0 && errno == EAGAIN) return true;
    if (got != static_cast<ssize_t>(sizeof request)) return false;
    Reply reply;
    std::vector<int> descriptors;
    if (request.name.version != ipc::kVersion || request.name.secret != identity_.secret ||
        request.count > ipc::kBatch) {
      reply.answer = Answer::kRefused;
    } else {
      try {
        const Name& name = request.name;
        const SharedBlock block{static_cast<DeviceIndex>(name.device), name.pages, name.bytes, name.id, name.block};
        const bool there = plugin_allocator().export_pages(block, request.first, request.count, &descriptors);
        reply.answer = there ? Answer::kPages : Answer::kFreed;
      } catch (const std::exception& error) {
        std::snprintf(reply.text, sizeof reply.text, "%s", error.what());
      }
    }
    if (reply.answer == Answer::kPages) reply.count = static_cast<std::uint32_t>(descriptors.size());
    const bool sent = send_with(client, reply, descriptors);
    for (const int descriptor : descriptors) close(descriptor);
    return sent;
  }

  static bool send_with(int client, const Reply& reply, const std::vector<int>& descriptors) {
    iovec bytes{const_cast<Reply*>(&reply), sizeof reply};
    alignas(cmsghdr) char control[CMSG_SPACE(ipc::kBatch * sizeof(int))] = {};
    msghdr message{};
    message.msg_iov = &bytes;
    message.msg_iovlen = 1;
    if (reply.count != 0) {
      message.msg_control = control;
      message.msg_controllen = CMSG_SPACE(reply.count * sizeof(int));
      cmsghdr* header = CMSG_FIRSTHDR(&message);
      header->cmsg_level = SOL_SOCKET;
      header->cmsg_type = SCM_RIGHTS;
      header->cmsg_len = CMSG_LEN(reply.count * sizeof(int));
      std::memcpy(CMSG_DATA(header), descriptors.data(), reply.count * sizeof(int));
    }
    return sendmsg(client, &message, MSG_NOSIGNAL) == static_cast<ssize_t>(sizeof reply);
  }

  static constexpr auto kPause = std::chrono::milliseconds(20);
  static inline int forked_listener_ = -1;

  Name identity_;
  int listener_ = -1;
};

}  // namespace

IpcName ipc_share(Address address) {
  const SharedBlock block = plugin_allocator().share(address);
  const Name name = Server::running().name(block);
  return {std::string(reinterpret_cast<const char*>(&name), sizeof name), address - block.pages};
}

}  // namespace poolalloc
