#include "tests/support/http_test_client.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <utility>

namespace packtrain {

HttpTestClient::HttpTestClient(uint16_t port, int receive_buffer_bytes) {
  socket_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const timeval limit{120, 0};
  setsockopt(socket_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
  setsockopt(socket_, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
  if (receive_buffer_bytes > 0) {
    setsockopt(socket_, SOL_SOCKET, SO_RCVBUF, &receive_buffer_bytes, sizeof(int));
    // Segments as over Ethernet: for loopback's, of 64 KiB, a sender's kernel keeps megabytes.
    const int segment_bytes = 1460;
    setsockopt(socket_, IPPROTO_TCP, TCP_MAXSEG, &segment_bytes, sizeof(segment_bytes));
  }
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (connect(socket_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) Close();
}

HttpTestClient::~HttpTestClient() { Close(); }

void HttpTestClient::Close() {
  if (socket_ >= 0) close(socket_);
  socket_ = -1;
}

void HttpTestClient::SendRaw(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent <= 0) return;
    bytes.remove_prefix(static_cast<size_t>(sent));
  }
}

void HttpTestClient::SendRequest(std::string_view method, std::string_view path,
                                 std::string_view body, std::string_view headers) {
  std::string text(method);
  text += " ";
  text += path;
  text += " HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + std::to_string(body.size()) + "\r\n";
  text += headers;
  text += "\r\n";
  text += body;
  SendRaw(text);
}

bool HttpTestClient::ReadMore() {
  char bytes[4096];
  const ssize_t got = recv(socket_, bytes, sizeof(bytes), 0);
  if (got <= 0) return false;
  buffer_.append(bytes, static_cast<size_t>(got));
  return true;
}

std::string HttpTestClient::ReadUntil(std::string_view mark) {
  size_t found = 0;
  while ((found = buffer_.find(mark)) == std::string::npos) {
    if (!ReadMore()) return "";
  }
  std::string text = buffer_.substr(0, found + mark.size());
  buffer_.erase(0, text.size());
  return text;
}

bool HttpTestClient::ReadEnd() {
  while (ReadMore()) {
  }
  char byte = 0;
  return recv(socket_, &byte, 1, 0) == 0;
}

HttpTestReply HttpTestClient::ReadReply(bool head_only) {
  HttpTestReply reply;
  const std::string head = ReadUntil("\r\n\r\n");
  if (head.size() < 12) return reply;
  reply.status = std::atoi(head.c_str() + 9);
  for (size_t at = head.find("\r\n") + 2; at + 2 < head.size();) {
    const size_t end = head.find("\r\n", at);
    const size_t colon = head.find(": ", at);
    std::string name = head.substr(at, colon - at);
    std::transform(name.begin(), name.end(), name.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    reply.headers[name] = head.substr(colon + 2, end - colon - 2);
    at = end + 2;
  }
  if (reply.status == 100) return ReadReply(head_only);
  if (head_only) return reply;
  if (reply.headers.contains("transfer-encoding")) {
    while (true) {
      const std::string size_line = ReadUntil("\r\n");
      const size_t size = std::strtoul(size_line.c_str(), nullptr, 16);
      while (buffer_.size() < size + 2) {
        if (!ReadMore()) return reply;
      }
      reply.body += buffer_.substr(0, size);
      buffer_.erase(0, size + 2);
      if (size_line.empty()) return reply;
      if (size == 0) break;
    }
  } else if (reply.headers.contains("content-length")) {
    const size_t size = std::strtoul(reply.headers["content-length"].c_str(), nullptr, 10);
    while (buffer_.size() < size) {
      if (!ReadMore()) return reply;
    }
    reply.body = buffer_.substr(0, size);
    buffer_.erase(0, size);
  } else {
    while (ReadMore()) {
    }
    reply.body = std::exchange(buffer_, "");
  }
  reply.complete = true;
  return reply;
}

HttpTestReply HttpTestClient::Post(std::string_view path, std::string_view body,
                                   std::string_view headers) {
  SendRequest("POST", path, body, headers);
  return ReadReply();
}

HttpTestReply HttpTestClient::Get(std::string_view path, std::string_view headers) {
  SendRequest("GET", path, "", headers);
  return ReadReply();
}

}  // namespace packtrain
