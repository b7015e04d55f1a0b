// The side that shares: names, and the thread that hands out descriptors. See ipc.h.
#include <pthread.h>
#include <sys/random.h>
#include <unistd.h>

#include <cerrno>
#include <mutex>
#include <utility>
#include <vector>

#include "core/base/quiet_thread.h"
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

  [[noreturn]] void serve() const {
    ipc::Listener listener(listener_, [this](const Request& request, Reply* reply, std::vector<int>* descriptors) {
      respond(request, reply, descriptors);
    });
    for (;;) listener.step();
  }

  void respond(const Request& request, Reply* reply, std::vector<int>* descriptors) const {
    const Name& name = request.name;
    if (name.version != ipc::kVersion || name.secret != identity_.secret || request.count > ipc::kBatch) {
      reply->answer = Answer::kRefused;
      return;
    }
    std::vector<SharedPiece> pieces;
    try {
      const SharedBlock block{static_cast<DeviceIndex>(name.device), name.pages, name.bytes, name.id, name.block};
      const bool there = plugin_allocator().export_pieces(block, request.first, request.count, &pieces);
      reply->answer = there ? Answer::kPieces : Answer::kFreed;
    } catch (const std::exception& error) {
      std::snprintf(reply->text, sizeof reply->text, "%s", error.what());
    }
    for (const SharedPiece& piece : pieces) {
      reply->pages[descriptors->size()] = piece.pages;
      descriptors->push_back(piece.descriptor);
    }
    if (reply->answer == Answer::kPieces) return;
    for (const int descriptor : *descriptors) close(descriptor);  // of a block that was freed meanwhile
    descriptors->clear();
  }

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
