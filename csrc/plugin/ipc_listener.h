// The exporting side's connections: who may connect, how many, and for how long they may say nothing. See ipc.h.
//
// An abstract socket has no owner: every user of the machine can connect to it, and could take all descriptors that
// this process may open. So connections of other users are closed at once, and those of this user are bounded; where
// one too many comes, the one that has been silent for longest is closed, and may connect again. Not here: what is
// answered (ipc_server.cpp).
#pragma once

#include <sys/types.h>
#include <unistd.h>

#include <chrono>
#include <cstddef>
#include <functional>
#include <vector>

#include "plugin/ipc_protocol.h"

namespace poolalloc::ipc {

struct ListenerLimits {
  uid_t user = geteuid();
  std::size_t connections = 64;
  std::chrono::milliseconds silence{10'000};  // of a connection, from its last request
};

class Listener {
 public:
  // Fills in the reply, and the descriptors that go with it: the listener closes them.
  using Respond = std::function<void(const Request&, Reply*, std::vector<int>*)>;

  // Of a socket that listens, does not block and stays the caller's.
  Listener(int socket, Respond respond, ListenerLimits limits = {})
      : socket_(socket), respond_(std::move(respond)), limits_(limits) {}
  ~Listener();
  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;

  // Waits until something happens, and does what there is to do.
  void step();
  std::size_t connections() const { return clients_.size(); }

 private:
  using Clock = std::chrono::steady_clock;
  struct Client {
    int socket = -1;
    Clock::time_point heard;
  };

  int patience() const;
  void accept_one();
  void close_silent();
  bool answer(Client* client) const;

  const int socket_;
  const Respond respond_;
  const ListenerLimits limits_;
  std::vector<Client> clients_;
};

// Whether the process at the other end of a connected socket runs as this user; also says as whom it runs.
bool runs_as(int socket, uid_t user, uid_t* found = nullptr);

}  // namespace poolalloc::ipc
