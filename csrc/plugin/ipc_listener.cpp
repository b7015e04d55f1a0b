#include "plugin/ipc_listener.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <thread>

namespace poolalloc::ipc {
namespace {

constexpr std::chrono::milliseconds kPause{20};  // where no file can be opened: others must close some first

bool send_with(int client, const Reply& reply, const std::vector<int>& descriptors) {
  iovec bytes{const_cast<Reply*>(&reply), sizeof reply};
  alignas(cmsghdr) char control[CMSG_SPACE(kBatch * sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &bytes;
  message.msg_iovlen = 1;
  if (!descriptors.empty()) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(descriptors.size() * sizeof(int));
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(descriptors.size() * sizeof(int));
    std::memcpy(CMSG_DATA(header), descriptors.data(), descriptors.size() * sizeof(int));
  }
  return sendmsg(client, &message, MSG_NOSIGNAL) == static_cast<ssize_t>(sizeof reply);
}

}  // namespace

bool runs_as(int socket, uid_t user, uid_t* found) {
  ucred peer{};
  socklen_t length = sizeof peer;
  if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0) return false;
  if (found != nullptr) *found = peer.uid;
  return peer.uid == user;
}

Listener::~Listener() {
  for (const Client& client : clients_) close(client.socket);
}

void Listener::step() {
  std::vector<pollfd> sockets{{socket_, POLLIN, 0}};
  for (const Client& client : clients_) sockets.push_back({client.socket, POLLIN, 0});
  if (poll(sockets.data(), sockets.size(), patience()) < 0) return;
  // Who asks is answered before anybody is closed: what remains then has been silent.
  for (std::size_t i = clients_.size(); i-- > 0;) {
    if (sockets[i + 1].revents == 0 || answer(&clients_[i])) continue;
    close(clients_[i].socket);
    clients_.erase(clients_.begin() + static_cast<std::ptrdiff_t>(i));
  }
  close_silent();
  if ((sockets[0].revents & POLLIN) != 0) accept_one();
}

// Until the first of the connections has been silent for too long, in milliseconds as poll() takes them.
int Listener::patience() const {
  if (clients_.empty()) return -1;
  const auto first = std::min_element(clients_.begin(), clients_.end(),
                                      [](const Client& one, const Client& other) { return one.heard < other.heard; });
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(first->heard + limits_.silence - Clock::now());
  return static_cast<int>(std::max<std::chrono::milliseconds::rep>(left.count(), 0));
}

void Listener::close_silent() {
  const Clock::time_point bound = Clock::now() - limits_.silence;
  std::erase_if(clients_, [bound](const Client& client) {
    if (client.heard > bound) return false;
    close(client.socket);
    return true;
  });
}

void Listener::accept_one() {
  const int socket = accept4(socket_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (socket < 0) {
    if (errno == EMFILE || errno == ENFILE) std::this_thread::sleep_for(kPause);
    return;
  }
  Client client{socket, Clock::now()};
  if (!runs_as(socket, limits_.user) || !answer(&client)) {  // it may have asked already
    close(socket);
    return;
  }
  if (clients_.size() >= limits_.connections) {
    const auto silent = std::min_element(clients_.begin(), clients_.end(), [](const Client& one, const Client& other) {
      return one.heard < other.heard;
    });
    close(silent->socket);
    clients_.erase(silent);
  }
  clients_.push_back(client);
}

// False if the client has gone, or does not speak as it should.
bool Listener::answer(Client* client) const {
  Request request;
  const ssize_t got = recv(client->socket, &request, sizeof request, MSG_TRUNC);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return true;
  if (got != static_cast<ssize_t>(sizeof request)) return false;
  client->heard = Clock::now();
  Reply reply;
  std::vector<int> descriptors;
  respond_(request, &reply, &descriptors);
  reply.count = static_cast<std::uint32_t>(descriptors.size());
  const bool sent = send_with(client->socket, reply, descriptors);
  for (const int descriptor : descriptors) close(descriptor);
  return sent;
}

}  // namespace poolalloc::ipc
