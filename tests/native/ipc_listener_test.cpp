// Who may connect to a process that shares memory, how many at a time, and for how long they may say nothing.
#include "plugin/ipc_listener.h"

#include <doctest/doctest.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <utility>
#include <vector>

using namespace poolalloc::ipc;
using std::chrono::milliseconds;

namespace {

constexpr milliseconds kLong{1'000'000};

struct Rig {
  explicit Rig(ListenerLimits limits)
      : socket([this] {
          name.process = getpid();
          sockaddr_un address;
          const socklen_t length = address_of(name, &address);
          const int made = ::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0);
          CHECK((bind(made, reinterpret_cast<sockaddr*>(&address), length) == 0 && listen(made, 64) == 0));
          return made;
        }()),
        listener(
            socket,
            [this](const Request& request, Reply* reply, std::vector<int>* descriptors) {
              asked.push_back(request.first);
              reply->answer = Answer::kPieces;
              for (std::uint64_t i = 0; i < request.count; ++i) descriptors->push_back(dup(0));
            },
            limits) {}
  ~Rig() {
    for (const int client : clients) close(client);
    close(socket);
  }

  // Returns the client's socket.
  int connect() {
    sockaddr_un address;
    const socklen_t length = address_of(name, &address);
    clients.push_back(::socket(AF_UNIX, SOCK_SEQPACKET, 0));
    CHECK(::connect(clients.back(), reinterpret_cast<sockaddr*>(&address), length) == 0);
    return clients.back();
  }
  int accepted() {
    const int client = connect();
    listener.step();
    return client;
  }
  static void ask(int client, std::uint64_t number, std::uint64_t count = 0) {
    const Request request{{}, number, count};
    CHECK(send(client, &request, sizeof request, MSG_NOSIGNAL) == static_cast<ssize_t>(sizeof request));
  }
  // What a client has got: 1 an answer, 0 the end of the connection, -1 nothing.
  static int heard(int client) {
    Reply reply;
    const ssize_t got = recv(client, &reply, sizeof reply, MSG_DONTWAIT);
    return got > 0 ? 1 : static_cast<int>(got);
  }

  Name name;
  std::vector<std::uint64_t> asked;
  std::vector<int> clients;
  const int socket;
  Listener listener;
};

TEST_CASE("other users are closed at once and not answered") {
  Rig rig({geteuid() + 1, 8, kLong});
  const int client = rig.connect();
  Rig::ask(client, 7);
  rig.listener.step();
  CHECK((rig.asked.empty() && rig.listener.connections() == 0));
  CHECK(Rig::heard(client) <= 0);
}

TEST_CASE("a request is answered while others are silent") {
  Rig rig({geteuid(), 8, kLong});
  const int silent = rig.accepted();
  const int asking = rig.accepted();
  Rig::ask(asking, 3, 2);
  rig.listener.step();
  CHECK(rig.asked == std::vector<std::uint64_t>{3});
  CHECK((Rig::heard(asking) == 1 && Rig::heard(silent) == -1));
  CHECK(rig.listener.connections() == 2);
}

TEST_CASE("what was asked before the connection was taken is answered with it") {
  Rig rig({geteuid(), 8, kLong});
  const int client = rig.connect();
  Rig::ask(client, 5);
  rig.listener.step();
  CHECK(Rig::heard(client) == 1);
}

TEST_CASE("one too many closes the one that was silent for longest") {
  Rig rig({geteuid(), 3, kLong});
  const int first = rig.accepted();
  const int second = rig.accepted();
  const int third = rig.accepted();
  Rig::ask(first, 1);
  rig.listener.step();
  CHECK(Rig::heard(first) == 1);
  const int fourth = rig.accepted();
  CHECK(rig.listener.connections() == 3);
  CHECK((Rig::heard(second) == 0 && Rig::heard(first) == -1 && Rig::heard(third) == -1 && Rig::heard(fourth) == -1));
}

TEST_CASE("a flood of connections stays bounded and is survived") {
  Rig rig({geteuid(), 4, kLong});
  for (int i = 0; i < 200; ++i) rig.accepted();
  CHECK(rig.listener.connections() == 4);
  const int client = rig.accepted();
  Rig::ask(client, 9);
  rig.listener.step();
  CHECK(Rig::heard(client) == 1);
}

TEST_CASE("who says nothing for long is closed") {
  Rig rig({geteuid(), 8, milliseconds(1)});
  const int client = rig.accepted();
  while (rig.listener.connections() != 0) rig.listener.step();  // returns when the time is over
  CHECK(Rig::heard(client) == 0);
}

TEST_CASE("a packet that is no request ends the connection") {
  Rig rig({geteuid(), 8, kLong});
  const std::vector<char> junk(sizeof(Request) + 1);
  for (const std::size_t bytes : {std::size_t{1}, sizeof(Request) - 1, sizeof(Request) + 1}) {
    const int client = rig.accepted();
    CHECK(send(client, junk.data(), bytes, MSG_NOSIGNAL) == static_cast<ssize_t>(bytes));
    rig.listener.step();
    CHECK((rig.listener.connections() == 0 && rig.asked.empty()));
    CHECK(Rig::heard(client) <= 0);
  }
}

TEST_CASE("descriptors are closed when they were sent") {
  Rig rig({geteuid(), 8, kLong});
  const int probe = dup(0);
  close(probe);
  const int client = rig.accepted();
  for (int i = 0; i < 5; ++i) {
    Rig::ask(client, 0, kBatch);
    rig.listener.step();
    CHECK(Rig::heard(client) == 1);  // recv() leaves the descriptors behind, and the kernel closes them
  }
  const int after = dup(0);
  CHECK(after <= probe + 2);  // the two ends of the connection
  close(after);
}

}  // namespace
